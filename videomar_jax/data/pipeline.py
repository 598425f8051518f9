"""From a source of clips to batches, as pure index arithmetic: the position in the data is the step number.

Element k of the endless stream is clip pi_e(k mod n) of epoch e = k div n, where pi_e is epoch e's own permutation of
the n clips; its random generator depends on (seed, k) alone. Step s takes elements sB .. (s+1)B - 1, whatever n is,
and process i of N takes every N-th of them, beginning with the i-th. Hence a run resumes at any step, with any number
of threads or processes, from `start_step` alone, and nothing about the data needs saving.
"""

from collections.abc import Generator, Iterable, Sequence
from typing import TypedDict

import grain
import numpy as np

from videomar_jax.data.sources import Clip, ClipShape, ClipSource, check_index
from videomar_jax.types import UInt8


class Batch(TypedDict):
    """Clips of one shape and their captions."""

    video: UInt8[np.ndarray, "B F Hp Wp 3"]
    caption: list[str]


def batches(
    source: ClipSource,
    *,
    shape: ClipShape,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    num_threads: int = 2,
    process_index: int = 0,
    process_count: int = 1,
) -> Generator[Batch, None, None]:
    """Endless batches, shuffled anew each epoch.

    batch_size: clips per step over all processes; this process yields batch_size / process_count of them.
    start_step: the first batch is what the start_step-th `next` (from 0) of a fresh iterator yields.
    num_threads: reader threads; 0 reads in the calling thread. The batches are the same for any number.

    `close()` on the iterator (or its collection) stops the threads. Raises ValueError for settings that do not fit,
    at once; an error of `source.read` comes out of `next` as it is.
    """
    _check(source, batch_size, seed, start_step, num_threads, process_index, process_count)
    elements = (
        grain.MapDataset.range(len(source))
        .seed(seed)
        .shuffle()
        .repeat()
        .random_map(lambda index, rng: source.read(int(index), rng, shape))
    )
    local = batch_size // process_count
    mine = elements[start_step * batch_size + process_index :: process_count]
    ahead = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=2 * local if num_threads else 0)
    return _closing(mine.to_iter_dataset(ahead).batch(local, drop_remainder=True, batch_fn=_stack))


def fixed_clips(source: ClipSource, indices: Iterable[int], *, shape: ClipShape, seed: int = 0) -> Batch:
    """The clips of these indices in this order; what is random in clip i depends on (seed, i) only."""
    indices = [int(index) for index in indices]
    if not indices:
        raise ValueError("fixed_clips needs at least one index")
    if seed < 0:
        raise ValueError(f"seed must be >= 0, got {seed}")
    for index in indices:
        check_index(index, len(source))
    return _stack([source.read(index, np.random.default_rng([seed, index]), shape) for index in indices])


def _check(source, batch_size, seed, start_step, num_threads, process_index, process_count) -> None:
    if len(source) < 1:
        raise ValueError("the source holds no clips")
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index must be in 0..{process_count - 1}, got {process_index}")
    if batch_size < 1 or batch_size % process_count:
        raise ValueError(f"batch_size {batch_size} must be a positive multiple of the {process_count} processes")
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must be in 0..2**32 - 1, got {seed}")
    if start_step < 0 or num_threads < 0:
        raise ValueError(f"start_step and num_threads must be >= 0, got {start_step} and {num_threads}")


def _stack(clips: Sequence[Clip]) -> Batch:
    return Batch(video=np.stack([clip["video"] for clip in clips]), caption=[clip["caption"] for clip in clips])


def _closing(dataset: grain.IterDataset) -> Generator[Batch, None, None]:
    iterator = iter(dataset)
    try:
        yield from iterator
    finally:
        iterator.close()
