"""The start of a run of several processes: joins the others if there are any, else does nothing.

There is something to join if

1. flags say so: --coordinator=HOST:PORT --num_processes=N --process_id=I, N and I also from SLURM
   or Open MPI;
2. SLURM or Open MPI started more than one process (`srun`, `mpirun`); their variables say the rest;
3. the machine is a TPU host: its environment or metadata server names the hosts of the pod.

A laptop, a single GPU machine and an allocation of one task start nothing. Processes that share a
machine each take an equal part of its GPUs; a process alone on its machine takes them all (JAX by
itself would take one).
"""

import dataclasses
import glob
import logging
import os
import sys
from collections.abc import Mapping
from typing import Any, NoReturn

from videomar_jax.checks import UserError
from videomar_jax.io.log import log
from videomar_jax.parallel import rendezvous

_A_DAY = 24 * 3600
_SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
_joined = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Launcher:
    """What the variables of a launcher say about this process."""

    name: str
    """The launcher's."""
    num_processes: int
    """Of the whole run."""
    process_id: int
    """The number of this process, from 0."""
    local_id: int
    """Its number among the processes of this machine."""
    local_size: int
    """The number of processes on this machine; 0: unknown."""
    names_coordinator: bool
    """Whether JAX can find out by itself where process 0 is."""
    gpus_on_machine: int = 0
    """0: unknown."""


def start(
    coordinator: str = "",
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    timeout: float = 300.0,
) -> None:
    """Joins the other processes of the run; call it before anything is computed with JAX.

    A second call does nothing. Processes other than 0 log warnings only.

    Args:
        coordinator: "host:port" of process 0. With "" and no numbers the machine is asked, as the
            module describes.
        num_processes: how many processes there are.
        process_id: the number of this one, 0 .. num_processes - 1.
        timeout: seconds to wait for the others.

    Raises:
        UserError: flags are incomplete or contradict each other.
        TimeoutError: the coordinator cannot be reached, or some process did not come in time.
        OSError: process 0 cannot listen on its port; a TPU host cannot find out its pod.
    """
    global _joined
    import jax  # late, so that --help needs no JAX

    if _joined or jax.distributed.is_initialized():
        return
    launcher = launched_by(os.environ)
    if coordinator or num_processes is not None or process_id is not None:
        count, number = _numbers(coordinator, num_processes, process_id, launcher)
        _skip_proxy(rendezvous.split(coordinator)[0])
        rendezvous.meet(coordinator, count, number, timeout)
        arguments = {
            "coordinator_address": coordinator,
            "num_processes": count,
            "process_id": number,
            "local_device_ids": _share_of_gpus(launcher),
            # The arguments are complete: JAX need not look for a cluster.
            "cluster_detection_method": "deactivate",
        }
        if number == 0:
            arguments["coordinator_bind_address"] = _bind_address(coordinator)
    elif launcher is not None:
        if launcher.num_processes == 1:
            return
        if not launcher.names_coordinator:
            raise UserError(
                f"{launcher.name} started {launcher.num_processes} processes but does not say "
                f"where process 0 is (Open MPI 5 does not): add --coordinator=HOST:PORT with the "
                f"host of rank 0 and a free port."
            )
        number, count = launcher.process_id, launcher.num_processes
        log.info("joining as process %d of %d (%s)", number, count, launcher.name)
        arguments = {"local_device_ids": _share_of_gpus(launcher)}
    elif on_tpu(jax.config.jax_platforms, os.environ):
        arguments = {}
    else:
        return
    _initialize(arguments, timeout)
    _joined = True
    _after_joining()


