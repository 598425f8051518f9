"""Positions longer and larger than training, folded back into the trained range.

A frame number or a row beyond training turns queries and keys by angles that the model has never
seen. Two remedies, both by the factor s = asked / trained (`models.rope.PositionScale`):

    interpolate     position / s (Chen et al. 2023)
    ntk             base * s^(c / (c - 2)): slow angles are stretched, fast ones kept (bloc97 2023)

Keys in the cache keep the rotation of their frame number. Scores depend on differences of numbers,
so a moving window never goes beyond the distances it began with; only frame 0, where it is kept,
falls further behind. `first_frame_position="shifted"` turns its keys forward as time goes on, so
that it stays right behind the window.
"""

import jax.numpy as jnp

from videomar_jax.checks import UserError
from videomar_jax.models.attention import KVCache
from videomar_jax.models.config import ModelConfig
from videomar_jax.models.rope import PositionScale, rotary_embedding, rotate
from videomar_jax.sampling.config import SamplingConfig
from videomar_jax.types import Array


def shift_first(
    cache: KVCache, shift: Array, config: ModelConfig, scale: PositionScale | None
) -> KVCache:
    """The cache with the keys of the frame in slot 0 turned `shift` frames towards the present."""
    position = jnp.stack([shift, 0, 0])[None, None]
    rotary = rotary_embedding(position, config.rope_channels, config.rope_base, scale)
    # Layers take the place of samples, and samples that of frames: the rotation is the same.
    first = cache.keys[:, :, 0]
    turned = rotate(first, rotary, config.rope_channels)
    return cache._replace(keys=cache.keys.at[:, :, 0].set(turned.astype(first.dtype)))


def position_scale(
    config: SamplingConfig, size: tuple[int, int, int], trained: tuple[int, int, int] | None
) -> PositionScale | None:
    """The scaling that the config asks for; None where it asks for none.

    Args:
        size: (frames, rows, columns) in tokens of the video.
        trained: (frames, rows, columns) in tokens that the model was trained on.
    Raises:
        UserError: scaling is asked for and the trained size is not known.
    """
    methods = (
        config.temporal_rope_scaling,
        config.spatial_rope_scaling,
        config.spatial_rope_scaling,
    )
    if set(methods) == {"none"}:
        return None
    if trained is None:
        raise UserError(
            "sampling.spatial_rope_scaling and sampling.temporal_rope_scaling need the size the "
            "model was trained on: give `trained`, its (frames, rows, columns) in tokens."
        )
    # With a window no frame is further away than the window is long.
    frames = size[0] if config.window is None else min(size[0], config.window + 1)
    factors = []
    for asked, known in zip((frames, *size[1:]), trained, strict=True):
        factors.append(max(1.0, asked / known))

    def factors_of(method: str) -> tuple[float, float, float]:
        frame, row, column = (
            factor if chosen == method else 1.0
            for factor, chosen in zip(factors, methods, strict=True)
        )
        return frame, row, column

    return PositionScale(interpolate=factors_of("interpolate"), ntk=factors_of("ntk"))
