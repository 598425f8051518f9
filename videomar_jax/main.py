"""Train: python -m videomar_jax.main --config=configs/quickstart.py --workdir=runs/quickstart

Several processes: launch/ has scripts for one machine, SLURM and TPU pods (docs/launch.md).
"""

from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from videomar_jax import cli, distributed

_CONFIG = config_flags.DEFINE_config_file("config", None, "For instance configs/quickstart.py.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; an interrupted run goes on where it stopped.")
_COORDINATOR = flags.DEFINE_string("coordinator", "", "Several processes: HOST:PORT of process 0, a port free there.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many they are; SLURM and Open MPI say it themselves.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "The number of this one, from 0.")
flags.mark_flags_as_required(["config", "workdir"])


def main(_: Sequence[str]) -> None:
    """Runs the config's curriculum and reports."""
    cli.stop_on_sigterm()
    distributed.start(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    from videomar_jax.experiment import Experiment
    from videomar_jax.runs import run

    experiment = Experiment.from_config(_CONFIG.value)
    run(experiment, _WORKDIR.value, _CONFIG.value.to_dict())


if __name__ == "__main__":
    cli.run(main)
