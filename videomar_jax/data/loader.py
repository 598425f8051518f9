"""From a source of clips to batches, by index arithmetic: the position in the data is the step.

A bucket is the endless stream of the clips of one shape. Element k of a bucket of n clips is clip
number pi_e(k mod n), where e = k div n is the epoch and pi_e is the bucket's own permutation for
that epoch. The random generator of element k depends on (seed, k) alone. Batch m of a bucket holds
the elements mB .. (m+1)B - 1, whatever n is, and process i of N reads the i-th of N equal blocks of
them. Every step takes the next batch of the bucket that was chosen for it.

Hence a run resumes at any step, with any number of threads or processes, from the number of batches
that each bucket has given (`done`). Nothing about the data needs to be saved.
"""

import itertools
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, TypedDict

import grain
import numpy as np

from videomar_jax.checks import UserError
from videomar_jax.data.sources import Clip, ClipShape, ClipSource, check_index
from videomar_jax.types import Bool, Float, Int, UInt8

# Groups that are being read while the caller works on one; more threads read further ahead.
_GROUPS_AHEAD = 2


class ClipBatch(TypedDict, total=False):
    """Clips of one shape with their texts; the keys are those of the source's clips."""

    video: UInt8[np.ndarray, "B F Hp Wp 3"]
    latents: Float[np.ndarray, "B T h w C"]
    caption: list[str]
    text: Float[np.ndarray, "B K E"]
    text_mask: Bool[np.ndarray, "B K"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Bucket:
    """The stream of clips of one shape."""

    shape: ClipShape
    batch_size: int
    """Clips of a step over all processes."""
    seed: int
    """Of the order, and of what is random in the clips; in 0 .. 2^32 - 1."""
    indices: Int[np.ndarray, "clips"] | None = None
    """The clips of the source that belong to the bucket; None: all."""
    group_size: int | None = None
    """Clips of a batch that are given out together, so that not all of a large batch are in memory
    at a time. It divides a process's share of the batch. None: the whole share."""

    def share(self, process_count: int) -> int:
        """Clips of a batch that one process reads."""
        return self.batch_size // process_count

    def groups(self, process_count: int) -> int:
        """Groups that a process's share of a batch is given out in."""
        share = self.share(process_count)
        return share // (self.group_size or share)


class _Place(NamedTuple):
    """Where a clip stands in the data."""

    bucket: int
    element: int


def bucket_batches(
    source: ClipSource,
    buckets: Mapping[int, Bucket],
    choices: Iterable[int],
    *,
    done: Mapping[int, int],
    num_threads: int = 2,
    process_index: int = 0,
    process_count: int = 1,
) -> Generator[ClipBatch, None, None]:
    """Yields this process's share of one batch for each of `choices`, group after group.

    Args:
        buckets: by number.
        choices: the number of the bucket that gives the batch of each step.
        done: how many batches each bucket gave in earlier steps.
        num_threads: reader threads; 0 reads in the calling thread. Batches are the same for any
            number.

    `close()` on the iterator (or its collection) stops the threads. An error of `source.read` is
    raised by `next` as it is.

    Raises:
        UserError: settings that do not fit, at the call and not at the first batch.
    """
    _check_settings(num_threads, process_index, process_count)
    for bucket in buckets.values():
        _check_bucket(bucket, source, process_count)
    streams = {number: _elements(source, bucket) for number, bucket in buckets.items()}
    groups = _groups(buckets, choices, done, process_index, process_count)
    return _stacked(_read_ahead(groups, streams, num_threads))


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
) -> Generator[ClipBatch, None, None]:
    """Yields endless batches of one shape, beginning with that of step `start_step`.

    Other arguments and errors are those of `Bucket` and `bucket_batches`.
    """
    if start_step < 0:
        raise UserError(f"start_step must not be negative, got {start_step}.")
    return bucket_batches(
        source,
        {0: Bucket(shape=shape, batch_size=batch_size, seed=seed)},
        itertools.repeat(0),
        done={0: start_step},
        num_threads=num_threads,
        process_index=process_index,
        process_count=process_count,
    )


def fixed_clips(
    source: ClipSource, indices: Iterable[int], *, shape: ClipShape, seed: int = 0
) -> ClipBatch:
    """The clips of these indices in this order.

    What is random in clip i depends on (seed, i) only.

    Raises:
        UserError: no index, or a negative seed.
        IndexError: an index outside of the source.
    """
    indices = [int(index) for index in indices]
    if not indices:
        raise UserError("fixed_clips needs at least one index.")
    if seed < 0:
        raise UserError(f"seed must not be negative, got {seed}.")
    clips = []
    for index in indices:
        check_index(index, len(source))
        clips.append(source.read(index, np.random.default_rng([seed, index]), shape))
    return stack(clips)


