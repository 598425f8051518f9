"""Score a checkpoint on the held-out clips that a config names, or compare two folders of videos.

    python -m videomar_jax.evaluate --config=quickstart --checkpoint=DIR --output=DIR
    python -m videomar_jax.evaluate --generated=DIR --reference=DIR [--i3d=FILE] [--lpips=DIR]

--config.SECTION.KEY=VALUE changes one entry of the config.
"""

from videomar_jax.commands import interrupts

if __name__ == "__main__":
    interrupts.watch("evaluate")  # before the imports below, which take seconds

from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from videomar_jax.checks import UserError
from videomar_jax.commands import app
from videomar_jax.commands.field_flags import FieldFlags
from videomar_jax.experiment.comparison_options import ComparisonOptions
from videomar_jax.io.paths import user_path

_CONFIG = config_flags.DEFINE_config_file("config", None, "Names the held-out clips.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A run's workdir, or one of its checkpoints.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder for report.json, report.md and pictures.")
_COMPARISON = FieldFlags(ComparisonOptions)


def main(_: Sequence[str]) -> None:
    """Scores a checkpoint, or compares two folders."""
    from videomar_jax.commands.compilation_cache import keep_compiled

    compared = _COMPARISON.given()
    if compared:
        app.refuse_others(main, [*compared, "output"], "Two folders are compared as they are")
        options = ComparisonOptions(**compared)
        from videomar_jax.experiment.compare_folders import compare_folders

        keep_compiled()
        output = None if _OUTPUT.value is None else user_path(_OUTPUT.value, "--output")
        print(compare_folders(options, output))
        return
    if _CONFIG.value is None or _CHECKPOINT.value is None or _OUTPUT.value is None:
        raise UserError(
            "Name what is scored: --config=CONFIG, --checkpoint=DIR and --output=DIR; or two "
            "folders of videos: --generated=DIR and --reference=DIR."
        )
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
