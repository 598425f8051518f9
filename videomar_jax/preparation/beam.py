"""The same shards by an Apache Beam pipeline, for corpora that a few machines cannot prepare.

    Create(numbers of the shards to make) | Reshuffle | Map(make_shard)

The launcher plans and writes the manifest; a worker opens the plan, the tokenizer and the text
encoder from the output folder once, and makes one shard for each element as `run.prepare` does.
Videos and output must be on a file system that launcher and workers share under the same paths. A
bundle that Beam tries again finds its shard complete or makes it again, with the same bytes.

Needs `pip install "videomar_jax[beam]"`, on the workers too.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from videomar_jax.checks import UserError
from videomar_jax.preparation.encoding import ShardEncoder
from videomar_jax.preparation.folder import MODEL, receipt_of, share_of, write_shard
from videomar_jax.preparation.plan import Plan
from videomar_jax.preparation.plan_file import load_plan
from videomar_jax.preparation.progress import Progress
from videomar_jax.preparation.run import Task, check, finish_if_complete, open_plan
from videomar_jax.text_encoders import load_text_encoder
from videomar_jax.tokenizers import load_tokenizer


@dataclasses.dataclass(frozen=True)
class WorkerOptions:
    """What every worker is told; everything else is in the output folder.

    videos, output: absolute paths.
    batch_size, threads: as in `run.Task`.
    """

    videos: str
    output: str
    batch_size: int | None
    threads: int


def make_shard(number: int, options: WorkerOptions) -> str:
    """Makes shard number `number` of OUTPUT/plan.json, unless it is complete; returns the name of
    its file."""
    plan, encoder = _open(options)
    shard, output = plan.shards[number], Path(options.output)
    if receipt_of(output, shard) is None:
        write_shard(output, shard, encoder, Progress(f"clips of {shard.name}", len(shard.windows)))
    return shard.name


def prepare_with_beam(task: Task, options: Sequence[str] = ()) -> dict[str, Any] | None:
    """As `run.prepare`, with shards made by a pipeline.

    Args:
        options: of the pipeline: `--runner=...` and the runner's own.
    Raises:
        UserError: Apache Beam is not installed; otherwise as `run.prepare`.
    """
    beam, pipeline_options = import_beam()
    check(task)
    with share_of(task.output, 0, 1):
        return _prepare(task, options, beam, pipeline_options)


def _prepare(
    task: Task, options: Sequence[str], beam: Any, pipeline_options: Any
) -> dict[str, Any] | None:
    plan = open_plan(task)
    incomplete = [
        number for number, shard in enumerate(plan.shards) if receipt_of(task.output, shard) is None
    ]
    worker_options = WorkerOptions(
        videos=str(task.videos.resolve()),
        output=str(task.output.resolve()),
        batch_size=task.batch_size,
        threads=task.threads,
    )
    if incomplete:
        with beam.Pipeline(options=pipeline_options(list(options))) as pipeline:
            numbers = pipeline | "Shards" >> beam.Create(incomplete)
            spread = numbers | "Spread" >> beam.Reshuffle()
            _ = spread | "Make" >> beam.Map(make_shard, worker_options)
    return finish_if_complete(task.output, plan)


def import_beam() -> tuple[Any, Any]:
    """apache_beam and its PipelineOptions.

    Raises:
        UserError: it is not installed; the text says how to install it.
    """
    try:
        import apache_beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise UserError('--beam needs Apache Beam: pip install "videomar_jax[beam]"') from error
    return apache_beam, PipelineOptions


@functools.lru_cache(maxsize=1)
def _open(options: WorkerOptions) -> tuple[Plan, ShardEncoder]:
    """The plan and the encoder, once in each worker process."""
    plan = load_plan(Path(options.output))
    model = Path(options.output) / MODEL
    text_encoder = None
    if plan.identities["text_encoder"] is not None:
        text_encoder = load_text_encoder(model / "text_encoder")
    encoder = ShardEncoder(
        Path(options.videos),
        plan.settings,
        load_tokenizer(model / "tokenizer"),
        text_encoder,
        batch_size=options.batch_size,
        threads=options.threads,
    )
    return plan, encoder
