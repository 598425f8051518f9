"""3-D rotary position embedding.

The channels of a head are cut into three slices for frame, row and column. In a slice of width c,
position m turns the pair (u_i, u_{i + c/2}) by the angle m * base^(-2i/c), i = 0 .. c/2 - 1
("rotate half"). Scores then depend on differences of positions only, so a model may run on more
frames or a larger grid than it was trained on.

`PositionScale` are the remedies for larger grids: divide positions (interpolation) or stretch the
base (NTK-aware
scaling, bloc97 2023: base * s^(c / (c - 2)) keeps the fastest angle and stretches the slowest by
    s).
"""

import dataclasses

import jax
import jax.numpy as jnp

from videomar_jax.types import Array, Float, Positions


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class PositionScale:
    """How positions beyond the training range are folded back, for (frame, row, column).

    `interpolate` divides the positions by the factor, `ntk` stretches the base instead; 1 changes
    nothing.
    """

    interpolate: tuple[float, float, float] = (1.0, 1.0, 1.0)
    ntk: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def __post_init__(self):
        if any(factor < 1 for factor in (*self.interpolate, *self.ntk)):
            raise ValueError(f"Position scales must be at least 1, not {self}.")


Rotation = tuple[Float[Array, "#T #S 1 half"], Float[Array, "#T #S 1 half"]]
"""Cosine and sine of every angle, float32; half = d / 2."""


def rotation(
    positions: Positions,
    channels: tuple[int, int, int],
    base: float = 10000.0,
    scale: PositionScale | None = None,
) -> Rotation:
    """The angles' cosines and sines for tokens at `positions`, for heads cut into `channels` (all
    even)."""
    scale = scale or PositionScale()
    angles = []
    for axis, width in enumerate(channels):
        if not width:
            continue
        stretched = base * scale.ntk[axis] ** (width / (width - 2)) if width > 2 else base
        frequency = stretched ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)
        angles.append(
            (positions[..., axis, None] / scale.interpolate[axis]).astype(jnp.float32) * frequency
        )
    angle = jnp.concatenate(angles, axis=-1)[:, :, None, :]
    return jnp.cos(angle), jnp.sin(angle)


def rotate(
    x: Float[Array, "B T S n d"], rotation: Rotation, channels: tuple[int, int, int]
) -> Float[Array, "..."]:
    """Turns queries or keys; computed in float32, returned in the type of `x`."""
    cos, sin = rotation
    parts, start = [], 0
    for width in channels:
        half = width // 2
        first, second = jnp.split(x[..., start : start + width].astype(jnp.float32), 2, axis=-1)
        c, s = (table[..., start // 2 : start // 2 + half] for table in (cos, sin))
        parts += [first * c - second * s, second * c + first * s]
        start += width
    return jnp.concatenate(parts, axis=-1).astype(x.dtype)
