"""What a run trains on: clips of a source as batches of latents and text features.

A source gives clips as pixels or as latents, and captions with their features or without
(`data.sources`). What is missing is computed here, on this process's share of the batch, a few
clips at a time.
"""

import dataclasses
import itertools
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from videomar_jax.checks import UserError
from videomar_jax.data.loader import Bucket, bucket_batches
from videomar_jax.data.sources import ClipShape, ClipSource, clips_for
from videomar_jax.io.log import log
from videomar_jax.text_encoders import TextEncoder
from videomar_jax.tokenizers import Tokenizer, latent_shape, to_pixels
from videomar_jax.training.curriculum import Curriculum, Stage
from videomar_jax.training.draws import Batch
from videomar_jax.training.stages import BatchShape, describe_shape, draw_shapes
from videomar_jax.types import Array, Bool, Float, Int, Latents, UInt8

_T = TypeVar("_T")

ENCODED_AT_ONCE = 2**24
"""Pixels (of all frames) that the tokenizer takes in one call; larger batches are read and encoded
in groups, which bounds the memory that encoding needs."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingInputs:
    """What a training run needs besides the model."""

    source: ClipSource
    """The clips to train on."""
    tokenizer: Tokenizer
    """Turns pixels into latents."""
    text_encoder: TextEncoder
    """Turns captions into features."""
    threads: int = 2
    """Threads that read clips; 0 reads in the calling thread."""
    held_out: ClipSource | None = None
    """The clips that the validation loss is measured on; None: no validation."""


@jax.jit
def encode(tokenizer: Tokenizer, video: UInt8[jax.Array, "B F Hp Wp 3"]) -> Latents:
    """Latents of uint8 clips."""
    return tokenizer.encode(to_pixels(video))


def to_batch(clips: Mapping[str, Any], inputs: TrainingInputs) -> Batch:
    """Clips and their texts as the model takes them, in float32.

    What was prepared stays on the host; what is computed here is on the device.

    Args:
        clips: a batch of `data.loader`.
    """
    return Batch(to_latents(clips, inputs), *to_text(clips, inputs))


def to_latents(clips: Mapping[str, Any], inputs: TrainingInputs) -> Any:
    """The latents of clips; arguments as those of `to_batch`."""
    if "latents" in clips:
        return np.asarray(clips["latents"], np.float32)
    return encode(inputs.tokenizer, clips["video"])


def to_text(
    clips: Mapping[str, Any], inputs: TrainingInputs
) -> tuple[Float[np.ndarray, "B K E"], Bool[np.ndarray, "B K"]]:
    """The text features of clips and their mask; arguments as those of `to_batch`."""
    if "text" in clips:
        text, text_mask = clips["text"], clips["text_mask"]
    else:
        text, text_mask = inputs.text_encoder.encode(clips["caption"])
    return np.asarray(text, np.float32), np.asarray(text_mask, bool)


# Batches in the order of training


def curriculum_batches(
    seed: int,
    curriculum: Curriculum,
    inputs: TrainingInputs,
    start: int,
    *,
    process_index: int = 0,
    process_count: int = 1,
    lookahead: bool = False,
) -> Generator[Batch, None, None]:
    """The batches of all stages, from step `start` of the run to its end.

    Arguments and errors as `training_batches`; a stage's errors come when its first batch is asked
    for.
    """
    for index, stage in enumerate(curriculum.stages):
        done = max(start - curriculum.start_of(index), 0)
        if done >= stage.steps:
            continue
        batches = training_batches(
            seed,
            index,
            stage,
            inputs,
            done,
            process_index=process_index,
            process_count=process_count,
            lookahead=lookahead,
        )
        try:
            yield from batches
        finally:
            batches.close()


def training_batches(
    seed: int,
    index: int,
    stage: Stage,
    inputs: TrainingInputs,
    start: int,
    *,
    process_index: int = 0,
    process_count: int = 1,
    lookahead: bool = False,
) -> Generator[Batch, None, None]:
    """This process's share of the batches of one stage, from the stage's step `start` to its end.

    Process i of n gets the i-th of n equal blocks of each batch; the blocks together are the same
    batch for any n.

    Args:
        index: the number of the stage in its curriculum.
        lookahead: prepares the next batch in a thread while the caller works on the current one.

    Raises:
        UserError: the source has no clips for an entry of the stage, or n does not divide a batch;
            both at once.
    """
    check_processes(stage, process_count)
    clips = stage_clips(stage, inputs.source)
    _log_empty(stage, clips)
    choices = draw_shapes(stage, [len(indices) for indices in clips], seed=seed, index=index)
    buckets = {}
    for number, shape in enumerate(stage.shapes):
        if len(clips[number]):
            own = clip_shape(shape)
            buckets[number] = Bucket(
                shape=own,
                batch_size=shape.batch_size,
                seed=_bucket_seed(seed, index, number),
                indices=clips[number],
                group_size=encoded_at_once(own, shape.batch_size // process_count),
            )
    given = np.bincount(choices[:start], minlength=len(stage.shapes))
    remaining = choices[start:].tolist()
    groups = bucket_batches(
        inputs.source,
        buckets,
        remaining,
        done={number: int(given[number]) for number in buckets},
        num_threads=inputs.threads,
        process_index=process_index,
        process_count=process_count,
    )
    counts = {number: bucket.groups(process_count) for number, bucket in buckets.items()}
    batches = _join_groups(groups, [counts[choice] for choice in remaining], inputs)
    return ahead(batches) if lookahead else batches


def encoded_at_once(shape: ClipShape, clips: int) -> int:
    """How many of `clips` clips are read and encoded at a time: a divisor of `clips`."""
    limit = max(ENCODED_AT_ONCE // (shape.num_frames * shape.height * shape.width), 1)
    return max(count for count in range(1, clips + 1) if clips % count == 0 and count <= limit)


def ahead(items: Generator[_T, None, None]) -> Generator[_T, None, None]:
    """The same items; the next one is made in a thread while the caller works on the current one.

    An exception of `items` is raised by the `next` that would have returned the item. `close()`
    waits for the item that is being made.
    """

    def take_next() -> list[_T]:
        return list(itertools.islice(items, 1))  # empty at the end

    with ThreadPoolExecutor(1, thread_name_prefix="lookahead") as thread:
        coming = thread.submit(take_next)
        try:
            while True:
                taken = coming.result()
                if not taken:
                    return
                coming = thread.submit(take_next)
                yield taken[0]
        finally:
            thread.shutdown(wait=True, cancel_futures=True)
            items.close()


def _join_groups(
    groups: Generator[Mapping[str, Any], None, None], counts: Sequence[int], inputs: TrainingInputs
) -> Generator[Batch, None, None]:
    """Batches, each encoded and joined from the next `counts[i]` groups of clips."""
    try:
        for count in counts:
            encoded = [to_batch(next(groups), inputs) for _ in range(count)]
            yield encoded[0] if count == 1 else jax.tree.map(_concatenate, *encoded)
    finally:
        groups.close()


def _concatenate(*arrays: Array | np.ndarray) -> Array | np.ndarray:
    on_host = all(isinstance(array, np.ndarray) for array in arrays)
    return np.concatenate(arrays) if on_host else jnp.concatenate(arrays)


def _bucket_seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def _log_empty(stage: Stage, clips: Sequence[np.ndarray]) -> None:
    empty = []
    for shape, indices in zip(stage.shapes, clips, strict=True):
        if not len(indices):
            empty.append(describe_shape(shape))
    if empty:
        log.info("stage '%s': no clip is nearest to %s", stage.name, ", ".join(empty))


# Which clips a stage trains on, and whether they fit


def clip_shape(shape: Stage | BatchShape) -> ClipShape:
    """What a source is asked for; of a stage its main shape."""
    return ClipShape(num_frames=shape.num_frames, height=shape.height, width=shape.width)


def stage_clips(stage: Stage, source: ClipSource) -> list[Int[np.ndarray, "clips"]]:
    """For each of `stage.shapes` the indices of the source's clips that are cut to it.

    A size that no clip is nearest to has none.

    Raises:
        UserError: an entry of the mix has no clips at all.
    """
    clips = []
    for entry in stage.mix:
        for shape in entry.shapes:
            clips.append(clips_for(source, clip_shape(shape), entry.sizes))
    stage.shares([len(indices) for indices in clips])
    return clips


def check_processes(stage: Stage, process_count: int) -> None:
    """Raises a UserError where a batch cannot be divided among the processes."""
    for shape in stage.shapes:
        if shape.batch_size % process_count:
            raise UserError(
                f"Stage '{stage.name}': batch_size {shape.batch_size} of {describe_shape(shape)} "
                f"is not a multiple of the {process_count} processes that share it."
            )


def check_data(
    curriculum: Curriculum,
    inputs: TrainingInputs,
    process_count: int = 1,
    *,
    text_mask: bool = True,
) -> None:
    """Reads one clip of every shape of the curriculum, so that faults show before training.

    Args:
        text_mask: whether the model hides padded text; prepared text is zero there.

    Raises:
        UserError: a stage has no clips, or prepared clips are of another tokenizer or text encoder.
    """
    for stage in curriculum.stages:
        check_processes(stage, process_count)
        for shape, indices in zip(stage.shapes, stage_clips(stage, inputs.source), strict=True):
            if not len(indices):
                continue
            clip = inputs.source.read(int(indices[0]), np.random.default_rng(0), clip_shape(shape))
            _check_prepared(f"Stage '{stage.name}'", clip, shape, inputs)
            if not text_mask and "text" in clip:
                _check_padding(clip, inputs.text_encoder)


def _check_prepared(
    place: str, clip: Mapping[str, Any], shape: BatchShape, inputs: TrainingInputs
) -> None:
    """Prepared arrays must have the shapes that the tokenizer and the text encoder give."""
    tokenizer, encoder = inputs.tokenizer, inputs.text_encoder
    grid = latent_shape(tokenizer, shape.num_frames, shape.height, shape.width)
    expected = {
        "latents": (*grid, tokenizer.channels),
        "text": (encoder.max_tokens, encoder.width),
        "text_mask": (encoder.max_tokens,),
    }
    for key in expected.keys() & clip.keys():
        if clip[key].shape != expected[key]:
            raise UserError(
                f"{place}: {key} of the data have the shape {clip[key].shape}, but the tokenizer "
                f"and the text encoder give {expected[key]}: the clips were prepared with others."
            )


def _check_padding(clip: Mapping[str, Any], encoder: TextEncoder) -> None:
    features, mask = encoder.encode([clip["caption"]])
    if np.any(np.asarray(features)[~np.asarray(mask)]):
        raise UserError(
            "The data hold prepared text, which is empty where captions are padded, and with "
            "model.text_mask=False the model would attend to it: set model.text_mask=True, or "
            "prepare the clips with --text_encoder=none."
        )
