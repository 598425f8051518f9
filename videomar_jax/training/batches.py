"""What a run trains on: from clips of a source to batches of latents and text features.

A source may give clips as pixels or as latents, and captions with their features or without
(`data.sources`); what is missing is computed here, on this process's share of the batch, a few
clips at a time.
"""

import dataclasses
import logging
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from videomar_jax.data.loader import Bucket, bucket_batches
from videomar_jax.data.sources import ClipShape, ClipSource, clips_for
from videomar_jax.text_encoders import TextEncoder
from videomar_jax.tokenizers import Tokenizer, latent_shape, to_pixels
from videomar_jax.training.curriculum import Curriculum, Stage
from videomar_jax.training.loss import Batch
from videomar_jax.training.stages import BatchShape, draw_shapes
from videomar_jax.types import Array, Int, Latents, UInt8

_log = logging.getLogger(__name__)
_T = TypeVar("_T")
ENCODED_AT_ONCE = 2**24
"""Pixels (of all frames) that the tokenizer takes in one call; a batch of more is read and encoded
in parts."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingInputs:
    """What stands around the model."""

    source: ClipSource
    tokenizer: Tokenizer
    text_encoder: TextEncoder
    threads: int = 2
    held_out: ClipSource | None = None  # what the validation loss is measured on


@jax.jit
def encode(tokenizer: Tokenizer, video: UInt8[jax.Array, "B F Hp Wp 3"]) -> Latents:
    """Latents of uint8 clips."""
    return tokenizer.encode(to_pixels(video))


def training_batches(
    seed: int,
    index: int,
    stage: Stage,
    parts: TrainingInputs,
    start: int,
    *,
    process_index: int = 0,
    process_count: int = 1,
    lookahead: bool = False,
) -> Generator[Batch, None, None]:
    """This process's share of the batches of stage number `index`, from the stage's step `start` to
    its end.

    Process i of n gets the i-th of n equal blocks of each batch; the blocks together are the same
    batch for any n.

    Args:
        lookahead: prepares a batch ahead in a thread of its own, while the caller works on the one
            before.

    Raises:
        ValueError: the source has no clips for an entry of the stage, or n does not divide a batch;
            told at once.
    """
    check_processes(stage, process_count)
    clips = stage_clips(stage, parts.source)
    _tell_empty(stage, clips)
    choices = draw_shapes(stage, [len(own) for own in clips], seed=seed, index=index)
    buckets = {
        number: _bucket(
            shape,
            clips[number],
            seed=_bucket_seed(seed, index, number),
            process_count=process_count,
        )
        for number, shape in enumerate(stage.shapes)
        if len(clips[number])
    }
    done, rest = np.bincount(choices[:start], minlength=len(stage.shapes)), choices[start:].tolist()
    groups = bucket_batches(
        parts.source,
        buckets,
        rest,
        done={number: int(done[number]) for number in buckets},
        num_threads=parts.threads,
        process_index=process_index,
        process_count=process_count,
    )
    pieces = {number: bucket.groups(process_count) for number, bucket in buckets.items()}
    batches = _batches(groups, [pieces[choice] for choice in rest], parts)
    return ahead(batches) if lookahead else batches


def stage_clips(stage: Stage, source: ClipSource) -> list[Int[np.ndarray, "clips"]]:
    """For each of `stage.shapes` the indices of the source's clips that are cut to it.

    A size that no clip is nearest to has none. Raises ValueError for an entry of the mix without
    any clip.
    """
    clips = [
        clips_for(source, clip_shape(shape), entry.sizes)
        for entry in stage.mix
        for shape in entry.shapes
    ]
    stage.shares([len(own) for own in clips])
    return clips


def clip_shape(shape: Stage | BatchShape) -> ClipShape:
    """What a source is asked for; of a stage its main shape."""
    return ClipShape(num_frames=shape.num_frames, height=shape.height, width=shape.width)


def check_processes(stage: Stage, process_count: int) -> None:
    """Raises ValueError where a batch cannot be divided among the processes."""
    for shape in stage.shapes:
        if shape.batch_size % process_count:
            raise ValueError(
                f"Stage '{stage.name}': batch_size {shape.batch_size} of {shape.num_frames} frames of "
                f"{shape.height}x{shape.width} is no multiple of the {process_count} processes that share it."
            )


def check_data(
    curriculum: Curriculum, parts: TrainingInputs, process_count: int = 1, *, text_mask: bool = True
) -> None:
    """Reads one clip of every shape of the curriculum, and raises ValueError for what cannot be had
    or does not fit.

    Args:
        text_mask: whether the model hides padded text; prepared text is empty there.
    """
    for stage in curriculum.stages:
        check_processes(stage, process_count)
        for shape, clips in zip(stage.shapes, stage_clips(stage, parts.source), strict=True):
            if len(clips):
                clip = parts.source.read(int(clips[0]), np.random.default_rng(0), clip_shape(shape))
                _check_clip(f"Stage '{stage.name}'", clip, shape, parts)
                if not text_mask and "text" in clip:
                    _check_padding(clip, parts.text_encoder)


def to_batch(clips: Mapping[str, Any], parts: TrainingInputs) -> Batch:
    """Clips and their texts as the model takes them: float32, on the host where they came as
    features."""
    return Batch(_latents(clips, parts.tokenizer), *_text(clips, parts.text_encoder))


def ahead(
    stream: Generator[_T, None, None], place: Callable[[_T], _T] | None = None
) -> Generator[_T, None, None]:
    """The items of `stream`, of which the next is made in a thread while the caller works on one.

    Args:
        place: what else the thread does with an item, such as sending it to devices.

    An error of the stream comes out of `next` in its turn. `close()` waits for the item in the
    making.
    """

    def make() -> tuple[_T] | None:
        for item in stream:
            return (item if place is None else place(item),)
        return None

    with ThreadPoolExecutor(1, thread_name_prefix="lookahead") as thread:
        coming = thread.submit(make)
        try:
            while (made := coming.result()) is not None:
                coming = thread.submit(make)
                yield made[0]
        finally:
            thread.shutdown(wait=True, cancel_futures=True)
            stream.close()


def _check_padding(clip: Mapping[str, Any], encoder: TextEncoder) -> None:
    features, mask = encoder.encode([clip["caption"]])
    if np.any(np.asarray(features)[~np.asarray(mask)]):
        raise ValueError(
            "The data hold prepared text, which is empty where captions are padded, and with model.text_mask=False the "
            "model would look there: set model.text_mask=True, or prepare the clips with --text_encoder=none."
        )


def _check_clip(
    place: str, clip: Mapping[str, Any], shape: BatchShape, parts: TrainingInputs
) -> None:
    """What is prepared must be what tokenizer and text encoder would have given."""
    grid = latent_shape(parts.tokenizer, shape.num_frames, shape.height, shape.width)
    wanted = {
        "latents": (*grid, parts.tokenizer.channels),
        "text": (parts.text_encoder.max_tokens, parts.text_encoder.width),
        "text_mask": (parts.text_encoder.max_tokens,),
    }
    for key in wanted.keys() & clip.keys():
        if clip[key].shape != wanted[key]:
            raise ValueError(
                f"{place}: {key} of the data have the shape {clip[key].shape}, tokenizer and text encoder give "
                f"{wanted[key]}: they were prepared with others."
            )


def _tell_empty(stage: Stage, clips: Sequence[np.ndarray]) -> None:
    empty = [shape for shape, own in zip(stage.shapes, clips, strict=True) if not len(own)]
    if empty:
        told = ", ".join(
            f"{shape.num_frames} frames of {shape.height}x{shape.width}" for shape in empty
        )
        _log.info("stage '%s': no clip is nearest to %s", stage.name, told)


def _bucket(
    shape: BatchShape, clips: Int[np.ndarray, "clips"], *, seed: int, process_count: int
) -> Bucket:
    group_size = encoded_at_once(clip_shape(shape), shape.batch_size // process_count)
    return Bucket(
        shape=clip_shape(shape),
        batch_size=shape.batch_size,
        seed=seed,
        indices=clips,
        group_size=group_size,
    )


def encoded_at_once(shape: ClipShape, clips: int) -> int:
    """The clips of `clips` that are read and encoded at a time: a divisor."""
    most = ENCODED_AT_ONCE // (shape.num_frames * shape.height * shape.width)
    return max(
        count for count in range(1, clips + 1) if clips % count == 0 and count <= max(most, 1)
    )


def _bucket_seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def _batches(
    groups: Generator, counts: Sequence[int], parts: TrainingInputs
) -> Generator[Batch, None, None]:
    """Batches of `counts` groups of clips each."""
    try:
        for count in counts:
            pieces = [to_batch(next(groups), parts) for _ in range(count)]
            yield pieces[0] if count == 1 else jax.tree.map(_joined, *pieces)
    finally:
        groups.close()


def _joined(*pieces: Array | np.ndarray) -> Array | np.ndarray:
    on_host = all(isinstance(piece, np.ndarray) for piece in pieces)
    return (np if on_host else jnp).concatenate(pieces)


def _latents(clips: Mapping[str, Any], tokenizer: Tokenizer) -> Latents | np.ndarray:
    if "latents" in clips:
        return np.asarray(clips["latents"], np.float32)
    return encode(tokenizer, clips["video"])


def _text(clips: Mapping[str, Any], encoder: TextEncoder) -> tuple[np.ndarray, np.ndarray]:
    features, mask = (
        (clips["text"], clips["text_mask"]) if "text" in clips else encoder.encode(clips["caption"])
    )
    return np.asarray(features, np.float32), np.asarray(mask, bool)
