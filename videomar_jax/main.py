"""Train a model. The same command continues a run where it was stopped.

    python -m videomar_jax.main --config=quickstart --workdir=runs/quickstart

--config.SECTION.KEY=VALUE changes one entry of the config. For several processes launch/ has
scripts for one machine, SLURM and TPU pods (docs/launch.md).
"""

from videomar_jax.commands import interrupts

if __name__ == "__main__":
    interrupts.watch("main")  # before the imports below, which take seconds

from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from videomar_jax.checks import UserError
from videomar_jax.commands import app
from videomar_jax.parallel import launch

_CONFIG = config_flags.DEFINE_config_file("config", None, "A config of ours, or a config file.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
_COORDINATOR = flags.DEFINE_string(
    "coordinator", "", "Of several processes: HOST:PORT of process 0, with a free port."
)
_NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", None, "The number of processes; SLURM and Open MPI name it themselves."
)
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "The number of this process, from 0.")
_PROFILE = flags.DEFINE_string(
    "profile", "", "START:STEPS, the steps to take a profile of, into WORKDIR/profile."
)
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Report what the run needs, read one batch, end.")
_DEVICES = flags.DEFINE_integer(
    "devices", None, "With --dry_run: plan for this number of devices instead of those here."
)
_COMPILE = flags.DEFINE_string(
    "compile", "", "With --dry_run: compile for a machine, such as tpu:v5e:16x16 or gpu:h100:8."
)
flags.mark_flag_as_required("config")


def main(_: Sequence[str]) -> None:
    """Trains through the config's curriculum and reports."""
    if _COMPILE.value:
        _compile()
        return
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
        raise UserError("Name the folder of the run: --workdir=DIR.")
    profile = Profile.parse(_PROFILE.value) if _PROFILE.value else None
    run(experiment, _WORKDIR.value, _CONFIG.value.to_dict(), profile)


def _compile() -> None:
    """Compiles the step for a machine that need not be here."""
    if not _DRY_RUN.value or _DEVICES.value:
        raise UserError("--compile goes with --dry_run, and without --devices: it names them.")
    from videomar_jax.accelerators.targets import Target
    from videomar_jax.experiment.compile_step import compile_dry_run
    from videomar_jax.experiment.config import Experiment

    target = Target.parse(_COMPILE.value)
    compile_dry_run(Experiment.from_config(_CONFIG.value), target)


if __name__ == "__main__":
    app.run(main)
