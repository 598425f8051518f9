r"""Score a checkpoint on held-out clips, compare two folders of videos, or run a published suite.

    python -m videomar_jax.evaluate --config=quickstart --checkpoint=DIR --output=DIR
    python -m videomar_jax.evaluate --generated=DIR --reference=DIR
    python -m videomar_jax.evaluate --suite=vbench_i2v --info=FILE --images=DIR \
        --checkpoint=DIR --output=DIR
    python -m videomar_jax.evaluate --suite=vbench_i2v --results=DIR

The first two take --i3d=FILE and --lpips=DIR, the weights of networks, for FVD and LPIPS.
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

from videomar_jax.checks import UserError
from videomar_jax.commands import app
from videomar_jax.commands.field_flags import FieldFlags
from videomar_jax.experiment.comparison_options import ComparisonOptions, NetworkOptions
from videomar_jax.experiment.suite_options import RESULT_FLAGS, SuiteOptions

_CONFIG = config_flags.DEFINE_config_file("config", None, "Names the held-out clips.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A run's workdir, or one of its checkpoints.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder for videos, report.json and report.md.")
_ALL = flags.DEFINE_bool("all_checkpoints", False, "Score all of a run's checkpoints, over steps.")
_COMPARISON = FieldFlags(ComparisonOptions)
_SUITE = FieldFlags(SuiteOptions)
_NETWORKS = {field.name for field in dataclasses.fields(NetworkOptions)}


def main(_: Sequence[str]) -> None:
    """Scores a checkpoint, compares two folders, or runs a suite."""
    from videomar_jax.commands.compilation_cache import keep_compiled

    keep_compiled()
    config = None if _CONFIG.value is None else _CONFIG.value.to_dict()
    compared, suite = _COMPARISON.given(), _SUITE.given()
    if compared and (_CHECKPOINT.value is None or not set(compared) <= _NETWORKS):
        app.refuse_others(main, [*compared, "output"], "Two folders are compared as they are")
        from videomar_jax.experiment.compare_folders import compare_folders

        print(compare_folders(ComparisonOptions(**compared), _OUTPUT.value))
    elif suite:
        if compared:
            raise UserError(f"--suite has no use for --{next(iter(compared))}: leave it out.")
        if _ALL.value:
            raise UserError("--suite takes one checkpoint: leave out --all_checkpoints.")
        options = SuiteOptions(**suite)
        if options.results:
            app.refuse_others(main, RESULT_FLAGS, "Results are shown as they are")
        from videomar_jax.experiment.vbench_suite import run_suite

        run_suite(options, _CHECKPOINT.value, _OUTPUT.value, config)
    elif _ALL.value:
        from videomar_jax.experiment.learning_curve import evaluate_all_named

        networks = NetworkOptions(**compared)
        evaluate_all_named(config, _CHECKPOINT.value, _OUTPUT.value, networks)
    else:
        from videomar_jax.experiment.evaluate import evaluate_named

        networks = NetworkOptions(**compared)
        evaluate_named(config, _CHECKPOINT.value, _OUTPUT.value, networks)


if __name__ == "__main__":
    app.run(main)
