"""The causal 3-D Haar patches of the Cosmos tokenizer: p x p x p pixels of each colour become
channels.

Frame 0 is preceded by p - 1 copies of itself, so F = 1 + p * (T - 1) frames make T groups of p.
Then log2(p) rounds, each halving time, height and width. With G channels present, for a 2x2x2 block
x[a, b, c] and i, j, k in {0, 1}:

    band_ijk = 1/8 * sum_abc (-1)^(i a + j b + k c) x[a, b, c]          0: low pass, 1: first minus
    second
    new channel = (4 i + 2 j + k) * G + old channel                     all bands enter the next
    round

The all-low band is the plain mean of the block, so values stay in [-1, 1]. The transform is
orthogonal up to its scale: a patch's squared norm shrinks by exactly p^3. It is written with sums
    and halvings only, so it is exact to rounding in
every dtype and on every accelerator, and takes NumPy and JAX arrays alike.
"""

from typing import Any

import numpy as np

from videomar_jax.types import Array, Float

_TIME, _HEIGHT, _WIDTH = 1, 2, 3


def haar_patches(
    video: Float[Array | np.ndarray, "B F Hp Wp G"], patch: int
) -> Float[Array | np.ndarray, "B T h w P"]:
    """Haar bands of each patch: P = G * patch^3 channels, last round outermost, colours innermost.

    `patch` is a power of two; F = 1 + patch * (T - 1); Hp = h * patch, Wp = w * patch. Else
    ValueError.
    """
    frames, height, width = video.shape[1:4]
    rounds = haar_rounds(patch)
    if frames < 1 or (frames - 1) % patch or height % patch or width % patch:
        raise ValueError(
            f"{frames} x {height} x {width} pixels are not 1 + {patch} * k frames of multiples of {patch}"
        )
    xp = video.__array_namespace__()
    x = xp.concat([video[:, :1]] * (patch - 1) + [video], axis=_TIME)
    for _ in range(rounds):
        bands = [x]
        for axis in (_TIME, _HEIGHT, _WIDTH):
            bands = [half for band in bands for half in _split(band, axis)]
        x = xp.concat(bands, axis=-1)
    return x


def haar_unpatch(
    bands: Float[Array | np.ndarray, "B T h w P"], patch: int
) -> Float[Array | np.ndarray, "B F Hp Wp G"]:
    """The inverse of `haar_patches`; the copies in front of frame 0 are dropped. P must be a
    multiple of patch^3."""
    rounds = haar_rounds(patch)
    if bands.shape[-1] % patch**3:
        raise ValueError(f"{bands.shape[-1]} channels are not a multiple of {patch}^3 Haar bands")
    xp = bands.__array_namespace__()
    x = bands
    for _ in range(rounds):
        width = x.shape[-1] // 8
        parts = [x[..., s * width : (s + 1) * width] for s in range(8)]
        for axis in (_WIDTH, _HEIGHT, _TIME):
            parts = [_merge(xp, *parts[s : s + 2], axis) for s in range(0, len(parts), 2)]
        (x,) = parts
    return x[:, patch - 1 :]


def haar_rounds(patch: int) -> int:
    """log2(patch). Raises ValueError unless `patch` is a power of two."""
    if patch < 1 or patch & (patch - 1):
        raise ValueError(f"Haar patches need a power of two, not {patch}")
    return patch.bit_length() - 1


def still_channels(patch: int, colours: int = 3) -> np.ndarray:
    """Indices of the patch^2 * colours channels that are low pass in time: the others are zero
    where nothing moves.

    The first group is copies of frame 0, so these channels are all that it has.
    """
    bands = np.arange(colours * patch**3) // colours
    still = np.ones(len(bands), bool)
    for r in range(haar_rounds(patch)):
        still &= bands // 8**r % 8 < 4
    return np.flatnonzero(still)


def _split(x: Any, axis: int) -> tuple[Any, Any]:
    """Half sums and half differences of neighbours."""
    first, second = (x[(slice(None),) * axis + (slice(start, None, 2),)] for start in (0, 1))
    return (first + second) / 2, (first - second) / 2


def _merge(xp: Any, low: Any, high: Any, axis: int) -> Any:
    pairs = xp.stack([low + high, low - high], axis=axis + 1)
    return xp.reshape(pairs, (*low.shape[:axis], 2 * low.shape[axis], *low.shape[axis + 1 :]))
