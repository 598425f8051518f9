"""The two convolutions of the Cosmos tokenizer, in the forms that are fast.

In time: three products on shifted frames. In space: XLA's convolution; on the CPU, in float32 and
for large inputs, Winograd's minimal filtering F(2x2, 3x3) (Lavin and Gray, arXiv:1509.09308), which
takes 16 products where the plain sum takes 36. Two neighbouring outputs y0, y1 along one axis, of
inputs d0..d3 and taps g0..g2, are:

    m0 = (d0 - d2) g0                   m1 = (d1 + d2) (g0 + g1 + g2) / 2
    m3 = (d1 - d3) g2                   m2 = (d2 - d1) (g0 - g1 + g2) / 2
    y0 = m0 + m1 + m2                   y1 = m1 - m2 - m3

The factors are 1 and 1/2 only, so the rounding errors are about those of the plain sum.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from videomar_jax.platforms import platform
from videomar_jax.types import Array, Float

_LARGE = 1500
_WIDE = 64
"""From this many positions, and channels on both sides, Winograd's additions cost less than the
products they save (measured on a CPU)."""


def spatial_conv(
    x: Float[Array, "N H W I"],
    kernel: Float[Array, "3 3 I O"],
    *,
    stride: int = 1,
    padding: tuple[int, int] = (1, 1),
) -> Float[Array, "N h w O"]:
    """3x3 cross-correlation of each image; `padding` is the number of zero rows (before, after) it,
    and likewise of columns."""
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
    # The left and the right one of two neighbouring output columns, for each of the four rows.
    left, right = [], []
    for row, tap in zip(rows, taps, strict=True):
        inputs = _inputs([row[:, :, j : j + width : 2] for j in range(4)])
        kernels = _taps([tap[j] for j in range(3)])
        products = []
        for d, g in zip(inputs, kernels, strict=True):
            products.append(d.reshape(-1, channels) @ g)
        left_output, right_output = _outputs(products)
        left.append(left_output)
        right.append(right_output)
    columns = [jnp.stack(_outputs(left)), jnp.stack(_outputs(right))]
    y = jnp.stack(columns)  # [column, row, positions / 4, O]
    y = y.reshape(2, 2, images, height // 2, width // 2, -1)
    return y.transpose(2, 3, 1, 4, 0, 5).reshape(images, height, width, -1)


def _suits_winograd(x: Array, kernel: Array) -> bool:
    large = math.prod(x.shape[:3]) >= _LARGE and min(kernel.shape[2:]) >= _WIDE
    even = x.shape[1] % 2 == 0 and x.shape[2] % 2 == 0
    return platform() == "cpu" and x.dtype == jnp.float32 and large and even


def _inputs(d: Sequence[Array]) -> list[Array]:
    """The left factors of m0..m3."""
    return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]


def _taps(g: Sequence[Array]) -> list[Array]:
    """The right factors of m0..m3."""
    return [g[0], (g[0] + g[1] + g[2]) / 2, (g[0] - g[1] + g[2]) / 2, g[2]]


def _outputs(m: Sequence[Array]) -> list[Array]:
    """y0 and y1."""
    return [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]
