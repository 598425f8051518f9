"""The start of a run of several processes: join the others where there are others, else do nothing.

There is something to join when

1. flags say so: --coordinator=HOST:PORT --num_processes=N --process_id=I, N and I also from SLURM
    or Open MPI;
2. SLURM or Open MPI started more than one process (`srun`, `mpirun`), whose variables say the rest;
3. the machine is a TPU host: its environment or metadata server names the hosts of the pod.

A laptop, a single GPU machine and an allocation of one task start nothing. Where several processes
share a machine, each takes its part of the GPUs; a process alone on its machine takes them all (JAX
by itself would take one).
"""

import dataclasses
import glob
import logging
import os
import sys
from collections.abc import Mapping
from typing import NoReturn

from videomar_jax.parallel import rendezvous

_log = logging.getLogger(__name__)
_A_DAY = 24 * 3600
_SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
_joined = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Launcher:
    """What the variables of a launcher say of this process."""

    name: str
    num_processes: int
    process_id: int
    local_id: int  # among the processes of this machine
    local_size: int  # how many these are
    names_coordinator: bool  # whether JAX finds out by itself where process 0 is
    gpus_on_machine: int = 0  # 0: not told


def start(
    coordinator: str = "",
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    timeout: float = 300.0,
) -> None:
    """Joins the other processes of the run, if there are any; call it before anything is computed
    with JAX.

    Args:
        coordinator: "host:port" of process 0. With "" and no numbers the machine is asked, as the
            module says.
        num_processes: how many processes there are.
        process_id: the number of this one, 0 .. num_processes - 1.
        timeout: seconds to wait for the others.

    A second call does nothing. Processes other than 0 log warnings only.

    Raises:
        ValueError: flags are incomplete or contradict each other.
        TimeoutError: the coordinator cannot be reached, or some process has not come in time.
        OSError: process 0 cannot listen at its port; a TPU host cannot find out its pod.
    """
    global _joined
    import jax  # here, so that --help needs no JAX

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
        }
        # Complete as it is: JAX need not look at the machine.
        arguments |= {
            "cluster_detection_method": "deactivate",
            "local_device_ids": _share_of_gpus(launcher),
        }
    elif launcher is not None:
        if launcher.num_processes == 1:
            return
        if not launcher.names_coordinator:
            raise ValueError(
                f"{launcher.name} started {launcher.num_processes} processes but does not say where process 0 is "
                f"(Open MPI 5 does not): add --coordinator=HOST:PORT with the host of rank 0 and a free port."
            )
        _log.info(
            "joining as process %d of %d (%s)",
            launcher.process_id,
            launcher.num_processes,
            launcher.name,
        )
        arguments = {"local_device_ids": _share_of_gpus(launcher)}
    elif on_tpu(jax.config.jax_platforms, os.environ):
        arguments = {}
    else:
        return
    _initialize(jax, arguments, timeout)
    _joined = True
    _after(jax)


def leave(code: int) -> NoReturn:
    """Exits with `code`. One of several processes goes at once: the usual farewell waits for the
    others, and they may be waiting for this one in the middle of a step."""
    sys.stdout.flush()
    sys.stderr.flush()
    if _joined and code:
        os._exit(code)
    sys.exit(code)


def launched_by(environ: Mapping[str, str]) -> Launcher | None:
    """The launcher that started this process, None where none did.

    A SLURM allocation alone (`salloc`, the body of an `sbatch` script) is no launcher: only `srun`
    makes tasks.
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
    """Whether JAX runs on a TPU host that may belong to a pod; importing JAX names the platform on
    such a host.

    TPU_SKIP_MDS_QUERY says that there is no metadata server to ask, TPU_WORKER_HOSTNAMES that there
    is no need to.
    """
    told = environ.get("TPU_WORKER_HOSTNAMES") or environ.get("TPU_PROCESS_ADDRESSES")
    return "tpu" in (platforms or "").split(",") and bool(
        told or not environ.get("TPU_SKIP_MDS_QUERY")
    )


def gpu_share(launcher: Launcher | None, visible: int) -> list[int] | None:
    """Which of the `visible` GPUs this process takes, by their numbers among them; None leaves it
    to JAX.

    Raises:
        ValueError: the processes of a machine cannot share its GPUs evenly.
    """
    if launcher is None or not visible:
        return None
    bound = visible < launcher.gpus_on_machine  # the launcher shows each task its own GPUs only
    if bound or launcher.local_size == 1:
        return list(range(visible))
    if not launcher.local_size:
        return None
    share, rest = divmod(visible, launcher.local_size)
    if rest or not share:
        raise ValueError(
            f"{launcher.local_size} processes cannot share {visible} GPUs evenly: start one process per GPU, or one "
            f"per machine."
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
    """How many processes there are, and which this one is."""
    if launcher is not None and count is None and number is None:
        count, number = launcher.num_processes, launcher.process_id
    given = {"--coordinator": coordinator or None, "--num_processes": count, "--process_id": number}
    missing = [name for name, value in given.items() if value is None]
    if missing:
        raise ValueError(
            f"{' and '.join(missing)} must be given too: a run of several processes needs --coordinator=HOST:PORT, "
            f"--num_processes=N and --process_id=0..N-1; a run of one process none of them."
        )
    if count < 1 or not 0 <= number < count:
        raise ValueError(
            f"--process_id={number} must lie in 0..{count - 1} of --num_processes={count}."
        )
    return count, number


def _initialize(jax, arguments: dict, timeout: float) -> None:
    # SIGTERM is Python's business here: JAX's own notice of it would swallow one that comes before
    # the first step.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        # Who is done waits for process 0, which may be scoring; should that one die, the wait ends
        # at once.
        jax.distributed.initialize(
            **arguments,
            initialization_timeout=max(1, round(timeout)),
            shutdown_timeout_seconds=_A_DAY,
        )
    except (OSError, KeyError) as error:  # the metadata server of a TPU host
        raise OSError(
            f"This machine has TPUs, but which pod it belongs to could not be found out ({error}). Set "
            f"TPU_SKIP_MDS_QUERY=1 for this host alone, or give --coordinator, --num_processes and --process_id."
        ) from error


def _after(jax) -> None:
    """Quiet logs but on process 0, and an end that waits for nobody where one process meets an
    unexpected error."""
    if jax.process_index():
        logging.getLogger("videomar_jax").setLevel(logging.WARNING)
    _log.info("process 0 of %d, %d devices in all", jax.process_count(), jax.device_count())
    told = sys.excepthook

    def tell_and_leave(*error) -> None:
        told(*error)
        leave(1)

    sys.excepthook = tell_and_leave


def _skip_proxy(host: str) -> None:
    """The processes talk to each other directly, whatever proxy the machine uses for the web."""
    if any(os.environ.get(name) for name in ("http_proxy", "https_proxy", "grpc_proxy")):
        os.environ["no_proxy"] = f"{os.environ.get('no_proxy', '')},{host}".lstrip(",")


def _expand(tasks_per_node: str) -> list[int]:
    """SLURM's "4(x2),1" as [4, 4, 1]."""
    counts: list[int] = []
    for part in filter(None, tasks_per_node.split(",")):
        number, _, times = part.partition("(x")
        counts += [int(number)] * int(times.rstrip(")") or 1)
    return counts