def leave(code: int) -> NoReturn:
    """Exits with `code`.

    After an error, one of several processes exits at once: the usual shutdown waits for the others,
    which may be waiting for this one in the middle of a step.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if _joined and code:
        os._exit(code)
    sys.exit(code)


def launched_by(environ: Mapping[str, str]) -> Launcher | None:
    """The launcher that started this process, None if none did.

    A SLURM allocation alone (`salloc`, the body of an `sbatch` script) is no launcher: only `srun`
    starts tasks.
    """
    if all(name in environ for name in _SLURM):
        per_node = _expand(environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
        node = int(environ.get("SLURM_NODEID", 0))
        return Launcher(
            name="SLURM",
            num_processes=int(environ["SLURM_NTASKS"]),
            process_id=int(environ["SLURM_PROCID"]),
            local_id=int(environ["SLURM_LOCALID"]),
            local_size=per_node[node] if node < len(per_node) else 0,
            names_coordinator=True,
            gpus_on_machine=int(environ.get("SLURM_GPUS_ON_NODE", 0)),
        )
    if "OMPI_COMM_WORLD_SIZE" in environ:
        return Launcher(
            name="Open MPI",
            num_processes=int(environ["OMPI_COMM_WORLD_SIZE"]),
            process_id=int(environ["OMPI_COMM_WORLD_RANK"]),
            local_id=int(environ["OMPI_COMM_WORLD_LOCAL_RANK"]),
            local_size=int(environ.get("OMPI_COMM_WORLD_LOCAL_SIZE", 0)),
            names_coordinator="OMPI_MCA_orte_hnp_uri" in environ,
        )
    return None


def on_tpu(platforms: str | None, environ: Mapping[str, str]) -> bool:
    """Whether JAX runs on a TPU host that may belong to a pod.

    Args:
        platforms: `jax.config.jax_platforms`, which importing JAX sets on such a host.
        environ: TPU_SKIP_MDS_QUERY says that there is no metadata server to ask,
            TPU_WORKER_HOSTNAMES that it need not be asked.
    """
    if "tpu" not in (platforms or "").split(","):
        return False
    hosts_are_named = environ.get("TPU_WORKER_HOSTNAMES") or environ.get("TPU_PROCESS_ADDRESSES")
    return bool(hosts_are_named or not environ.get("TPU_SKIP_MDS_QUERY"))


def gpu_share(launcher: Launcher | None, visible: int) -> list[int] | None:
    """Which of the `visible` GPUs this process takes, by their numbers; None leaves it to JAX.

    Raises:
        UserError: the processes of a machine cannot share its GPUs evenly.
    """
    if launcher is None or not visible:
        return None
    # Some launchers show each task its own GPUs only.
    is_bound = visible < launcher.gpus_on_machine
    if is_bound or launcher.local_size == 1:
        return list(range(visible))
    if not launcher.local_size:
        return None
    share, rest = divmod(visible, launcher.local_size)
    if rest or not share:
        raise UserError(
            f"{launcher.local_size} processes cannot share {visible} GPUs evenly: start one "
            f"process per GPU, or one per machine."
        )
    return list(range(share * launcher.local_id, share * (launcher.local_id + 1)))


def _share_of_gpus(launcher: Launcher | None) -> list[int] | None:
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    if shown is None:
        return gpu_share(launcher, len(glob.glob("/dev/nvidia[0-9]*")))
    return gpu_share(launcher, len([device for device in shown.split(",") if device.strip()]))


def _numbers(
    coordinator: str, count: int | None, number: int | None, launcher: Launcher | None
) -> tuple[int, int]:
    """How many processes there are, and which one this is."""
    if launcher is not None and count is None and number is None:
        count, number = launcher.num_processes, launcher.process_id
    given = {"--coordinator": coordinator or None, "--num_processes": count, "--process_id": number}
    missing = [name for name, value in given.items() if value is None]
    if count is None or number is None or missing:
        raise UserError(
            f"{' and '.join(missing)} must be given too: a run of several processes needs "
            f"--coordinator=HOST:PORT, --num_processes=N and --process_id=0..N-1; a run of one "
            f"process needs none of them."
        )
    if count < 1 or not 0 <= number < count:
        raise UserError(
            f"--process_id={number} must lie in 0..{count - 1} of --num_processes={count}."
        )
    return count, number


def _initialize(arguments: dict[str, Any], timeout: float) -> None:
    import jax

    # SIGTERM is handled in Python: JAX's own handler would swallow a signal that comes before the
    # first step.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            **arguments,
            initialization_timeout=max(1, round(timeout)),
            # Processes that are done wait for process 0, which may still be scoring. If it dies,
            # the wait ends at once.
            shutdown_timeout_seconds=_A_DAY,
        )
    except (OSError, KeyError) as error:  # the metadata server of a TPU host
        raise OSError(
            f"This machine has TPUs, but which pod it belongs to could not be found out ({error}). "
            f"Set TPU_SKIP_MDS_QUERY=1 to use this host alone, or give --coordinator, "
            f"--num_processes and --process_id."
        ) from error


def _after_joining() -> None:
    """Lets only process 0 log more than warnings, and ends a process at its first error."""
    import jax

    if jax.process_index():
        log.setLevel(logging.WARNING)
    log.info("process 0 of %d, %d devices in all", jax.process_count(), jax.device_count())
    show_exception = sys.excepthook

    def show_and_leave(*error) -> None:
        show_exception(*error)
        leave(1)

    sys.excepthook = show_and_leave


def _bind_address(coordinator: str) -> str | None:
    """Where JAX's coordinator listens; None: on all addresses."""
    address = rendezvous.own_address(coordinator)
    if not address:
        return None
    port = rendezvous.split(coordinator)[1]
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _skip_proxy(host: str) -> None:
    """Lets the processes talk to each other directly, whatever proxy the machine uses."""
    if any(os.environ.get(name) for name in ("http_proxy", "https_proxy", "grpc_proxy")):
        os.environ["no_proxy"] = f"{os.environ.get('no_proxy', '')},{host}".lstrip(",")


def _expand(tasks_per_node: str) -> list[int]:
    """SLURM's "4(x2),1" as [4, 4, 1]."""
    counts: list[int] = []
    for part in tasks_per_node.split(","):
        if part:
            number, _, times = part.partition("(x")
            counts += [int(number)] * int(times.rstrip(")") or 1)
    return counts
