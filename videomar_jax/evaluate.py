"""Score a checkpoint on the held-out clips that a config names, or compare two folders of videos.

    python -m videomar_jax.evaluate --config=quickstart --checkpoint=DIR --output=DIR
    python -m videomar_jax.evaluate --generated=DIR --reference=DIR

Both take --i3d=FILE and --lpips=DIR, the weights of networks, for FVD and LPIPS.
--all_checkpoints scores every checkpoint of a run and draws the scores over the steps.
--config.SECTION.KEY=VALUE changes one entry of the config.
"""

from videomar_jax.commands import interrupts

if __name__ == "__main__":
    interrupts.watch("evaluate")  # before the imports below, which take seconds

import dataclasses
from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from videomar_jax.commands import app
from videomar_jax.commands.field_flags import FieldFlags
from videomar_jax.experiment.comparison_options import ComparisonOptions, NetworkOptions

_CONFIG = config_flags.DEFINE_config_file("config", None, "Names the held-out clips.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A run's workdir, or one of its checkpoints.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder for report.json, report.md and pictures.")
_ALL = flags.DEFINE_bool("all_checkpoints", False, "Score all of a run's checkpoints, over steps.")
_COMPARISON = FieldFlags(ComparisonOptions)
_NETWORKS = {field.name for field in dataclasses.fields(NetworkOptions)}


def main(_: Sequence[str]) -> None:
    """Scores a checkpoint, or compares two folders."""
    from videomar_jax.commands.compilation_cache import keep_compiled

    keep_compiled()
    config = None if _CONFIG.value is None else _CONFIG.value.to_dict()
    compared = _COMPARISON.given()
    if compared and (_CHECKPOINT.value is None or not set(compared) <= _NETWORKS):
        app.refuse_others(main, [*compared, "output"], "Two folders are compared as they are")
        from videomar_jax.experiment.compare_folders import compare_folders

        print(compare_folders(ComparisonOptions(**compared), _OUTPUT.value))
        return
    networks = NetworkOptions(**compared)
    if _ALL.value:
        from videomar_jax.experiment.learning_curve import evaluate_all_named

        evaluate_all_named(config, _CHECKPOINT.value, _OUTPUT.value, networks)
    else:
        from videomar_jax.experiment.evaluate import evaluate_named

        evaluate_named(config, _CHECKPOINT.value, _OUTPUT.value, networks)


if __name__ == "__main__":
    app.run(main)
