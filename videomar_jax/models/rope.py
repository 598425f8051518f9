"""Rotary embedding of the position (frame, row, column) in queries and keys.

The d channels of a head are cut into three slices, one for each axis. In a slice of width c, the
position m on its axis turns the pair (u_i, u_{i + c/2}), i = 0..c/2-1, by the angle

    a_i = m * base^(-2i/c)                                                                  (1)
    (u_i, u_{i + c/2}) <- (u_i cos a_i - u_{i + c/2} sin a_i, u_{i + c/2} cos a_i + u_i sin a_i)

("rotate half"; Su et al. 2021). Scores then depend on differences of positions only, so a model may
run on more frames or a larger grid than it was trained on. Two remedies fold such positions back
(`PositionScale`, with a factor s):

    interpolation:  m / s                                                                   (2)
    NTK scaling:    base * s^(c / (c - 2))                                                  (3)

Equation (3) keeps the fastest angle and stretches the slowest by s (bloc97 2023).
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from videomar_jax.types import Array, Float, Positions

Axes = tuple[float, float, float]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class PositionScale:
    """How positions beyond the training range are folded back, a factor for (frame, row, column).

    Raises:
        ValueError: a factor below 1.
    """

    interpolate: Axes = (1.0, 1.0, 1.0)
    """Equation (2)."""
    ntk: Axes = (1.0, 1.0, 1.0)
    """Equation (3)."""

    def __post_init__(self):
        if any(factor < 1 for factor in (*self.interpolate, *self.ntk)):
            raise ValueError(f"Position scales must be at least 1, not {self}.")


class Rotary(NamedTuple):
    """Cosine and sine of every angle, float32; half = d / 2."""

    cos: Float[Array, "#T #S 1 half"]
    sin: Float[Array, "#T #S 1 half"]


def rotary_embedding(
    positions: Positions,
    channels: tuple[int, ...],
    base: float = 10000.0,
    scale: PositionScale | None = None,
) -> Rotary:
    """The angles of tokens at `positions` for heads cut into `channels`, three even numbers."""
    scale = scale or PositionScale()
    angles = []
    for axis, width in enumerate(channels):
        if not width:
            continue
        stretched = base
        # A slice of width 2 has the fastest angle only, which (3) keeps.
        if width > 2:
            stretched = base * scale.ntk[axis] ** (width / (width - 2))
        # Float32 even in a bfloat16 model: bfloat16 cannot tell position 257 from 256.
        frequency = stretched ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)
        place = (positions[..., axis, None] / scale.interpolate[axis]).astype(jnp.float32)
        angles.append(place * frequency)
    angle = jnp.concatenate(angles, axis=-1)[:, :, None, :]
    return Rotary(jnp.cos(angle), jnp.sin(angle))


def rotate(
    x: Float[Array, "B T S n d"], rotary: Rotary, channels: tuple[int, ...]
) -> Float[Array, "B T S n d"]:
    """Turns queries or keys by (1); computed in float32, returned in the type of `x`."""
    out = []
    start = 0
    for width in channels:
        u, w = jnp.split(x[..., start : start + width].astype(jnp.float32), 2, axis=-1)
        # The slices of the angles are half as wide as those of the channels.
        cos, sin = (table[..., start // 2 : (start + width) // 2] for table in rotary)
        out += [u * cos - w * sin, w * cos + u * sin]
        start += width
    return jnp.concatenate(out, axis=-1).astype(x.dtype)
