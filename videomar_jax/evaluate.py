"""Score a checkpoint on the held-out clips that a config names.

    python -m videomar_jax.evaluate --config=quickstart --checkpoint=DIR --output=DIR

--config.SECTION.KEY=VALUE changes one entry of the config.
"""

from videomar_jax.commands import interrupts

if __name__ == "__main__":
    interrupts.watch("evaluate")  # before the imports below, which take seconds

from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from videomar_jax.commands import app
from videomar_jax.io.paths import user_path

_CONFIG = config_flags.DEFINE_config_file("config", None, "Names the held-out clips.")
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "A run's workdir, or one of its checkpoints.", required=True
)
_OUTPUT = flags.DEFINE_string(
    "output", None, "Folder for report.json, report.md and pictures.", required=True
)
flags.mark_flag_as_required("config")


def main(_: Sequence[str]) -> None:
    """Generates the held-out clips with the checkpoint and reports its scores."""
    from videomar_jax.commands.compilation_cache import keep_compiled
    from videomar_jax.experiment.budget import at_chosen_size
    from videomar_jax.experiment.config import Experiment
    from videomar_jax.experiment.evaluate import evaluate_checkpoint
    from videomar_jax.pretrained.bundle import run_folder

    keep_compiled()
    checkpoint = user_path(_CHECKPOINT.value, "--checkpoint")
    config = at_chosen_size(_CONFIG.value.to_dict(), run_folder(checkpoint))
    experiment = Experiment.from_config(config)
    evaluate_checkpoint(experiment, user_path(_OUTPUT.value, "--output"), checkpoint)


if __name__ == "__main__":
    app.run(main)
