"""The launch scripts: who is started with what, what is done with each exit code, and a run of two
processes."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import yaml

from tests.helpers.paths import ROOT
from tests.helpers.tiny_run import load_config
from videomar_jax.checkpoints.compatibility import leaves
from videomar_jax.checkpoints.manager import Checkpoints
from videomar_jax.experiment.config import Experiment

LAUNCH = ROOT / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))
ARGUMENTS = [
    "--config=configs/stage1.py",
    "--workdir=a folder/run",
    '--config.data.path=it\'s "here"',
]
PYTHON = f"""#!/usr/bin/env bash
# A stand-in for python: writes down how it was called and does what $TRIED/plan says of this
# attempt and process.
[[ $1 == -c ]] && exec {sys.executable} "$@"
process=$(grep -o 'process_id=[0-9]*' <<<"$*" | cut -d= -f2)
process=${{process:-${{SLURM_PROCID:-0}}}}
attempt=$(ls "$TRIED" | grep -c "^call_.*_$process\\$")
call="$TRIED/call_${{attempt}}_$process"
echo "$$" >"$TRIED/pid_$process"
printf '%s\\n' "$@" >"$call.part"
echo "devices=${{CUDA_VISIBLE_DEVICES:-}}" >>"$call.part"
mv "$call.part" "$call"
what=$(sed -n "$((attempt + 1))p" "$TRIED/plan" | cut -d' ' -f$((process + 1)))
case $what in
  hang) exec sleep 100 ;;
  stubborn) trap '' TERM; while true; do sleep 0.1; done ;;
  until_term) trap 'exit 75' TERM; while true; do sleep 0.1; done ;;
  *) exit "$what" ;;
