"""What a run trains on: from clips of a source to batches of latents and text features."""

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from videomar_jax.data.pipeline import batches
from videomar_jax.data.sources import ClipShape, ClipSource
from videomar_jax.text_encoders import TextEncoder
from videomar_jax.tokenizers import Tokenizer, to_pixels
from videomar_jax.training.curriculum import Stage
from videomar_jax.training.loss import Batch
from videomar_jax.types import Latents, UInt8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
    """What stands around the model."""

    source: ClipSource
    tokenizer: Tokenizer
    text_encoder: TextEncoder
    threads: int = 2


@jax.jit
def encode(tokenizer: Tokenizer, video: UInt8[jax.Array, "B F Hp Wp 3"]) -> Latents:
    """Latents of uint8 clips."""
    return tokenizer.encode(to_pixels(video))


def training_batches(seed: int, index: int, stage: Stage, parts: Parts, start: int) -> Iterator[Batch]:
    """Endless batches of stage number `index`, beginning with the one of the stage's step `start`."""
    stage_seed = int(np.random.SeedSequence((seed, index)).generate_state(1)[0])
    shape = ClipShape(num_frames=stage.num_frames, height=stage.height, width=stage.width)
    clips = batches(
        parts.source, shape=shape, batch_size=stage.batch_size, seed=stage_seed, start_step=start,
        num_threads=parts.threads,
    )  # fmt: skip
    try:
        for clip in clips:
            text, mask = parts.text_encoder.encode(clip["caption"])
            yield Batch(encode(parts.tokenizer, clip["video"]), jnp.asarray(text), jnp.asarray(mask))
    finally:
        clips.close()
