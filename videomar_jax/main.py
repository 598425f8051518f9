"""Train: python -m videomar_jax.main --config=configs/quickstart.py --workdir=runs/quickstart"""

from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from videomar_jax import cli

_CONFIG = config_flags.DEFINE_config_file("config", None, "For instance configs/quickstart.py.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; an interrupted run goes on where it stopped.")
flags.mark_flags_as_required(["config", "workdir"])


def main(_: Sequence[str]) -> None:
    """Runs the config's curriculum and reports."""
    from videomar_jax.experiment import Experiment
    from videomar_jax.runs import run

    experiment = Experiment.from_config(_CONFIG.value)
    run(experiment, _WORKDIR.value, _CONFIG.value.to_dict())


if __name__ == "__main__":
    cli.run(main)