esac
"""


class Launch:
    """Runs a script with stand-ins for the programs that it calls."""

    def __init__(self, folder: Path):
        self.folder, self.bin, self.tried = folder, folder / "bin", folder / "tried"
        self.bin.mkdir()
        self.tried.mkdir()
        self.program("python", PYTHON)
        self.environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("SLURM", "CUDA", "PYTHON"))
        } | {"PATH": f"{self.bin}:{os.environ['PATH']}", "TRIED": str(self.tried)}

    def program(self, name: str, text: str) -> None:
        path = self.bin / name
        path.write_text(text)
        path.chmod(0o755)

    def plan(self, *attempts: str) -> None:
        """What each process does in each attempt: an exit code or a word of the stand-in."""
        (self.tried / "plan").write_text("".join(f"{attempt}\n" for attempt in attempts))

    def start(self, script: str, *arguments: str, **variables: object) -> subprocess.Popen:
        environment = self.environment | {name: str(value) for name, value in variables.items()}
        return subprocess.Popen(
            [LAUNCH / script, *arguments],
            env=environment,
            cwd=self.folder,
            text=True,
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def run(self, script: str, *arguments: str, **variables: object) -> tuple[int, str]:
        process = self.start(script, *arguments, **variables)
        out, told = process.communicate(timeout=60)
        return process.returncode, out + told

    def calls(self) -> dict[str, list[str]]:
        """Per attempt and process, as "0_1", the lines that the stand-in wrote down."""
        return {
            path.name.removeprefix("call_"): path.read_text().splitlines()
            for path in sorted(self.tried.glob("call_*_?"))
        }

    def wait_for_calls(self, count: int) -> None:
        deadline = time.monotonic() + 30
        while len(self.calls()) < count:
            assert time.monotonic() < deadline, f"only {list(self.calls())} were started"
            time.sleep(0.02)

    def is_running(self, process: int) -> bool:
        return Path(f"/proc/{(self.tried / f'pid_{process}').read_text().strip()}").exists()


@pytest.fixture
def launch(tmp_path):
    return Launch(tmp_path)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_sound(script):
    subprocess.run(["bash", "-n", script], check=True)
    assert os.access(script, os.X_OK) and "set -euo pipefail" in script.read_text()
    if shutil.which("shellcheck"):
        found = subprocess.run(["shellcheck", script], capture_output=True, text=True)
        assert found.returncode == 0, found.stdout


# One machine


def test_each_process_gets_the_arguments_its_number_and_its_gpus(launch):
    launch.plan("0 0")
    code, told = launch.run("local.sh", *ARGUMENTS, PROCESSES=2, CUDA_VISIBLE_DEVICES="1,3,5,7")
    assert code == 0, told
    calls = launch.calls()
    assert list(calls) == ["0_0", "0_1"]
    addresses = set()
    for number, devices in (("0", "1,3"), ("1", "5,7")):
        module, given, (address, count, own, shown) = (
            calls[f"0_{number}"][part] for part in (slice(0, 2), slice(2, 5), slice(5, 9))
        )
        assert module == ["-m", "videomar_jax.main"] and given == ARGUMENTS
        assert (count, own, shown) == (
            "--num_processes=2",
            f"--process_id={number}",
            f"devices={devices}",
        )
        addresses.add(address)
    (address,) = addresses
    assert address.startswith("--coordinator=localhost:")


def test_one_process_per_gpu_unless_told_otherwise(launch):
    launch.plan("0 0 0")
    assert launch.run("local.sh", CUDA_VISIBLE_DEVICES="4,5,6")[0] == 0
    assert [calls[-1] for calls in launch.calls().values()] == [
        "devices=4",
        "devices=5",
        "devices=6",
    ]
    code, told = launch.run("local.sh", CUDA_VISIBLE_DEVICES="4,5,6", PROCESSES=2)
    assert code == 2 and "2 processes cannot share 3 GPUs" in told


def test_stopped_processes_are_started_again(launch):
    launch.plan("75 75", "75 75", "0 0")
    code, told = launch.run("local.sh", PROCESSES=2, RETRIES=5)
    assert code == 0, told
    assert list(launch.calls()) == ["0_0", "0_1", "1_0", "1_1", "2_0", "2_1"]
    assert told.count("starting again") == 2 and "(2 of 5)" in told


def test_but_not_for_ever(launch):
    launch.plan("75", "75", "75", "0")
    code, told = launch.run("local.sh", PROCESSES=1, RETRIES=2)
    assert code == 75 and len(launch.calls()) == 3
    assert "after 3 attempts" in told


def test_a_process_that_fails_ends_the_others(launch):
    launch.plan("stubborn 3")
    code, told = launch.run("local.sh", PROCESSES=2)
    assert code == 3 and len(launch.calls()) == 2 and "process 1 ended with exit code 3" in told
    assert not launch.is_running(0)


def test_one_that_does_not_follow_the_stopped_ones_is_killed_before_the_next_attempt(launch):
    launch.plan("75 stubborn", "0 0")
    code, told = launch.run("local.sh", PROCESSES=2, GRACE=1)
    assert code == 0 and "starting again" in told and len(launch.calls()) == 4


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_script_stops_the_run_for_good(launch, number):
    launch.plan("until_term until_term", "0 0")
    script = launch.start("local.sh", PROCESSES=2)
    launch.wait_for_calls(2)
    time.sleep(0.3)
    script.send_signal(number)
    _, told = script.communicate(timeout=30)
    assert script.returncode == 75 and "starting again" not in told and len(launch.calls()) == 2
    assert not launch.is_running(0) and not launch.is_running(1)


def test_a_second_signal_kills(launch):
    launch.plan("stubborn stubborn")
    script = launch.start("local.sh", PROCESSES=2)
    launch.wait_for_calls(2)
    for _ in range(2):
        time.sleep(0.6)
        script.send_signal(signal.SIGTERM)
    script.communicate(timeout=30)
    assert script.returncode == 137
    assert not launch.is_running(0) and not launch.is_running(1)


def test_retry(launch):
    launch.plan("75", "75", "4")
    code, told = launch.run("retry.sh", "python", *ARGUMENTS)
    assert code == 4 and told.count("starting again") == 2
    assert list(launch.calls()) == ["0_0", "1_0", "2_0"] and launch.calls()["2_0"][:3] == ARGUMENTS
    launch.plan(*["75"] * 9)
    code, told = launch.run("retry.sh", "python", RETRIES=1)
    assert code == 75 and len(launch.calls()) == 5
    assert launch.run("retry.sh")[0] == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_retry_stops_the_command_for_good(launch, number):
    if signal.getsignal(number) == signal.SIG_IGN:
        pytest.skip(
            "ignored since before these tests began, as below nohup: a shell cannot trap it then"
        )
    launch.plan("until_term", "0")
    script = launch.start("retry.sh", "python")
    launch.wait_for_calls(1)
    time.sleep(0.3)
    script.send_signal(number)
    _, told = script.communicate(timeout=30)
    assert script.returncode == 75 and "starting again" not in told and len(launch.calls()) == 1
    assert not launch.is_running(0)


def test_a_signal_to_the_command_alone_is_retried(launch):
    launch.plan("until_term", "0")
    script = launch.start("retry.sh", "python")
    launch.wait_for_calls(1)
    time.sleep(0.3)
    os.kill(int((launch.tried / "pid_0").read_text()), signal.SIGTERM)
    _, told = script.communicate(timeout=30)
    assert script.returncode == 0 and told.count("starting again") == 1 and len(launch.calls()) == 2


def test_a_second_signal_to_retry_kills(launch):
    launch.plan("stubborn")
    script = launch.start("retry.sh", "python")
    launch.wait_for_calls(1)
    for _ in range(2):
        time.sleep(0.6)
        assert launch.is_running(0)
        script.send_signal(signal.SIGTERM)
    script.communicate(timeout=30)
    assert script.returncode == 137 and not launch.is_running(0)


# SLURM

SRUN = """#!/usr/bin/env bash
# Starts the command as tasks of one node, as srun does, and ends with the highest code.
printf '%s\\n' "$@" >"$TRIED/srun"; echo "cpus=$SRUN_CPUS_PER_TASK" >>"$TRIED/srun"
while [[ $1 == --* ]]; do shift; done
export SLURM_NTASKS=2 SLURM_STEP_NODELIST=localhost SLURM_STEP_TASKS_PER_NODE=2 SLURM_NODEID=0
pids=()
for task in 0 1; do SLURM_PROCID=$task SLURM_LOCALID=$task "$@" & pids+=($!); done
highest=0
for pid in "${pids[@]}"; do
  code=0
  wait "$pid" || code=$?
  ((code > highest)) && highest=$code
