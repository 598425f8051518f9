"""From a source of clips to batches, as pure index arithmetic: the position in the data is the step
number.

A lane is the endless stream of the clips of one shape: element k is clip pi_e(k mod n) of epoch e =
    k div n, where
pi_e is epoch e's own permutation of the lane's n clips, and its random generator depends on (seed,
k) alone. The m-th batch of a lane takes elements mB .. (m+1)B - 1, whatever n is, and process i of
N reads the i-th of N equal blocks of them. A step takes the next batch of the lane that is chosen
for it.

Hence a run resumes at any step, with any number of threads or processes, from the number of batches
that each lane has given (`done`); nothing about the data needs saving.
"""

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypedDict

import grain
import numpy as np

from videomar_jax.data.sources import Clip, ClipShape, ClipSource, check_index
from videomar_jax.types import Bool, Float, Int, UInt8


class Batch(TypedDict, total=False):
    """Clips of one shape with their texts; the keys are those of the source's clips."""

    video: UInt8[np.ndarray, "B F Hp Wp 3"]
    latents: Float[np.ndarray, "B T h w C"]
    caption: list[str]
    text: Float[np.ndarray, "B K E"]
    text_mask: Bool[np.ndarray, "B K"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Bucket:
    """The stream of clips of one shape.

    batch_size: clips per step over all processes.
    seed: of the order and of what is random in the clips.
    indices: the clips that it reads; None for all of the source.
    at_once: how many clips of a batch are given out together, so that large ones need not all be
        held at a time; it divides a process's share. None for all.
    """

    shape: ClipShape
    batch_size: int
    seed: int
    indices: Int[np.ndarray, "clips"] | None = None
    at_once: int | None = None


def lane_batches(
    source: ClipSource,
    lanes: Mapping[int, Bucket],
    choices: Iterable[int],
    *,
    done: Mapping[int, int],
    num_threads: int = 2,
    process_index: int = 0,
    process_count: int = 1,
) -> Generator[Batch, None, None]:
    """This process's share of a batch for each of `choices`, the numbers of the lanes that give it.

    done: how many batches each lane gave before.
    num_threads: reader threads; 0 reads in the calling thread. The batches are the same for any
        number.

    `close()` on the iterator (or its collection) stops the threads. Raises ValueError for settings
    that do not fit, at once; an error of `source.read` comes out of `next` as it is.
    """
    _check_settings(num_threads, process_index, process_count)
    for lane in lanes.values():
        _check_lane(lane, source, process_count)
    elements = {number: _elements(source, lane) for number, lane in lanes.items()}
    groups = _groups(lanes, choices, done, process_index, process_count)
    return _stacked(_read_ahead(groups, lambda lane, k: elements[lane][k], num_threads))


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
    """Endless batches of one shape; the first is what the start_step-th `next` (from 0) of a fresh
    iterator yields.

    Arguments and errors as `Bucket` and `lane_batches`.
    """
    if start_step < 0:
        raise ValueError(f"start_step must be >= 0, got {start_step}")
    return lane_batches(
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
) -> Batch:
    """The clips of these indices in this order; what is random in clip i depends on (seed, i)
    only."""
    indices = [int(index) for index in indices]
    if not indices:
        raise ValueError("fixed_clips needs at least one index")
    if seed < 0:
        raise ValueError(f"seed must be >= 0, got {seed}")
    for index in indices:
        check_index(index, len(source))
    return stack(
        [source.read(index, np.random.default_rng([seed, index]), shape) for index in indices]
    )


def stack(clips: Sequence[Clip]) -> Batch:
    """Clips as a batch: arrays along a new first axis, texts as a list.

    Raises ValueError where the clips have different keys or sizes.
    """
    keys = clips[0].keys()
    if any(clip.keys() != keys for clip in clips):
        raise ValueError(
            f"clips of one batch differ in what they hold: {sorted({tuple(clip) for clip in clips})}"
        )
    columns = {key: [clip[key] for clip in clips] for key in keys}
    return Batch(**{key: _column(key, values) for key, values in columns.items()})


def _column(key: str, values: list) -> np.ndarray | list[str]:
    if isinstance(values[0], str):
        return values
    if len(shapes := {value.shape for value in values}) > 1:
        raise ValueError(f"clips of one batch differ in the shape of {key}: {sorted(shapes)}")
    return np.stack(values)


def _check_settings(num_threads: int, process_index: int, process_count: int) -> None:
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index must be in 0..{process_count - 1}, got {process_index}")
    if num_threads < 0:
        raise ValueError(f"num_threads must be >= 0, got {num_threads}")


def _check_lane(lane: Bucket, source: ClipSource, process_count: int) -> None:
    if len(source) < 1 or (lane.indices is not None and not len(lane.indices)):
        raise ValueError(f"the source holds no clips for {lane.shape}")
    if lane.batch_size < 1 or lane.batch_size % process_count:
        raise ValueError(
            f"batch_size {lane.batch_size} must be a positive multiple of the {process_count} processes"
        )
    if not 0 <= lane.seed < 2**32:
        raise ValueError(f"seed must be in 0..2**32 - 1, got {lane.seed}")
    share = lane.batch_size // process_count
    if lane.at_once is not None and (lane.at_once < 1 or share % lane.at_once):
        raise ValueError(f"at_once {lane.at_once} must divide the {share} clips of a process")


def _elements(source: ClipSource, lane: Bucket) -> grain.MapDataset:
    """The lane's endless stream of clips; reading element k twice gives the same clip."""
    indices = np.arange(len(source)) if lane.indices is None else lane.indices
    numbers = grain.MapDataset.range(len(indices)).seed(lane.seed).shuffle().repeat()
    return numbers.random_map(
        lambda number, rng: source.read(int(indices[number]), rng, lane.shape)
    )


def _groups(
    lanes: Mapping[int, Bucket],
    choices: Iterable[int],
    done: Mapping[int, int],
    process_index: int,
    process_count: int,
) -> Iterator[list[tuple[int, int]]]:
    """(lane, element) of the clips that are given out together, group after group."""
    position = dict(done)
    for choice in map(int, choices):
        lane = lanes[choice]
        share = lane.batch_size // process_count
        size = lane.at_once or share
        first = position[choice] * lane.batch_size + process_index * share
        position[choice] += 1
        for start in range(first, first + share, size):
            yield [(choice, k) for k in range(start, start + size)]


def _read_ahead(
    groups: Iterator[list[tuple[int, int]]], read: Callable[[int, int], Clip], threads: int
) -> Generator[list[Clip], None, None]:
    """The clips of each group, in order, while the threads read the next two groups, or two clips
    each."""
    if not threads:
        for group in groups:
            yield [read(*place) for place in group]
        return
    pending: deque = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="clips") as pool:
        try:
            for group in groups:
                pending.append([pool.submit(read, *place) for place in group])
                while len(pending) > 2 and sum(map(len, pending)) - len(pending[0]) >= 2 * threads:
                    yield [clip.result() for clip in pending.popleft()]
            while pending:
                yield [clip.result() for clip in pending.popleft()]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _stacked(groups: Generator[list[Clip], None, None]) -> Generator[Batch, None, None]:
    try:
        for clips in groups:
            yield stack(clips)
    finally:
        groups.close()
