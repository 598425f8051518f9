"""The two convolutions of the Cosmos tokenizer, in the forms that are fast.

In time: three products on shifted frames. In space: XLA's convolution; but on CPU, in float32 and
    for large inputs, by
the minimal filtering of Winograd (Lavin and Gray, arXiv 1509.09308), F(2x2, 3x3), which takes 16
products where the plain sum takes 36. Of two neighbouring outputs y0, y1 along one axis, over
inputs d0..d3 and taps g0..g2:

    m0 = (d0 - d2) g0                   m1 = (d1 + d2) (g0 + g1 + g2) / 2
    m3 = (d1 - d3) g2                   m2 = (d2 - d1) (g0 - g1 + g2) / 2
    y0 = m0 + m1 + m2                   y1 = m1 - m2 - m3

The factors are 1 and 1/2 only, so it rounds about as the plain sum does.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from videomar_jax.types import Array, Float

_LARGE, _WIDE = 1500, 64
"""From so many positions, and channels on both sides, Winograd's sums cost less than the products
they save."""


def spatial_conv(
    x: Float[Array, "N H W I"],
    kernel: Float[Array, "3 3 I O"],
    *,
    stride: int = 1,
    padding: tuple[int, int] = (1, 1),
) -> Float[Array, "N h w O"]:
    """3x3 cross-correlation of each image; `padding` zeros (before, after) rows and columns
    alike."""
    if stride == 1 and padding == (1, 1) and _suits_winograd(x, kernel):
        return winograd_conv(x, kernel)
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), (padding, padding), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def temporal_conv(
    x: Float[Array, "B T H W I"], kernel: Float[Array, "3 I O"], *, stride: int = 1
) -> Float[Array, "B t H W O"]:
    """Cross-correlation of three frames at a time, without padding."""
    last = x.shape[1] - 2
    taps = [x[:, i : last + i : stride] for i in range(3)]
    y = sum(tap.reshape(-1, tap.shape[-1]) @ kernel[i] for i, tap in enumerate(taps))
    return y.reshape(*taps[0].shape[:-1], -1)


def winograd_conv(
    x: Float[Array, "N H W I"], kernel: Float[Array, "3 3 I O"]
) -> Float[Array, "N H W O"]:
    """3x3 cross-correlation with one zero around each image; H and W are even."""
    images, height, width, channels = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows = _inputs([padded[:, i : i + height : 2] for i in range(4)])
    taps = _taps([kernel[i] for i in range(3)])
    products = [
        [
            d.reshape(-1, channels) @ g
            for d, g in zip(
                _inputs([row[:, :, j : j + width : 2] for j in range(4)]),
                _taps([tap[j] for j in range(3)]),
                strict=True,
            )
        ]
        for row, tap in zip(rows, taps, strict=True)
    ]
    by_row = zip(
        *(_outputs(row) for row in products), strict=True
    )  # for either output column, the four rows
    y = jnp.stack(
        [jnp.stack(_outputs(column)) for column in by_row]
    )  # [column, row, positions / 4, O]
    y = y.reshape(2, 2, images, height // 2, width // 2, -1)
    return y.transpose(2, 3, 1, 4, 0, 5).reshape(images, height, width, -1)


def _suits_winograd(x: Array, kernel: Array) -> bool:
    large = x.shape[0] * x.shape[1] * x.shape[2] >= _LARGE and min(kernel.shape[2:]) >= _WIDE
    even = x.shape[1] % 2 == 0 and x.shape[2] % 2 == 0
    return jax.default_backend() == "cpu" and x.dtype == jnp.float32 and large and even


def _inputs(d: Sequence[Array]) -> list[Array]:
    return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]


def _taps(g: Sequence[Array]) -> list[Array]:
    return [g[0], (g[0] + g[1] + g[2]) / 2, (g[0] - g[1] + g[2]) / 2, g[2]]


def _outputs(m: Sequence[Array]) -> list[Array]:
    return [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]
