"""The Inception-I3D network of FVD: from clips to 400 features.

    x        = resize(clip) / 127.5 - 1, bilinear to 224 x 224 pixels                           (1)
    unit(x)  = relu((x * kernel - mean) / sqrt(variance + 0.001) + bias)                        (2)
    feature  = mean over time of the logits of the 400 classes of Kinetics-400                  (3)

Carreira and Zisserman, "Quo Vadis, Action Recognition? A New Model and the Kinetics Dataset" (2017,
arXiv:1705.07750): Inception-v1 with kernels that extend over time. Unterthiner et al., "Towards
Accurate Generative Models of Video" (2018, arXiv:1812.01717) take its logits as the features of the
Fréchet video distance (`fvd`). Convolutions and max pooling are padded as TensorFlow's "SAME" pads:
evenly, the odd row at the end. The batch norm is frozen and has no gain.

In (1) pixels are sampled at half-pixel centres and reductions are not smoothed, as PyTorch's
`interpolate(mode="bilinear", align_corners=False)` does. The first implementations, in TensorFlow
1, sampled at pixel corners; their numbers differ slightly.

Weights are read by `i3d_weights`. Everything is float32, also on accelerators whose fast products
are coarser.
"""

import dataclasses
import functools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx

from videomar_jax.checks import Count, UserError, check_value, not_finite
from videomar_jax.evaluation.metrics import Clips, check_clips
from videomar_jax.evaluation.protocols import FEATURES, LEAST_FRAMES
from videomar_jax.types import Array, Float, Pixels, Video

SIDE = 224
"""Rows and columns of the network's input."""
_EPSILON = 1e-3

Maps = Float[Array, "B T H W C"]
"""What passes between layers."""
NewMaps = Float[Array, "B t h w D"]
"""What a layer with strides or another width returns."""


class MixedWidths(NamedTuple):
    """Output channels of the six units of a mixed block, by the names of PyTorch's files."""

    b0: int
    """Of the pointwise branch."""
    b1a: int
    """Of the pointwise unit before `b1b`."""
    b1b: int
    """Of the first branch of 3x3x3."""
    b2a: int
    """Of the pointwise unit before `b2b`."""
    b2b: int
    """Of the second branch of 3x3x3."""
    b3b: int
    """Of the pointwise unit after max pooling."""

    @property
    def outputs(self) -> int:
        """Channels of the block's output."""
        return self.b0 + self.b1b + self.b2b + self.b3b


MIXED = {
    "mixed_3b": MixedWidths(64, 96, 128, 16, 32, 32),
    "mixed_3c": MixedWidths(128, 128, 192, 32, 96, 64),
    "mixed_4b": MixedWidths(192, 96, 208, 16, 48, 64),
    "mixed_4c": MixedWidths(160, 112, 224, 24, 64, 64),
    "mixed_4d": MixedWidths(128, 128, 256, 24, 64, 64),
    "mixed_4e": MixedWidths(112, 144, 288, 32, 64, 64),
    "mixed_4f": MixedWidths(256, 160, 320, 32, 128, 128),
    "mixed_5b": MixedWidths(256, 160, 320, 32, 128, 128),
    "mixed_5c": MixedWidths(384, 192, 384, 48, 128, 128),
}
"""The mixed blocks in their order."""


class ConvUnit(nnx.Module):
    """Equation (2). Parameters are placeholders until weights replace them."""

    def __init__(self, inputs: int, outputs: int, size: int = 1, stride: int = 1):
        self.kernel = nnx.Param(jnp.zeros((size, size, size, inputs, outputs)))
        self.mean = nnx.Param(jnp.zeros(outputs))
        self.variance = nnx.Param(jnp.ones(outputs))
        self.bias = nnx.Param(jnp.zeros(outputs))
        self.stride = stride

    def __call__(self, x: Maps) -> NewMaps:
        x = convolve(x, self.kernel[...], self.stride)
        scale = jax.lax.rsqrt(self.variance[...] + _EPSILON)
        return jax.nn.relu((x - self.mean[...]) * scale + self.bias[...])


