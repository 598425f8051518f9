"""Score a checkpoint: python -m videomar_jax.evaluate --config=… --checkpoint=DIR --output=DIR"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from videomar_jax.commands import app

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Names the held-out clips.", lock_config=True
)
_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A run's workdir, or one of its checkpoints.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder for report.json, report.md and pictures.")
flags.mark_flags_as_required(["config", "checkpoint", "output"])


def main(_: Sequence[str]) -> None:
    """Generates held-out clips with the checkpoint and reports."""
    from videomar_jax.commands.compilation_cache import keep_compiled
    from videomar_jax.experiment.config import Experiment
    from videomar_jax.experiment.evaluate import evaluate_checkpoint

    keep_compiled()
    evaluate_checkpoint(
        Experiment.from_config(_CONFIG.value), Path(_OUTPUT.value), _CHECKPOINT.value
    )


if __name__ == "__main__":
    app.run(main)
