"""What stands still keeps the detail that the tokenizer loses. Ours.

A tokenizer gives back a picture x only nearly: a still clip of x is decoded to d, and x - d, its
finest detail, is lost from the first generated frame on. Image to video knows x: to a decoded
frame y

    y + (x - d) exp(-(e / a)^2),    e = the largest |y - d| of the three channels,          (1)

gives the detail back where nothing has changed, a third of it at a change of a, and next to nothing
beyond 2 a. a is 10 grey levels of 255, what the scores count as a visible change
(`evaluation.metrics`).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from videomar_jax.evaluation.metrics import CHANGED
from videomar_jax.tokenizers import Tokenizer, to_pixels
from videomar_jax.types import Array, Float, Pixels, UInt8

VISIBLE_CHANGE = 2 * CHANGED / 255
"""a of equation (1), in pixel values of [-1, 1]."""


class StillPicture(NamedTuple):
    """A picture, as the frames of one latent frame that shows nothing else."""

    decoded: Float[Array, "B f Hp Wp 3"]
    """d; the f frames may differ, since a tokenizer codes them together."""
    lost: Float[Array, "B f Hp Wp 3"]
    """x - d."""


@jax.jit
def still_picture(tokenizer: Tokenizer, picture: UInt8[Array, "B 1 Hp Wp 3"]) -> StillPicture:
    """What the tokenizer makes of a clip in which nothing moves."""
    pixels = to_pixels(picture)
    clip = jnp.repeat(pixels, 1 + tokenizer.temporal_stride, axis=1)
    decoded = tokenizer.decode(tokenizer.encode(clip))[:, 1:]
    return StillPicture(decoded, pixels - decoded)


@jax.jit
def with_still_detail(frames: Pixels, still: StillPicture) -> Pixels:
    """Equation (1) for the frames of one latent frame, [B, f, Hp, Wp, 3] in [-1, 1]."""
    error = jnp.max(jnp.abs(frames - still.decoded), axis=-1, keepdims=True)
    return frames + still.lost * jnp.exp(-jnp.square(error / VISIBLE_CHANGE))
