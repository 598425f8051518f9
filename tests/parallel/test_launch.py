"""Processes find each other or say why not; a machine on its own starts nothing."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import pytest

from videomar_jax.parallel import launch, rendezvous
from videomar_jax.parallel.launch import Launcher, gpu_share, launched_by, on_tpu, start
from videomar_jax.parallel.rendezvous import meet, own_address, split

SLURM = {
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
ORTE = "OMPI_MCA_orte_hnp_uri"
FLAGS = ("coordinator", "num_processes", "process_id")


def free_port() -> int:
    with socket.create_server(("localhost", 0)) as server:
        return server.getsockname()[1]


def meeting(*arguments, timeout=20.0):
    """What each `meet(port, count, number)` of a group returned or raised."""
    port = free_port()

    def one(count, number):
        try:
            return meet(f"localhost:{port}", count, number, timeout)
        except Exception as error:
            return error

    with ThreadPoolExecutor(len(arguments)) as pool:
        return list(pool.map(lambda each: one(*each), arguments))


# The roll-call


def test_all_come():
    assert meeting((3, 2), (3, 0), (3, 1)) == [None, None, None]
    assert meeting((1, 0)) == [None]


def test_one_that_is_missing_is_named_by_those_that_came():
    for error in meeting((4, 0), (4, 2), timeout=2.5):
        assert isinstance(error, TimeoutError)
        assert "2 of 4 processes" in str(error) and "number 1, 3." in str(error)


def test_a_number_given_twice_is_told_to_all():
    errors = meeting((4, 0), (4, 1), (4, 1))
    assert all(isinstance(error, ValueError) for error in errors), errors
    assert all(
        f"Process 1 was started twice, on {socket.gethostname()} (pid" in str(error)
        for error in errors
    )


def test_a_fault_reaches_one_who_comes_late():
    port = free_port()

    def come(number):
        with pytest.raises(ValueError, match="was started with 4 processes"):
            time.sleep(1.0 if number == 2 else 0.0)
            meet(f"localhost:{port}", 4 if number == 1 else 3, number, 10.0)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(come, range(3)))


def test_different_counts_are_told_to_all():
    for error in meeting((2, 0), (3, 1)):
        assert isinstance(error, ValueError) and "Process 1" in str(error)
        assert "3 processes" in str(error) and "process 0 with 2" in str(error)


def test_nobody_answers_or_the_port_is_taken():
    (error,) = meeting((2, 1), timeout=0.5)
    assert (
        isinstance(error, TimeoutError)
        and "could not reach process 0" in str(error)
        and "refused" in str(error)
    )
    with socket.create_server(("", 0)) as held:
        port = held.getsockname()[1]
        with pytest.raises(OSError, match=f"cannot listen on port {port} .*another process 0"):
            meet(f"localhost:{port}", 2, 0, 5.0)
    with pytest.raises(TimeoutError, match=r"no-such-host\.invalid:1"):
        meet("no-such-host.invalid:1", 2, 1, 0.5)


STRANGE = [
    b"",
    b"GET / HTTP/1.1\n",
    b"\xff\xfe\n",
    b"[" * 900 + b"\n",
    b"null\n",
    b'{"id": []}\n',
    b'{"id": 1e999, "of": 2, "who": "x", "call": ""}\n',
    b'{"id": 1.0, "of": 2, "who": "x", "call": ""}\n',
    b'{"id": true, "of": 2, "who": "x", "call": ""}\n',
    b'{"id": "1", "of": 2, "who": "x", "call": ""}\n',
    b'{"id": -1, "of": 2, "who": "x", "call": ""}\n',
    b'{"id": 2, "of": 2, "who": "x", "call": ""}\n',
    b'{"id": 1, "of": 2, "who": ["x"], "call": ""}\n',
    b'{"id": 1, "of": 2, "who": "x\\u001b[2J", "call": ""}\n',
    b'{"id": 1, "of": 2, "who": "' + b"x" * 1000 + b'", "call": ""}\n',
    b"x" * 100_000,
]


def connect(port: int) -> socket.socket:
    while True:
        try:
            return socket.create_connection(("localhost", port))
        except ConnectionRefusedError:
            time.sleep(0.01)


def test_strangers_at_the_port_do_no_harm():
    """Also those that say nothing, and stay."""
    port = free_port()
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(2) as pool:
        first = pool.submit(meet, f"localhost:{port}", 2, 0, 20.0)
        silent = [stack.enter_context(connect(port)) for _ in range(300)]
        for said in STRANGE:
            with connect(port) as stranger, contextlib.suppress(ConnectionError):
                stranger.sendall(said)
        started = time.monotonic()
        second = pool.submit(meet, f"localhost:{port}", 2, 1, 20.0)
        assert first.result() is None and second.result() is None
        assert time.monotonic() - started < 2, "strangers make processes wait"
        assert silent[-1].recv(1) == b"", "a stranger is not sent away"


def test_a_process_that_calls_again_is_not_a_second_one():
    port = free_port()
    hello = json.dumps({"id": 1, "of": 3, "who": "one", "call": "a"}).encode() + b"\n"
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(2) as pool:
        met = [pool.submit(meet, f"localhost:{port}", 3, number, 20.0) for number in (0, 2)]
        for _ in range(2):
            stack.enter_context(connect(port)).sendall(hello)
        assert [each.result() for each in met] == [None, None]


def test_process_0_listens_on_the_address_of_the_coordinator_alone(monkeypatch, caplog):
    assert own_address("localhost:80") == "127.0.0.1" == own_address("127.0.0.1:80")
    assert own_address("192.0.2.7:80") == "", "an address of another machine, as behind NAT"
    here = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.1.1", 80))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: here)
    assert own_address("node7:80") == "", "/etc/hosts may say so of a name that others know better"
    monkeypatch.undo()
    with rendezvous._listen(f"127.0.0.1:{free_port()}", time.monotonic(), 1.0) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"
    assert not caplog.messages
    with rendezvous._listen(f"192.0.2.7:{free_port()}", time.monotonic(), 1.0) as listener:
        assert listener.getsockname()[0] in ("::", "0.0.0.0")
    assert "must be closed to strangers" in caplog.text


def test_process_0_waits_for_its_name_to_be_known():
    started = time.monotonic()
    with pytest.raises(TimeoutError, match=r"Process 0 could not reach .*no-such-host\.invalid"):
        meet("no-such-host.invalid:1", 2, 0, 0.5)
    assert time.monotonic() - started < 5


def test_the_port_is_free_afterwards():
    port = free_port()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda number: meet(f"localhost:{port}", 2, number, 20.0), range(2)))
    socket.create_server(("", port)).close()


@pytest.mark.parametrize("wrong", ["host", "host:", ":80", "host:port", "host:0", "host:70000"])
def test_an_address_is_host_and_port(wrong):
    with pytest.raises(ValueError, match="host:port"):
        split(wrong)
    assert split("[::1]:80") == ("::1", 80)


# What launchers say


def test_launchers_are_known_by_their_variables():
    assert launched_by({}) is None
    assert launched_by({"SLURM_JOB_ID": "77", "SLURM_NTASKS": "8"}) is None, (
        "an allocation is no launcher"
    )
    assert launched_by(SLURM) == Launcher(
        name="SLURM",
        num_processes=8,
        process_id=5,
        local_id=1,
        local_size=4,
        names_coordinator=True,
    )
    assert launched_by(
        SLURM | {"SLURM_STEP_TASKS_PER_NODE": "4,2(x1)", "SLURM_GPUS_ON_NODE": "4"}
    ) == Launcher(
        name="SLURM",
        num_processes=8,
        process_id=5,
        local_id=1,
        local_size=2,
        names_coordinator=True,
        gpus_on_machine=4,
    )
    assert launched_by(OPEN_MPI) == Launcher(
        name="Open MPI",
        num_processes=4,
        process_id=3,
        local_id=1,
        local_size=2,
        names_coordinator=False,
    )
    assert launched_by(OPEN_MPI | {ORTE: "1.0;tcp://10.0.0.1:9"}).names_coordinator


@pytest.mark.parametrize(
    ("visible", "local_id", "local_size", "on_machine", "share"),
    [
        (8, 3, 8, 8, [3]),  # one task per GPU, all GPUs shown to each
        (1, 3, 8, 8, [0]),  # one task per GPU, its own shown
        (8, 0, 1, 8, list(range(8))),  # one task per machine
        (8, 1, 2, 8, [4, 5, 6, 7]),
        (4, 1, 2, 8, [0, 1, 2, 3]),  # half of them bound to each task
        (2, 1, 2, 0, [1]),  # Open MPI tells no count
        (0, 1, 2, 0, None),  # no GPU
        (8, 1, 0, 8, None),  # tasks per machine not told: JAX takes one per task
    ],
)
def test_processes_of_a_machine_share_its_gpus(visible, local_id, local_size, on_machine, share):
    launcher = Launcher(
        name="",
        num_processes=8,
        process_id=0,
        local_id=local_id,
        local_size=local_size,
        names_coordinator=True,
        gpus_on_machine=on_machine,
    )
    assert gpu_share(launcher, visible) == share
    assert gpu_share(None, visible) is None


def test_gpus_that_cannot_be_shared_evenly_are_refused():
    launcher = Launcher(
        name="",
        num_processes=3,
        process_id=0,
        local_id=0,
        local_size=3,
        names_coordinator=True,
        gpus_on_machine=8,
    )
    with pytest.raises(ValueError, match="3 processes cannot share 8 GPUs"):
        gpu_share(launcher, 8)


def test_a_tpu_host_is_known_by_its_platform():
    assert on_tpu("tpu,cpu", {})
    assert not on_tpu(None, {}) and not on_tpu("cpu", {}) and not on_tpu("cuda,cpu", {})
    assert not on_tpu("tpu", {"TPU_SKIP_MDS_QUERY": "1"})
    assert on_tpu("tpu", {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "a,b"})


# start()


@pytest.fixture
def machine(monkeypatch):
    """Sets the variables of a machine; returns what `jax.distributed.initialize` is called with
    there."""
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **arguments: calls.append(arguments))
    monkeypatch.setattr(launch, "_joined", False)
    monkeypatch.setattr(launch.glob, "glob", lambda pattern: [])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr("videomar_jax.parallel.rendezvous.meet", lambda *arguments: None)
    for name in [*os.environ]:
        if name.startswith(("SLURM_", "OMPI_", "CUDA_VISIBLE")):
            monkeypatch.delenv(name)

    def set_variables(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return calls

    yield set_variables
    jax.config.update("jax_enable_preemption_service", True)


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"},
        SLURM | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"},
    ],
    ids=["laptop", "slurm_allocation", "slurm_one_task"],
)
def test_a_process_on_its_own_starts_nothing(machine, variables):
    calls = machine(**variables)
    start()
    assert calls == []


def test_slurm_tasks_join_with_their_gpus(machine):
    calls = machine(**SLURM, CUDA_VISIBLE_DEVICES="0,1,2,3,4,5,6,7")
    start(timeout=60.0)
    (arguments,) = calls
    assert arguments["local_device_ids"] == [2, 3] and arguments["initialization_timeout"] == 60
    assert not any(
        flag in arguments for flag in ("coordinator_address", "num_processes", "process_id")
    )
    start()
    assert len(calls) == 1, "a second start must do nothing"


def test_flags_are_passed_on(machine):
    calls = machine()
    start("10.0.0.1:1234", 4, 3)
    (arguments,) = calls
    assert "coordinator_bind_address" not in arguments
    wanted = {
        "coordinator_address": "10.0.0.1:1234",
        "num_processes": 4,
        "process_id": 3,
        "local_device_ids": None,
    }
    assert {key: arguments[key] for key in wanted} == wanted


@pytest.mark.parametrize(
    ("coordinator", "address"),
    [
        ("localhost:1234", "127.0.0.1:1234"),
        ("[::1]:1234", "[::1]:1234"),
        ("192.0.2.7:1234", None),
    ],
)
def test_jax_listens_where_process_0_does(machine, monkeypatch, coordinator, address):
    calls = machine()
    monkeypatch.setattr(rendezvous, "_is_ours", lambda address: not address.startswith("192"))
    start(coordinator, 4, 0)
    assert calls[0]["coordinator_bind_address"] == address


def test_open_mpi_needs_a_coordinator_where_it_names_none(machine):
    calls = machine(**OPEN_MPI, CUDA_VISIBLE_DEVICES="0,1")
    with pytest.raises(ValueError, match=r"Open MPI started 4 processes.*--coordinator=HOST:PORT"):
        start()
    start("10.0.0.1:1234")
    assert (calls[0]["num_processes"], calls[0]["process_id"], calls[0]["local_device_ids"]) == (
        4,
        3,
        [1],
    )


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        (dict(coordinator="h:1"), "--num_processes and --process_id"),
        (dict(num_processes=2), "--coordinator and --process_id"),
        (dict(process_id=0), "--coordinator and --num_processes"),
        (dict(coordinator="h:1", process_id=0), "--num_processes"),
        (dict(num_processes=2, process_id=0), "--coordinator"),
    ],
)
def test_half_of_the_flags_is_refused(machine, given, missing):
    calls = machine()
    with pytest.raises(ValueError, match=f"^{missing} must be given too"):
        start(**given)
    assert calls == []


def test_wrong_flags_are_refused(machine):
    machine()
    with pytest.raises(ValueError, match=r"--process_id=2 must lie in 0\.\.1"):
        start("h:1", 2, 2)
    with pytest.raises(ValueError, match="host:port"):
        start("h", 2, 1)


def test_a_tpu_host_without_metadata_is_told_what_to_do(machine, monkeypatch):
    def no_server(**arguments):
        raise ConnectionError("no metadata server")

    machine()
    monkeypatch.setattr(launch, "on_tpu", lambda *arguments: True)
    monkeypatch.setattr(jax.distributed, "initialize", no_server)
    with pytest.raises(OSError, match=r"no metadata server.*TPU_SKIP_MDS_QUERY=1"):
        start()


# Real processes

PROCESS = """
import logging, sys, time
from absl import flags
from videomar_jax.checks import UserError
from videomar_jax.commands import app
from videomar_jax.parallel import launch, rendezvous
NUMBER = flags.DEFINE_integer("number", 0, "")
def main(_):
    launch.start("localhost:" + "PORT", 2, NUMBER.value, timeout=60)
    launch.start("localhost:" + "PORT", 2, NUMBER.value)
    import jax
    logging.getLogger("videomar_jax.any").info("heard")
    logging.getLogger("videomar_jax.any").warning("warned %d", jax.process_index())
    print(jax.process_count(), jax.device_count(), len(jax.local_devices()), flush=True)
    if NUMBER.value == 1:
        raise UserError("this one fails")
    time.sleep(600)
app.run(main)
"""


def test_two_processes_join_and_one_that_fails_waits_for_nobody(tmp_path):
    script = tmp_path / "process.py"
    script.write_text(PROCESS.replace("PORT", str(free_port())))
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=3",
    }
    first, second = (
        subprocess.Popen(
            [sys.executable, script, f"--number={number}"],
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for number in range(2)
    )
    try:
        out, told = second.communicate(timeout=120)
        assert second.returncode == 2, told
        line = first.stdout.readline()  # perhaps later than the other one ends
    finally:
        first.kill()
        second.kill()
    assert out.split() == ["2", "6", "3"]
    assert "Error: this one fails" in told and "warned 1" in told and "heard" not in told
    _, told = first.communicate()
    assert (
        line.split() == ["2", "6", "3"] and "heard" in told and "process 0 of 2, 6 devices" in told
    )
