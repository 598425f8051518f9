"""The two convolutions of the Cosmos tokenizer, in the forms that are fast."""

import jax

from videomar_jax.types import Array, Float


def spatial_conv(
    x: Float[Array, "N H W I"], kernel: Float[Array, "3 3 I O"], *, stride: int = 1, padding: tuple[int, int] = (1, 1)
) -> Float[Array, "N h w O"]:
    """3x3 cross-correlation of each image; `padding` zeros (before, after) rows and columns alike."""
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), (padding, padding), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def temporal_conv(
    x: Float[Array, "B T H W I"], kernel: Float[Array, "3 I O"], *, stride: int = 1
) -> Float[Array, "B t H W O"]:
    """Cross-correlation of three frames at a time, without padding: three products on shifted frames."""
    last = x.shape[1] - 2
    taps = [x[:, i : last + i : stride] for i in range(3)]
    y = sum(tap.reshape(-1, tap.shape[-1]) @ kernel[i] for i, tap in enumerate(taps))
    return y.reshape(*taps[0].shape[:-1], -1)
