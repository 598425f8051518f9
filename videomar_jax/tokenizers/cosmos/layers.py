"""The layers of the Cosmos tokenizer, each causal in time and able to continue the previous chunk.

Activations are [B, T, H, W, C]. Convolutions are split in space (1x3x3, zero padding), in time
(3x1x1, the frames before the first are copies of it) and pointwise (1x1x1). A layer that looks back
in time takes the frames it needs from a `Past`; nothing else couples frames, so a clip may be cut
anywhere between latent frames:

    layer(x[:, :a], past_0) then layer(x[:, a:], past_1)   equals   layer(x, past_0).

Parameters have the dtype of the activations and are zeros until weights replace them.
Norm statistics and softmax are float32 throughout.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from videomar_jax.tokenizers.cosmos.config import Step
from videomar_jax.tokenizers.cosmos.conv import spatial_conv, temporal_conv
from videomar_jax.types import Array, Float

Frames = Float[Array, "B T H W C"]
Changed = Float[Array, "B t h w D"]
"""Frames whose number, size or width a layer changes."""

QUERY_BLOCK = 1024
"""Spatial attention is computed for this many queries at a time: it bounds the memory and changes
no result."""


class Past:
    """The frames before a chunk that its layers look back on.

    Layers take what they need in the order in which they run, and leave in `kept` what the same
    layers will need for the next chunk.

    Args:
        state: `kept` of the previous chunk; None for the chunk that starts a clip.
        seen: latent frames before this chunk.
        capacity: the largest number of latent frames that the whole clip may have.
    """

    def __init__(
        self, state: Sequence[Array] | None = None, *, seen: Array | int = 0, capacity: int = 1
    ):
        self.starts = state is None
        self._state = iter(state or ())
        self.seen = seen
        self.capacity = capacity
        self.kept: list[Array] = []

    def before(self, x: Frames, count: int, copies: int | None = None) -> Changed:
        """x with the `count` frames before it in front.

        At the start of a clip these are copies of its first frame, `copies` of them (by default
        `count`).
        """
        if self.starts:
            earlier = jnp.repeat(x[:, :1], count if copies is None else copies, axis=1)
        else:
            earlier = next(self._state)
        x = jnp.concatenate([earlier, x], axis=1)
        self.kept.append(x[:, x.shape[1] - count :])
        return x

    def cache(self, x: Float[Array, "B T H W C"], stride: int) -> Float[Array, "B L H W C"]:
        """All frames so far, x last, in a buffer for the whole clip, zero beyond them.

        `stride` frames of x are one latent frame.
        """
        start = self.frames_before(stride)
        whole = 1 + stride * (self.capacity - 1)
        if self.starts:
            buffer = jnp.zeros((x.shape[0], max(whole, x.shape[1]), *x.shape[2:]), x.dtype)
        else:
            buffer = next(self._state)
        self.kept.append(jax.lax.dynamic_update_slice_in_dim(buffer, x, start, axis=1))
        return self.kept[-1]

    def frames_before(self, stride: int) -> Array | int:
        """The frames before this chunk, where `stride` frames are one latent frame."""
        return 0 if self.starts else 1 + stride * (self.seen - 1)


class SpatialConv(nnx.Module):
    """3x3 convolution of each frame."""

    def __init__(
        self, inputs: int, outputs: int, *, stride: int = 1, padding: tuple[int, int] = (1, 1)
    ):
        self.kernel = nnx.Param(jnp.zeros((3, 3, inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros(outputs))
        self.stride, self.padding = stride, padding

    def __call__(self, x: Frames) -> Changed:
        images = x.reshape(-1, *x.shape[2:])
        y = spatial_conv(images, self.kernel[...], stride=self.stride, padding=self.padding)
        y = y + self.bias[...]
        return y.reshape(*x.shape[:2], *y.shape[1:])


class TemporalConv(nnx.Module):
    """Convolution over three frames, the present one and two before it."""

    def __init__(self, inputs: int, outputs: int, *, stride: int = 1):
        self.kernel = nnx.Param(jnp.zeros((3, inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros(outputs))
        self.stride = stride

    def __call__(self, x: Frames, past: Past) -> Changed:
        # With stride 2, windows reach one frame back into the previous chunk. At the start of a
        # clip there are two copies of its first frame in either case.
        x = past.before(x, 3 - self.stride, copies=2)
        return temporal_conv(x, self.kernel[...], stride=self.stride) + self.bias[...]


class PointConv(nnx.Module):
    """A linear layer at every position of every frame."""

    def __init__(self, inputs: int, outputs: int):
        self.kernel = nnx.Param(jnp.zeros((inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros(outputs))

    def __call__(self, x: Frames) -> Changed:
        y = x.reshape(-1, x.shape[-1]) @ self.kernel[...] + self.bias[...]
        return y.reshape(*x.shape[:-1], -1)


class ConvPair(nnx.Module):
    """A convolution in space, then one in time."""

    def __init__(self, inputs: int, outputs: int):
        self.spatial = SpatialConv(inputs, outputs)
        self.temporal = TemporalConv(outputs, outputs)

    def __call__(self, x: Frames, past: Past) -> Changed:
        return self.temporal(self.spatial(x), past)


class FrameNorm(nnx.Module):
    """Group norm with one group: each frame is normalised over its rows, columns and channels."""

    def __init__(self, channels: int):
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))

    def __call__(self, x: Frames) -> Frames:
        h = x.astype(jnp.float32)
        mean = h.mean(axis=(2, 3, 4), keepdims=True)
        variance = jnp.square(h - mean).mean(axis=(2, 3, 4), keepdims=True)
        factor = jax.lax.rsqrt(variance + 1e-6) * self.scale[...].astype(jnp.float32)
        return ((h - mean) * factor + self.bias[...].astype(jnp.float32)).astype(x.dtype)


class ResidualBlock(nnx.Module):
    """Two convolutions, each on the normalised activations, with a shortcut."""

    def __init__(self, inputs: int, outputs: int):
        self.norm1, self.conv1 = FrameNorm(inputs), ConvPair(inputs, outputs)
        self.norm2, self.conv2 = FrameNorm(outputs), ConvPair(outputs, outputs)
        self.nin_shortcut = None if inputs == outputs else PointConv(inputs, outputs)

    def __call__(self, x: Frames, past: Past) -> Changed:
        h = self.conv1(jax.nn.silu(self.norm1(x)), past)
        h = self.conv2(jax.nn.silu(self.norm2(h)), past)
        return h + (x if self.nin_shortcut is None else self.nin_shortcut(x))


class _Attention(nnx.Module):
    """One head over the channels, with a residual."""

    def __init__(self, channels: int):
        self.norm = FrameNorm(channels)
        self.q = PointConv(channels, channels)
        self.k = PointConv(channels, channels)
        self.v = PointConv(channels, channels)
        self.proj_out = PointConv(channels, channels)


class SpatialAttention(_Attention):
    """Every position of a frame attends to every position of that frame."""

    def __call__(self, x: Frames) -> Frames:
        h = self.norm(x)
        tokens = (-1, math.prod(x.shape[2:4]), x.shape[-1])
        q, k, v = self.q(h).reshape(tokens), self.k(h).reshape(tokens), self.v(h).reshape(tokens)
        blocks = -(-q.shape[1] // QUERY_BLOCK)
        if blocks == 1:
            h = _attend(q, k, v)
        else:
            padded = jnp.pad(q, ((0, 0), (0, -q.shape[1] % blocks), (0, 0)))
            split = padded.reshape(q.shape[0], blocks, -1, q.shape[-1]).swapaxes(0, 1)
            h = jax.lax.map(lambda part: _attend(part, k, v), split).swapaxes(0, 1)
            h = h.reshape(padded.shape)[:, : q.shape[1]]
        return x + self.proj_out(h.reshape(x.shape))


class TemporalAttention(_Attention):
    """Every position attends to itself in this frame and in all earlier ones.

    `stride` frames are one latent frame.
    """

    def __init__(self, channels: int, *, stride: int):
        super().__init__(channels)
        self.stride = stride

    def __call__(self, x: Frames, past: Past) -> Frames:
        h = self.norm(x)
        q = self.q(h)
        k = past.cache(self.k(h), self.stride)
        v = past.cache(self.v(h), self.stride)
        scores = jnp.einsum("bihwc,bjhwc->bhwij", q, k, preferred_element_type=jnp.float32)
        logits = scores * x.shape[-1] ** -0.5
        frame = jnp.arange(q.shape[1])[:, None] + past.frames_before(self.stride)
        logits = jnp.where(jnp.arange(k.shape[1]) <= frame, logits, -jnp.inf)
        h = jnp.einsum("bhwij,bjhwc->bihwc", jax.nn.softmax(logits).astype(v.dtype), v)
        return x + self.proj_out(h)


def _attend(
    q: Float[Array, "N I C"], k: Float[Array, "N J C"], v: Float[Array, "N J C"]
) -> Float[Array, "N I C"]:
    scores = jnp.einsum("nic,njc->nij", q, k, preferred_element_type=jnp.float32)
    logits = scores * q.shape[-1] ** -0.5
    return jnp.einsum("nij,njc->nic", jax.nn.softmax(logits).astype(v.dtype), v)


class AttentionPair(nnx.Module):
    """Attention in space, then in time."""

    def __init__(self, channels: int, *, stride: int):
        self.spatial = SpatialAttention(channels)
        self.temporal = TemporalAttention(channels, stride=stride)

    def __call__(self, x: Frames, past: Past) -> Frames:
        return self.temporal(self.spatial(x), past)


class Downsample(nnx.Module):
    """Halves space, then time: a strided convolution plus the mean of the positions it replaces,
    then a pointwise layer."""

    def __init__(self, channels: int, step: Step):
        below_and_right = (0, 1)  # one row and column of zeros, as published
        self.spatial = (
            SpatialConv(channels, channels, stride=2, padding=below_and_right)
            if step.space
            else None
        )
        self.temporal = TemporalConv(channels, channels, stride=2) if step.time else None
        self.point = PointConv(channels, channels) if any(step) else None

    def __call__(self, x: Frames, past: Past) -> Changed:
        if self.spatial is not None:
            batch, frames, height, width, channels = x.shape
            blocks = x.reshape(batch, frames, height // 2, 2, width // 2, 2, channels)
            x = self.spatial(x) + blocks.mean(axis=(3, 5))
        if self.temporal is not None:
            pairs = jnp.concatenate([x[:, :1], x], axis=1) if past.starts else x
            pairs = pairs.reshape(x.shape[0], -1, 2, *x.shape[2:])
            x = self.temporal(x, past) + pairs.mean(axis=2)
        return x if self.point is None else self.point(x)


class Upsample(nnx.Module):
    """Doubles time (except the first frame of a clip), then space: repeated positions plus their
    convolution, then a pointwise layer."""

    def __init__(self, channels: int, step: Step):
        self.temporal = TemporalConv(channels, channels) if step.time else None
        self.spatial = SpatialConv(channels, channels) if step.space else None
        self.point = PointConv(channels, channels) if any(step) else None

    def __call__(self, x: Frames, past: Past) -> Changed:
        if self.temporal is not None:
            x = jnp.repeat(x, 2, axis=1)[:, int(past.starts) :]
            x = x + self.temporal(x, past)
        if self.spatial is not None:
            x = jnp.repeat(jnp.repeat(x, 2, axis=2), 2, axis=3)
            x = x + self.spatial(x)
        return x if self.point is None else self.point(x)
