"""The same shards by an Apache Beam pipeline: for corpora that one machine, or a handful, cannot
prepare in time.

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

from videomar_jax.preparation.encoding import ShardEncoder
from videomar_jax.preparation.folder import MODEL, receipt_of, write_shard
from videomar_jax.preparation.plan import Plan
from videomar_jax.preparation.plan_file import load_plan
from videomar_jax.preparation.progress import Progress
from videomar_jax.preparation.run import Task, check, conclude, planned
from videomar_jax.text_encoders import load_text_encoder
from videomar_jax.tokenizers import load_tokenizer


@dataclasses.dataclass(frozen=True)
class Work:
    """What every worker needs to know; everything else stands in the output folder."""

    videos: str
    output: str
    batch_size: int | None
    threads: int


def make_shard(number: int, work: Work) -> str:
    """Makes shard number `number` of OUTPUT/plan.json, unless it is complete, and returns its
    file's name."""
    plan, encoder = _open(work)
    shard, output = plan.shards[number], Path(work.output)
    if receipt_of(output, shard) is None:
        write_shard(output, shard, encoder, Progress(f"clips of {shard.name}", len(shard.windows)))
    return shard.name


def prepare_with_beam(task: Task, options: Sequence[str] = ()) -> dict[str, Any] | None:
    """As `run.prepare`, the shards made by a pipeline with these options (`--runner=...` and the
    runner's own).

    Raises ValueError where Apache Beam is not installed, and what `run.prepare` does.
    """
    beam, pipeline_options = import_beam()
    check(task)
    plan = planned(task)
    numbers = [
        number for number, shard in enumerate(plan.shards) if receipt_of(task.output, shard) is None
    ]
    work = Work(
        str(task.videos.resolve()), str(task.output.resolve()), task.batch_size, task.threads
    )
    if numbers:
        with beam.Pipeline(options=pipeline_options(list(options))) as pipeline:
            shards = pipeline | "Shards" >> beam.Create(numbers) | "Spread" >> beam.Reshuffle()
            _ = shards | "Make" >> beam.Map(make_shard, work)
    return conclude(task.output, plan)


def import_beam() -> tuple[Any, Any]:
    """apache_beam and its PipelineOptions. Raises ValueError saying how to get them."""
    try:
        import apache_beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise ValueError('--beam needs Apache Beam: pip install "videomar_jax[beam]"') from error
    return apache_beam, PipelineOptions


@functools.lru_cache(maxsize=1)
def _open(work: Work) -> tuple[Plan, ShardEncoder]:
    """The plan and the encoder, once in each worker process."""
    plan, model = load_plan(Path(work.output)), Path(work.output) / MODEL
    text = None if plan.parts["text_encoder"] is None else load_text_encoder(model / "text_encoder")
    tokenizer = load_tokenizer(model / "tokenizer")
    return plan, ShardEncoder(
        Path(work.videos),
        plan.settings,
        tokenizer,
        text,
        batch_size=work.batch_size,
        threads=work.threads,
    )