def stack(clips: Sequence[Clip]) -> ClipBatch:
    """Clips as a batch: arrays along a new first axis, texts as a list.

    Raises:
        ValueError: the clips have different keys or sizes.
    """
    keys = clips[0].keys()
    if any(clip.keys() != keys for clip in clips):
        found = sorted({tuple(clip) for clip in clips})
        raise ValueError(f"Clips of one batch differ in what they hold: {found}.")
    columns = {key: _column(key, [clip[key] for clip in clips]) for key in keys}
    return ClipBatch(**columns)


def _column(key: str, values: list) -> np.ndarray | list[str]:
    if isinstance(values[0], str):
        return values
    shapes = {value.shape for value in values}
    if len(shapes) > 1:
        raise ValueError(f"Clips of one batch differ in the shape of {key}: {sorted(shapes)}.")
    return np.stack(values)


def _check_settings(num_threads: int, process_index: int, process_count: int) -> None:
    if not 0 <= process_index < process_count:
        raise UserError(f"process_index must lie in 0..{process_count - 1}, got {process_index}.")
    if num_threads < 0:
        raise UserError(f"num_threads must not be negative, got {num_threads}.")


def _check_bucket(bucket: Bucket, source: ClipSource, process_count: int) -> None:
    if len(source) < 1 or (bucket.indices is not None and not len(bucket.indices)):
        raise UserError(f"The source holds no clips for {bucket.shape}.")
    if bucket.batch_size < 1 or bucket.batch_size % process_count:
        raise UserError(
            f"batch_size {bucket.batch_size} must be a positive multiple of the "
            f"{process_count} processes."
        )
    if not 0 <= bucket.seed < 2**32:
        raise UserError(f"seed must lie in 0..2**32 - 1, got {bucket.seed}.")
    size, share = bucket.group_size, bucket.share(process_count)
    if size is not None and (size < 1 or share % size):
        raise UserError(f"group_size {size} must divide the {share} clips of a process.")


def _elements(source: ClipSource, bucket: Bucket) -> grain.MapDataset:
    """The bucket's endless stream of clips; reading element k twice gives the same clip."""
    indices = np.arange(len(source)) if bucket.indices is None else bucket.indices

    def read(number: int, rng: np.random.Generator) -> Clip:
        return source.read(int(indices[number]), rng, bucket.shape)

    # Grain seeds the shuffle of each epoch, and the generator of each element, from the seed.
    numbers = grain.MapDataset.range(len(indices)).seed(bucket.seed).shuffle().repeat()
    return numbers.random_map(read)


def _groups(
    buckets: Mapping[int, Bucket],
    choices: Iterable[int],
    done: Mapping[int, int],
    process_index: int,
    process_count: int,
) -> Iterator[list[_Place]]:
    """Yields the places of the clips that are given out together, group after group."""
    batches_before = dict(done)
    for choice in map(int, choices):
        bucket = buckets[choice]
        share = bucket.share(process_count)
        size = bucket.group_size or share
        first = batches_before[choice] * bucket.batch_size + process_index * share
        batches_before[choice] += 1
        for start in range(first, first + share, size):
            yield [_Place(choice, element) for element in range(start, start + size)]


def _read_ahead(
    groups: Iterator[list[_Place]], streams: Mapping[int, grain.MapDataset], threads: int
) -> Generator[list[Clip], None, None]:
    """Yields the clips of each group, in order, while threads read the groups that follow.

    Two groups are read ahead, or more where these are fewer than two clips a thread: every thread
    has work, and no more clips than that are in memory.
    """

    def read(place: _Place) -> Clip:
        return streams[place.bucket][place.element]

    if not threads:
        for group in groups:
            yield [read(place) for place in group]
        return
    pending: deque[list[Future[Clip]]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="clips") as pool:
        try:
            for group in groups:
                pending.append([pool.submit(read, place) for place in group])
                while _enough(pending, threads):
                    yield [clip.result() for clip in pending.popleft()]
            while pending:
                yield [clip.result() for clip in pending.popleft()]
        finally:
            # Reads that have begun are left to end by themselves; nobody waits for them.
            pool.shutdown(wait=False, cancel_futures=True)


def _enough(pending: Sequence[list[Future[Clip]]], threads: int) -> bool:
    """Whether enough is read ahead behind the first group for this group to be given out."""
    clips_ahead = sum(map(len, pending)) - len(pending[0])
    return len(pending) > _GROUPS_AHEAD and clips_ahead >= 2 * threads


def _stacked(groups: Generator[list[Clip], None, None]) -> Generator[ClipBatch, None, None]:
    try:
        for clips in groups:
            yield stack(clips)
    finally:
        groups.close()