class MixedBlock(nnx.Module):
    """Four branches over the same input, side by side in the output's channels."""

    def __init__(self, inputs: int, widths: MixedWidths):
        self.b0 = ConvUnit(inputs, widths.b0)
        self.b1a = ConvUnit(inputs, widths.b1a)
        self.b1b = ConvUnit(widths.b1a, widths.b1b, size=3)
        self.b2a = ConvUnit(inputs, widths.b2a)
        self.b2b = ConvUnit(widths.b2a, widths.b2b, size=3)
        self.b3b = ConvUnit(inputs, widths.b3b)

    def __call__(self, x: Maps) -> NewMaps:
        branches = [
            self.b0(x),
            self.b1b(self.b1a(x)),
            self.b2b(self.b2a(x)),
            self.b3b(max_pool(x, (3, 3, 3), (1, 1, 1))),
        ]
        return jnp.concatenate(branches, axis=-1)


class Logits(nnx.Module):
    """A pointwise layer with bias, without norm."""

    def __init__(self, inputs: int, outputs: int):
        self.kernel = nnx.Param(jnp.zeros((1, 1, 1, inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros(outputs))

    def __call__(self, x: Maps) -> NewMaps:
        return convolve(x, self.kernel[...]) + self.bias[...]


class InceptionI3D(nnx.Module):
    """The network on pixels of 224 x 224, at least 9 frames of them."""

    def __init__(self):
        self.conv_1a = ConvUnit(3, 64, size=7, stride=2)
        self.conv_2b = ConvUnit(64, 64)
        self.conv_2c = ConvUnit(64, 192, size=3)
        channels = 192
        for name, widths in MIXED.items():
            setattr(self, name, MixedBlock(channels, widths))
            channels = widths.outputs
        self.logits = Logits(channels, FEATURES)

    def __call__(self, pixels: Pixels) -> Float[Array, "B 400"]:
        """Features of clips in [-1, 1]."""
        x = self.conv_1a(pixels)
        x = max_pool(x, (1, 3, 3), (1, 2, 2))
        x = self.conv_2c(self.conv_2b(x))
        x = max_pool(x, (1, 3, 3), (1, 2, 2))
        x = self._mixed(x, "3bc")
        x = max_pool(x, (3, 3, 3), (2, 2, 2))
        x = self._mixed(x, "4bcdef")
        x = max_pool(x, (2, 2, 2), (2, 2, 2))
        x = self._mixed(x, "5bc")
        x = nnx.avg_pool(x, (2, 7, 7), strides=(1, 1, 1), padding="VALID")
        return self.logits(x).mean(axis=(1, 2, 3))

    def _mixed(self, x: Maps, group: str) -> NewMaps:
        """The blocks of a group, such as "3bc" for mixed_3b and mixed_3c."""
        for letter in group[1:]:
            x = getattr(self, f"mixed_{group[0]}{letter}")(x)
        return x


def convolve(x: Maps, kernel: Float[Array, "a b c C D"], stride: int = 1) -> NewMaps:
    """The convolution with one stride along time, rows and columns, padded as "SAME".

    The frames under a kernel are stacked as channels, so that one convolution of pictures does it
    all: on a core of a CPU the kernels of 7x7x7 and 3x3x3 are 6 and 1.8 times faster than as
    convolutions over three axes.
    """
    precision = jax.lax.Precision.HIGHEST
    if kernel.shape[:3] == (1, 1, 1) and stride == 1:
        return jnp.matmul(x, kernel[0, 0, 0], precision=precision)
    depth = kernel.shape[0]
    frames = -(-x.shape[1] // stride)
    length = (frames - 1) * stride + 1
    missing = max(length - 1 + depth - x.shape[1], 0)
    before = missing // 2
    padded = jnp.pad(x, [(0, 0), (before, missing - before), (0, 0), (0, 0), (0, 0)])
    shifted = []
    for first in range(depth):
        shifted.append(jax.lax.slice_in_dim(padded, first, first + length, stride, axis=1))
    pictures = rearrange(jnp.concatenate(shifted, axis=-1), "b t h w ac -> (b t) h w ac")
    outputs = jax.lax.conv_general_dilated(
        pictures,
        rearrange(kernel, "a h w c d -> h w (a c) d"),
        window_strides=(stride, stride),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=precision,
    )
    return rearrange(outputs, "(b t) h w d -> b t h w d", t=frames)


def max_pool(x: Maps, window: tuple[int, int, int], strides: tuple[int, int, int]) -> NewMaps:
    """The largest value of each window, padded as "SAME"; what lies outside never counts.

    One axis after the other, which is the same and takes a tenth of the time on a CPU.
    """
    for axis in range(3):
        size, stride = [1, 1, 1], [1, 1, 1]
        size[axis], stride[axis] = window[axis], strides[axis]
        x = nnx.max_pool(x, tuple(size), strides=tuple(stride), padding="SAME")
    return x


def network_input(clips: Video) -> Float[Array, "B F 224 224 3"]:
    """Equation (1): pixels of 224 x 224 in [-1, 1]."""
    shape = (*clips.shape[:2], SIDE, SIDE, 3)
    pixels = jax.image.resize(clips.astype(jnp.float32), shape, "bilinear", antialias=False)
    return pixels / 127.5 - 1


@functools.lru_cache
def abstract_i3d() -> tuple[nnx.GraphDef, dict[str, Any]]:
    """(structure, parameters as ShapeDtypeStructs in a nested dict); nothing is allocated."""
    graph, params = nnx.split(nnx.eval_shape(InceptionI3D))
    return graph, nnx.to_pure_dict(params)


@jax.jit
def _features(params: Any, clips: Video) -> Float[Array, "B 400"]:
    graph, _ = abstract_i3d()
    return nnx.merge(graph, params)(network_input(clips))


@dataclasses.dataclass(frozen=True, kw_only=True)
class I3D:
    """The network with its weights, applied to clips in memory."""

    params: Any
    """Nested dict of the parameters, as `i3d_weights.load_i3d` reads them."""
    batch_size: Count = 4
    """Clips that are computed at a time; it bounds the memory and changes no result."""

    def __post_init__(self):
        check_value("batch_size", self.batch_size, Count)

    def features(self, clips: Clips) -> Float[np.ndarray, "N 400"]:
        """The features of each clip.

        Raises:
            UserError: other arrays than clips, fewer than 9 frames, or features that are not
                finite.
        """
        check_frames(clips, "clips")
        # One program serves all batches: the last one is filled up, and what fills it is dropped.
        parts = [np.zeros((0, FEATURES), np.float32)]
        for start in range(0, len(clips), self.batch_size):
            batch = clips[start : start + self.batch_size]
            missing = self.batch_size - len(batch)
            padded = np.pad(batch, [(0, missing)] + [(0, 0)] * 4)
            parts.append(np.asarray(_features(self.params, padded))[: len(batch)])
        features = np.concatenate(parts)
        fault = not_finite(features)
        if fault:
            raise UserError(
                f"The I3D features of {len(clips)} clips hold {fault}: its weights do not fit, or "
                f"are damaged. Take another copy of them."
            )
        return features

    def of_stream(self, clips: Iterable[np.ndarray]) -> Iterator[Float[np.ndarray, "N 400"]]:
        """Yields the features of clips [F, Hp, Wp, 3] of one shape, some at a time, in order."""
        waiting: list[np.ndarray] = []
        for clip in clips:
            waiting.append(clip)
            if len(waiting) == self.batch_size:
                yield self.features(np.stack(waiting))
                waiting = []
        if waiting:
            yield self.features(np.stack(waiting))


def check_frames(clips: np.ndarray, name: str) -> None:
    """Raises a UserError unless `clips` is a uint8 batch [N, F, Hp, Wp, 3] that I3D can take."""
    check_clips(clips, name)
    if clips.shape[1] < LEAST_FRAMES:
        raise UserError(
            f"{name} have {clips.shape[1]} frames, and I3D needs at least {LEAST_FRAMES}: take "
            f"longer clips."
        )