done
exit "$highest"
"""


@pytest.fixture
def slurm(launch):
    launch.program("srun", SRUN)
    launch.program("scontrol", '#!/usr/bin/env bash\necho "$@" >>"$TRIED/scontrol"\n')
    launch.environment |= {
        "SLURM_JOB_ID": "4711",
        "SLURM_CPUS_PER_TASK": "12",
        "SLURM_SUBMIT_DIR": str(launch.folder),
    }
    return launch


def requeued(launch) -> str:
    file = launch.tried / "scontrol"
    return file.read_text() if file.exists() else ""


def test_slurm_starts_tasks_with_the_arguments(slurm):
    slurm.plan("0 0")
    assert slurm.run("slurm.sh", *ARGUMENTS)[0] == 0
    told = (slurm.tried / "srun").read_text().splitlines()
    assert told == [
        "--kill-on-bad-exit=0",
        "python",
        "-m",
        "videomar_jax.main",
        *ARGUMENTS,
        "cpus=12",
    ]
    assert all(
        call[:-1] == ["-m", "videomar_jax.main", *ARGUMENTS] for call in slurm.calls().values()
    )
    assert list(slurm.calls()) == ["0_0", "0_1"] and not requeued(slurm)


def test_a_stopped_slurm_job_queues_again_but_not_for_ever(slurm):
    slurm.plan("75 75", "75 75")
    code, told = slurm.run("slurm.sh")
    assert code == 0 and requeued(slurm) == "requeue 4711\n" and "queueing again (1 of 100)" in told
    code, told = slurm.run("slurm.sh", SLURM_RESTART_COUNT=3, RETRIES=3)
    assert code == 75 and requeued(slurm) == "requeue 4711\n" and "after 3 restarts" in told


def test_a_failed_slurm_job_ends_with_its_code(slurm):
    slurm.plan("0 9")
    assert slurm.run("slurm.sh")[0] == 9 and not requeued(slurm)


def test_a_cancelled_slurm_job_does_not_queue_again(slurm):
    slurm.plan("until_term until_term")
    script = slurm.start("slurm.sh")
    slurm.wait_for_calls(2)
    time.sleep(0.3)
    script.send_signal(signal.SIGTERM)  # as scancel does, to script and tasks
    for process in (0, 1):
        os.kill(int((slurm.tried / f"pid_{process}").read_text()), signal.SIGTERM)
    script.communicate(timeout=30)
    assert script.returncode == 75 and not requeued(slurm)


JOINS = """
import sys, jax
from videomar_jax.parallel import launch
launch.start(timeout=60.0)
print("joined", jax.process_index(), jax.process_count(), len(jax.local_devices()), flush=True)
"""


def test_slurm_tasks_find_each_other(slurm):
    """JAX reads SLURM's variables in the processes themselves."""
    (slurm.folder / "joins.py").write_text(JOINS)
    slurm.program(
        "python", f'#!/usr/bin/env bash\nexec {sys.executable} "{slurm.folder}/joins.py"\n'
    )
    job = str(os.getpid())  # the port comes from it
    path = os.pathsep.join(sys.path)
    code, told = slurm.run("slurm.sh", SLURM_JOB_ID=job, JAX_PLATFORMS="cpu", PYTHONPATH=path)
    assert code == 0, told
    assert sorted(line for line in told.splitlines() if line.startswith("joined")) == [
        "joined 0 2 1",
        "joined 1 2 1",
    ]


