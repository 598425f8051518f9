"""Longer and larger than training: a window over finished frames, and positions folded back into
the trained range.

The window is a ring of L places. Frame f is written to place f mod L, or with `keep_first` frame 0
to place 0 and the others to 1 + (f - 1) mod (L - 1), over the frame that left the window. A frame
then sees the L frames before it (or frame 0 and the L - 1 before it), as it would in one pass over
all frames with a mask of that shape: what a kept frame has taken over from frames that have left
    stays in its keys and values. Memory and time are the same for frame 10 and
frame 1000.

Keys keep the rotation of their frame number. Scores depend on differences of numbers, so a moving
window never goes beyond the distances it began with; only a kept frame 0 falls further behind.
`first_frame_position="shifted"` turns its keys forward as time goes on, so that it stands right behind the
window.
"""

import jax.numpy as jnp

from videomar_jax.models.attention import KVCache
from videomar_jax.models.config import ModelConfig
from videomar_jax.models.rope import PositionScale, rotate, rotation
from videomar_jax.sampling.config import SamplingConfig
from videomar_jax.types import Array, Int


def cache_length(config: SamplingConfig, frames: int) -> int:
    """L, the finished frames that are kept of `frames`."""
    return frames if config.window is None else min(config.window, frames)


def slot_of(number: Array, length: int, keep_first: bool) -> Array:
    """The place in the ring that finished frame `number` is written to."""
    first = int(keep_first)
    place = first + (number - first) % max(length - first, 1)
    return jnp.where(number == 0, 0, place) if keep_first else place


def frames_in_slots(number: Array, length: int, keep_first: bool) -> Int[Array, "L"]:
    """Which frame lies at each place when frames 0..number-1 are finished; -1 where none does."""
    first, last = int(keep_first), number - 1
    place = jnp.arange(length)
    frame = last - (last - place) % max(length - first, 1)
    if keep_first:
        frame = jnp.where(place == 0, jnp.minimum(last, 0), frame)
    return jnp.where(frame >= jnp.minimum(place, first), frame, -1)


def shift_first(
    cache: KVCache, shift: Array, config: ModelConfig, scale: PositionScale | None
) -> KVCache:
    """The cache with the frame at place 0 turned `shift` frames towards the present."""
    turns = rotation(
        jnp.stack([shift, 0, 0])[None, None], config.rope_channels, config.rope_base, scale
    )
    first = cache.keys[:, :, 0]  # layers and samples in front, then one frame
    turned = rotate(first, turns, config.rope_channels)
    return cache._replace(keys=cache.keys.at[:, :, 0].set(turned.astype(first.dtype)))


def position_scale(
    config: SamplingConfig, size: tuple[int, int, int], trained: tuple[int, int, int] | None
) -> PositionScale | None:
    """What the config asks for, for videos of `size` = (frames, rows, columns) in tokens from a
    model trained on `trained`; with a window, no frame is further away than the window is long.

    Raises:
        ValueError: scaling is asked for and the trained size is not known.
    """
    ways = (config.temporal_rope_scaling, config.spatial_rope_scaling, config.spatial_rope_scaling)
    if set(ways) == {"none"}:
        return None
    if trained is None:
        raise ValueError(
            "sampling.spatial_rope_scaling and sampling.temporal_rope_scaling need the size the model was trained on: give "
            "`trained`, its (frames, rows, columns) in tokens."
        )
    reach = size[0] if config.window is None else min(size[0], config.window + 1)
    factors = [max(1.0, now / then) for now, then in zip((reach, *size[1:]), trained, strict=True)]

    def chosen(wanted: str) -> tuple[float, float, float]:
        return tuple(
            factor if way == wanted else 1.0 for factor, way in zip(factors, ways, strict=True)
        )

    return PositionScale(interpolate=chosen("interpolate"), ntk=chosen("ntk"))
