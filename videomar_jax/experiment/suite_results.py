"""The table of what the evaluator of VBench-I2V found. Needs no JAX."""

from pathlib import Path

from videomar_jax.checks import UserError
from videomar_jax.evaluation.vbench import (
    DIMENSIONS,
    Comparison,
    check_results,
    read_results,
    result_files,
)
from videomar_jax.experiment.suite_options import SuiteOptions
from videomar_jax.experiment.suite_prompts import read_suite, video_counts
from videomar_jax.inference.requests import Output
from videomar_jax.io.files import atomic_write
from videomar_jax.io.paths import user_path


def compare_results(options: SuiteOptions, output: Path | None = None) -> str:
    """The table of the evaluator's results beside what is published, in Markdown.

    Args:
        output: folder for report.json and report.md; None writes none.
    Raises:
        FileNotFoundError: there are no results.
        UserError: results are damaged, not complete or twice there, or `output` holds a report.
    """
    if output is not None:
        Output(folder=output).check_folder()
        if (output / "report.json").exists():
            raise UserError(f"{output} already holds a report; choose another --output.")
    counts = {name: dimension.videos for name, dimension in DIMENSIONS.items()}
    if options.info is not None:
        counts = video_counts(read_suite(user_path(options.info, "--info")))
    files = result_files([user_path(place, "--results") for place in options.results])
    results = read_results(files)
    faults = check_results(results, counts, partial=options.partial)
    comparison = Comparison(results=results, faults=faults)
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        atomic_write(output / "report.md", comparison.markdown())
        atomic_write(output / "report.json", comparison.to_json())
    return comparison.markdown()
