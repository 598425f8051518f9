"""The causal 3-D Haar patches of the Cosmos tokenizer: p x p x p pixels of each colour become
channels.

Frame 0 is preceded by p - 1 copies of itself, so F = 1 + p * (T - 1) frames make T groups of p.
Then follow log2(p) rounds, each of which halves time, height and width. With G channels present,
for a 2x2x2 block x[a, b, c] and i, j, k in {0, 1}:

    band_ijk = 1/8 * sum_abc (-1)^(i a + j b + k c) x[a, b, c]
    new channel = (4 i + 2 j + k) * G + old channel

0 is low pass, 1 the first minus the second; all bands enter the next round. The band that is low
pass in all axes is the mean of the block, so values stay in [-1, 1]. The transform is orthogonal up
to its scale: a patch's squared norm shrinks by exactly p^3. It consists of sums and halvings only,
so it is exact to rounding in every dtype and on every accelerator. NumPy and JAX arrays are both
accepted.
"""

from typing import Any

import numpy as np

from videomar_jax.checks import UserError
from videomar_jax.types import Array, Float

_TIME, _HEIGHT, _WIDTH = 1, 2, 3
"""Axes of a video [B, F, Hp, Wp, G]."""


def haar_patches(
    video: Float[Array | np.ndarray, "B F Hp Wp G"], patch: int
) -> Float[Array | np.ndarray, "B T h w P"]:
    """Haar bands of each patch: P = G * patch^3 channels, last round outermost, colours innermost.

    Raises:
        UserError: `patch` is not a power of two, F is not 1 + patch * (T - 1), or `patch` does not
            divide Hp and Wp.
    """
    frames, height, width = video.shape[1:4]
    rounds = haar_rounds(patch)
    if frames < 1 or (frames - 1) % patch or height % patch or width % patch:
        raise UserError(
            f"{frames} x {height} x {width} pixels are not 1 + {patch} * k frames of multiples of "
            f"{patch}"
        )
    xp = video.__array_namespace__()
    x = xp.concat([video[:, :1]] * (patch - 1) + [video], axis=_TIME)
    for _ in range(rounds):
        bands = [x]
        for axis in (_TIME, _HEIGHT, _WIDTH):
            halves = []
            for band in bands:
                halves.extend(_split(band, axis))
            bands = halves
        x = xp.concat(bands, axis=-1)
    return x


def haar_unpatch(
    bands: Float[Array | np.ndarray, "B T h w P"], patch: int
) -> Float[Array | np.ndarray, "B F Hp Wp G"]:
    """The inverse of `haar_patches`; the copies in front of frame 0 are dropped.

    Raises:
        UserError: `patch` is not a power of two, or P is not a multiple of patch^3.
    """
    rounds = haar_rounds(patch)
    if bands.shape[-1] % patch**3:
        raise UserError(f"{bands.shape[-1]} channels are not a multiple of {patch}^3 Haar bands")
    xp = bands.__array_namespace__()
    x = bands
    for _ in range(rounds):
        width = x.shape[-1] // 8
        parts = [x[..., s * width : (s + 1) * width] for s in range(8)]
        for axis in (_WIDTH, _HEIGHT, _TIME):
            pairs = zip(parts[::2], parts[1::2], strict=True)
            parts = [_merge(xp, low, high, axis) for low, high in pairs]
        (x,) = parts
    return x[:, patch - 1 :]


def haar_rounds(patch: int) -> int:
    """log2(patch).

    Raises:
        UserError: `patch` is not a power of two.
    """
    if patch < 1 or patch & (patch - 1):
        raise UserError(f"Haar patches need a power of two, not {patch}")
    return patch.bit_length() - 1


def still_channels(patch: int, colours: int = 3) -> np.ndarray:
    """Indices of the patch^2 * colours channels that are low pass in time in every round.

    The others are zero where nothing moves, hence also in the first group, which is copies of
    frame 0.
    """
    bands = np.arange(colours * patch**3) // colours
    still = np.ones(len(bands), bool)
    for r in range(haar_rounds(patch)):
        still &= bands // 8**r % 8 < 4
    return np.flatnonzero(still)


def _split(x: Any, axis: int) -> tuple[Any, Any]:
    """Half sums and half differences of neighbours."""
    before = (slice(None),) * axis
    first = x[(*before, slice(0, None, 2))]
    second = x[(*before, slice(1, None, 2))]
    return (first + second) / 2, (first - second) / 2


def _merge(xp: Any, low: Any, high: Any, axis: int) -> Any:
    """The inverse of `_split`; `xp` is the arrays' namespace."""
    pairs = xp.stack([low + high, low - high], axis=axis + 1)
    return xp.reshape(pairs, (*low.shape[:axis], 2 * low.shape[axis], *low.shape[axis + 1 :]))
