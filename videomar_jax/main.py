"""Train: python -m videomar_jax.main --config=configs/quickstart.py --workdir=runs/quickstart

Several processes: launch/ has scripts for one machine, SLURM and TPU pods (docs/launch.md).
"""

from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from videomar_jax.commands import app
from videomar_jax.parallel import launch

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "For instance configs/quickstart.py.", lock_config=True
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run; an interrupted run goes on where it stopped."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", "", "Several processes: HOST:PORT of process 0, a port free there."
)
_NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", None, "How many they are; SLURM and Open MPI say it themselves."
)
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "The number of this one, from 0.")
_PROFILE = flags.DEFINE_string(
    "profile", "", "START:STEPS, the steps to take a profile of, into WORKDIR/profile."
)
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Say what the run takes, read one batch, and end.")
_DEVICES = flags.DEFINE_integer(
    "devices", None, "With --dry_run: plan for so many devices instead of those here."
)
flags.mark_flag_as_required("config")


def main(_: Sequence[str]) -> None:
    """Runs the config's curriculum and reports."""
    app.stop_on_sigterm()
    launch.start(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    from videomar_jax.experiment.config import Experiment
    from videomar_jax.experiment.run import run
    from videomar_jax.training.profiling import Profile

    experiment = Experiment.from_config(_CONFIG.value)
    if _DRY_RUN.value:
        from videomar_jax.experiment.dry_run import dry_run

        dry_run(experiment, _DEVICES.value)
        return
    if not _WORKDIR.value:
        raise ValueError("Name the folder of the run: --workdir=DIR.")
    profile = Profile.parse(_PROFILE.value) if _PROFILE.value else None
    run(experiment, _WORKDIR.value, _CONFIG.value.to_dict(), profile)


if __name__ == "__main__":
    app.run(main)