# TPU pods and Kubernetes

GCLOUD = """#!/usr/bin/env bash
printf '%s\\n' "$@" >"$TRIED/gcloud"
for argument in "$@"; do
  [[ $argument == --command=* ]] && exec bash -c "${argument#--command=}"
done
"""


def test_a_tpu_pod_gets_the_arguments_as_they_are(launch):
    launch.program("gcloud", GCLOUD)
    (launch.folder / "my repository").mkdir()
    (launch.folder / "my repository" / "launch").symlink_to(LAUNCH)
    launch.plan("75", "6")
    where = dict(TPU="my-pod", ZONE="us-x1-a", DIRECTORY="my repository", PYTHON="python")
    code, told = launch.run("tpu_pod.sh", *ARGUMENTS, **where)
    assert code == 6 and told.count("starting again (1 of 10)") == 1
    assert [call[:-1] for call in launch.calls().values()] == [
        ["-m", "videomar_jax.main", *ARGUMENTS]
    ] * 2
    called = (launch.tried / "gcloud").read_text().splitlines()
    assert called[:5] == ["compute", "tpus", "tpu-vm", "ssh", "my-pod"]
    assert "--zone=us-x1-a" in called and "--worker=all" in called
    assert not any(argument.startswith("--project") for argument in called)
    launch.plan("0", "0", "0")
    launch.run("tpu_pod.sh", **where, PROJECT="mine")
    assert "--project=mine" in (launch.tried / "gcloud").read_text().splitlines()


def test_a_tpu_pod_needs_a_name(launch):
    code, told = launch.run("tpu_pod.sh", ZONE="x")
    assert code and "the name of the TPU VM" in told


