"""LPIPS: how different two pictures look, as the features of a network for classification see it.

With the maps f_l [C_l, h_l, w_l] that layer l makes of a picture, each pixel of them scaled to unit
length over the channels, and weights w_l >= 0 for the channels,

    d(x, y) = sum over l of the mean over pixels of sum over c of w_lc (f_lc(x) - f_lc(y))^2    (1)

Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric" (2018,
arXiv:1801.03924), equation (1), in version 0.1 of the package `lpips`: pixels in [-1, 1] are
normalised by a mean and a deviation of each channel, and the five layers are the activations of
AlexNet's convolutions, or those of VGG-16 before each pooling and at the end. Pictures are taken
at their own size.

Weights are read by `lpips_weights`. Everything is float32, also on accelerators whose fast products
are coarser.
"""

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from videomar_jax.checks import Count, UserError, check_value, not_finite, one_of
from videomar_jax.evaluation.metrics import Clips, check_clips, check_same_shape
from videomar_jax.types import Array, Float

NetworkName = Literal["alex", "vgg"]

Maps = Float[Array, "B h w C"]
"""What passes between layers."""

# The package's `ScalingLayer`, for pixels in [-1, 1].
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)
_EPSILON = 1e-10


class Layer(NamedTuple):
    """A convolution with its activation."""

    number: int
    """Its place in torchvision's list of features, by which files name it."""
    inputs: int
    outputs: int
    size: int = 3
    stride: int = 1
    padding: int = 1
    pool: int = 0
    """Rows and columns of the max pooling before it, with stride 2; 0: none."""
    compared: bool = True
    """Whether equation (1) takes its output."""


class Architecture(NamedTuple):
    """A network whose features are compared."""

    title: str
    """For people."""
    least_side: int
    """Rows and columns below which a pooling has nothing to take the largest of."""
    layers: tuple[Layer, ...]

    @property
    def widths(self) -> list[int]:
        """Channels of the maps that are compared."""
        return [layer.outputs for layer in self.layers if layer.compared]


ARCHITECTURES: dict[NetworkName, Architecture] = {
    "alex": Architecture(
        "AlexNet",
        31,
        (
            Layer(0, 3, 64, size=11, stride=4, padding=2),
            Layer(3, 64, 192, size=5, padding=2, pool=3),
            Layer(6, 192, 384, pool=3),
            Layer(8, 384, 256),
            Layer(10, 256, 256),
        ),
    ),
    "vgg": Architecture(
        "VGG-16",
        16,
        (
            Layer(0, 3, 64, compared=False),
            Layer(2, 64, 64),
            Layer(5, 64, 128, pool=2, compared=False),
            Layer(7, 128, 128),
            Layer(10, 128, 256, pool=2, compared=False),
            Layer(12, 256, 256, compared=False),
            Layer(14, 256, 256),
            Layer(17, 256, 512, pool=2, compared=False),
            Layer(19, 512, 512, compared=False),
            Layer(21, 512, 512),
            Layer(24, 512, 512, pool=2, compared=False),
            Layer(26, 512, 512, compared=False),
            Layer(28, 512, 512),
        ),
    ),
}
"""The networks by the package's names of them."""


def features(
    params: Any, pixels: Float[Array, "B Hp Wp 3"], architecture: Architecture
) -> list[Maps]:
    """The maps of equation (1) of pictures in [-1, 1], scaled to unit length over the channels."""
    x = (pixels - jnp.array(_SHIFT)) / jnp.array(_SCALE)
    found = []
    for layer in architecture.layers:
        if layer.pool:
            x = nnx.max_pool(x, (layer.pool, layer.pool), strides=(2, 2), padding="VALID")
        margin = (layer.padding, layer.padding)
        x = jax.lax.conv_general_dilated(
            x,
            params[f"conv_{layer.number}"]["kernel"],
            window_strides=(layer.stride, layer.stride),
            padding=(margin, margin),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=jax.lax.Precision.HIGHEST,
        )
        x = jax.nn.relu(x + params[f"conv_{layer.number}"]["bias"])
        if layer.compared:
            length = jnp.sqrt(jnp.sum(x**2, axis=-1, keepdims=True))
            found.append(x / (length + _EPSILON))
    return found


@functools.partial(jax.jit, static_argnames="architecture")
def _distances(
    params: Any, x: Float[Array, "B Hp Wp 3"], y: Float[Array, "B Hp Wp 3"], *, architecture: Any
) -> Float[Array, " B"]:
    """Equation (1) for pairs of pictures of 0..255."""
    total = jnp.zeros(len(x))
    maps = zip(
        features(params, x / 127.5 - 1, architecture),
        features(params, y / 127.5 - 1, architecture),
        strict=True,
    )
    for number, (ours, theirs) in enumerate(maps):
        weighted = (ours - theirs) ** 2 * params[f"head_{number}"]
        total += weighted.sum(axis=-1).mean(axis=(1, 2))
    return total


@dataclasses.dataclass(frozen=True, kw_only=True)
class LPIPS:
    """The network with its weights, applied to clips in memory."""

    network: NetworkName
    """Of `ARCHITECTURES`."""
    params: Any
    """As `lpips_weights.load_lpips` reads them."""
    batch_size: Count = 16
    """Frames that are computed at a time; it bounds the memory and changes no result."""

    def __post_init__(self):
        one_of("network", self.network, ARCHITECTURES)
        check_value("batch_size", self.batch_size, Count)

    def __call__(self, video: Clips, reference: Clips) -> Float[np.ndarray, " N"]:
        """LPIPS of each clip: the mean over its frames of `per_frame`."""
        return self.per_frame(video, reference).mean(axis=1)

    def per_frame(self, video: Clips, reference: Clips) -> Float[np.ndarray, "N F"]:
        """LPIPS of each frame, at least 0; 0 is equal.

        Raises:
            UserError: the clips cannot be compared, their frames are too small for the network, or
                the result is not finite.
        """
        check_clips(video, "video")
        check_clips(reference, "reference")
        check_same_shape(video, reference)
        check_size(video.shape[2:4], self.network)
        pictures = [clips.reshape(-1, *clips.shape[2:]) for clips in (video, reference)]
        parts = [np.zeros(0, np.float32)]
        # One program serves all batches: the last one is filled up, and what fills it is dropped.
        for start in range(0, len(pictures[0]), self.batch_size):
            pair = [frames[start : start + self.batch_size] for frames in pictures]
            count = len(pair[0])
            padding = [(0, self.batch_size - count)] + [(0, 0)] * 3
            x, y = (np.pad(frames, padding).astype(np.float32) for frames in pair)
            found = _distances(self.params, x, y, architecture=ARCHITECTURES[self.network])
            parts.append(np.asarray(found)[:count])
        distances = np.concatenate(parts)
        fault = not_finite(distances)
        if fault:
            raise UserError(
                f"LPIPS of {len(video)} clips holds {fault}: the weights are damaged. Take another "
                f"copy of them."
            )
        return distances.astype(np.float64).reshape(video.shape[:2])


def check_size(size: tuple[int, ...], network: NetworkName) -> None:
    """Raises a UserError if frames of (rows, columns) are too small for the network."""
    architecture = ARCHITECTURES[network]
    if min(size) < architecture.least_side:
        raise UserError(
            f"LPIPS with {architecture.title} takes frames with sides of at least "
            f"{architecture.least_side} pixels, not {size[0]}x{size[1]}: compare larger ones, or "
            f"leave out --lpips."
        )