def test_the_kubernetes_job_agrees_with_itself():
    service, job = yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text())
    spec = job["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    flags = dict(argument.removeprefix("--").split("=", 1) for argument in container["args"])
    name = job["metadata"]["name"]
    assert spec["completions"] == spec["parallelism"] == int(flags["num_processes"])
    assert flags["coordinator"].split(":")[0] == f"{name}-0.{pod['subdomain']}"
    assert flags["config"] == "configs/stage1.py" and flags["config.data.path"]
    assert service["metadata"]["name"] == pod["subdomain"] and service["spec"]["selector"] == {
        "job-name": name
    }


# What is written about them

ROOT = LAUNCH.parent
WRITTEN = [
    *SCRIPTS,
    ROOT / "docs" / "launch.md",
    ROOT / "docs" / "curriculum.md",
    ROOT / "docs" / "data.md",
]


def written_commands():
    """(file, stage, variant, {key: value}) of every command that starts a stage."""
    for path in WRITTEN:
        text = re.sub(r"\\\n(# )?\s*", " ", path.read_text())
        for stage, variant, rest in re.findall(
            r"--config=configs/(stage\d)\.py(?::(\w+))?([^\n#]*)", text
        ):
            keys = dict(re.findall(r"--config\.([\w.]+)=(\S+)", rest))
            yield pytest.param(stage, variant, keys, id=f"{path.name}-{stage}{variant}-{len(keys)}")


@pytest.mark.parametrize(("stage", "variant", "keys"), written_commands())
def test_commands_that_are_written_down_can_be_given(stage, variant, keys):
    config = load_config(stage, variant)
    config.update_from_flattened_dict(keys)
    Experiment.from_config(config)
    assert stage == "stage1" or keys.get("init_from"), "a later stage begins with random parameters"


# A run of two processes


SMALL = [  # one compiled step and one compiled decode, quickly: the processes matter here
    "--config.optimizer.name=adamw",
    "--config.curriculum[1].num_frames=3",
    "--config.curriculum[1].height=16",
    "--config.curriculum[1].width=16",
    "--config.evaluation.clips=1",
    "--config.evaluation.batch_size=1",
]


def run_tiny(workdir: Path, clips: Path, processes: int, devices: int) -> tuple[int, str, str]:
    """The tiny quick start on a folder of clips; (exit code, output, errors)."""
    command = (
        [sys.executable, "-m", "videomar_jax.main"]
        if processes == 1
        else [str(LAUNCH / "local.sh")]
    )
    environment = os.environ | {
        "PROCESSES": str(processes),
        "PYTHON": sys.executable,
        "JAX_PLATFORMS": "cpu",
        "RETRIES": "0",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    arguments = [
        f"--config={LAUNCH.parent}/configs/quickstart.py:tiny",
        f"--workdir={workdir}",
        "--config.data.kind=videos",
        f"--config.data.path={clips}",
        *SMALL,
    ]
    process = subprocess.Popen(
        [*command, *arguments],
        env=environment,
        cwd=LAUNCH.parent,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        out, told = process.communicate(timeout=1800)
    finally:
        process.terminate()  # the script passes it on, where the test was broken off
    return process.returncode, out, told


def saved(workdir: Path, step: int) -> dict:
    """The parameters of a checkpoint by name, as NumPy arrays."""
    described = (
        ocp.StandardCheckpointHandler()
        .metadata(workdir / "checkpoints" / str(step) / "params")
        .tree
    )
    like = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), described)
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        return leaves(checkpoints.restore(step, {"params": like})[0]["params"])


@pytest.mark.slow
def test_two_processes_end_where_one_does(tmp_path):
    from tests.helpers.tiny_run import STEPS, write_clip  # late: it imports all of the package

    write_clip(tmp_path / "clips" / "a.mp4", size=(24, 24))
    runs, steps = [tmp_path / "one", tmp_path / "two"], list(range(1, STEPS + 1))
    for processes, workdir in enumerate(runs, 1):
        code, out, told = run_tiny(workdir, tmp_path / "clips", processes, devices=processes)
        assert code == 0, out + told
        assert told.count(f"step {STEPS}/{STEPS}") == 1, "not one process alone speaks"
        assert (workdir / "report.md").exists()
    one, two = (saved(workdir, STEPS) for workdir in runs)
    assert list(one) == list(two)
    for (
        name,
        value,
    ) in (
        one.items()
    ):  # sums in another order: AdamW's first steps have the size of the rate, not of
        np.testing.assert_allclose(
            two[name], value, atol=1e-4, rtol=0, err_msg="/".join(name)
        )  # the gradient
    rows = [
        [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        for workdir in runs
    ]
    assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]] == steps
    losses = np.array([[row["loss"] for row in run] for run in rows])
    np.testing.assert_allclose(losses[1, 0], losses[0, 0], rtol=1e-5)
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
