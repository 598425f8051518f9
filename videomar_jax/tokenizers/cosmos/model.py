"""The Cosmos tokenizer's network: causal encoder and decoder between Haar bands and latents.

    encode   video -> Haar bands -> conv_in -> levels (blocks, step) -> middle
                   -> norm, SiLU, conv_out -> quant_conv
    decode   latents -> post_quant_conv -> conv_in -> middle -> levels
                   -> norm, SiLU, conv_out -> inverse Haar

Both work on one chunk of a clip at a time, with a `Past` that carries the frames the layers look
back on: the first chunk has 1 + k * stride pixel frames (1 + k latent frames), every later one
k * stride (k). A whole clip is a single first chunk.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from videomar_jax.tokenizers.cosmos.config import CosmosConfig
from videomar_jax.tokenizers.cosmos.layers import (
    AttentionPair,
    Changed,
    ConvPair,
    Downsample,
    FrameNorm,
    Frames,
    Past,
    PointConv,
    ResidualBlock,
    Upsample,
)
from videomar_jax.tokenizers.haar import haar_patches, haar_unpatch
from videomar_jax.types import Array, Float, Pixels


class CosmosNetwork(nnx.Module):
    """Encoder and decoder of one configuration. Parameters are zeros until weights replace them."""

    def __init__(self, config: CosmosConfig):
        self.encoder = Encoder(config)
        self.quant_conv = PointConv(config.z_channels, config.latent_channels)
        self.post_quant_conv = PointConv(config.latent_channels, config.z_channels)
        self.decoder = Decoder(config)

    def encode(self, video: Pixels, past: Past) -> Float[Array, "B T h w C"]:
        """Pixels of one chunk in [-1, 1] to its latents, unscaled."""
        return self.quant_conv(self.encoder(video, past))

    def decode(self, latents: Float[Array, "B T h w C"], past: Past) -> Pixels:
        """Unscaled latents of one chunk to its pixels."""
        latents = latents.astype(self.post_quant_conv.kernel.dtype)
        return self.decoder(self.post_quant_conv(latents), past)


@functools.lru_cache
def abstract_network(config: CosmosConfig) -> tuple[nnx.GraphDef, dict[str, Any]]:
    """(structure, parameters as ShapeDtypeStructs in a nested dict) of a network; nothing is
    allocated."""
    graph, params = nnx.split(nnx.eval_shape(lambda: CosmosNetwork(config)))
    return graph, nnx.to_pure_dict(params)


class Encoder(nnx.Module):
    """Haar bands, levels from fine to coarse, middle."""

    def __init__(self, config: CosmosConfig):
        self.patch = config.patch
        self.conv_in = ConvPair(3 * config.patch**3, config.width)
        before = config.width
        stride = config.temporal_stride // config.patch
        levels = []
        for i, mult in enumerate(config.encoder_mults):
            width = config.width * mult
            step = config.encoder_steps[i] if i < len(config.encoder_steps) else None
            level = Level(
                before,
                width,
                config.blocks,
                attends=config.attends(i),
                stride=stride,
                resample=Downsample(width, step) if step else None,
            )
            levels.append(level)
            before = width
            if step and step.time:
                stride //= 2
        self.down = nnx.List(levels)
        self.mid = Middle(before)
        self.norm_out, self.conv_out = FrameNorm(before), ConvPair(before, config.z_channels)

    def __call__(self, video: Pixels, past: Past) -> Changed:
        # The bands are computed in float32 whatever the network computes in: sums of 8 lose bits
        # in bfloat16.
        x = patches(video, self.patch, past).astype(self.conv_in.spatial.kernel.dtype)
        x = self.conv_in(x, past)
        for level in self.down:
            x = level(x, past)
        x = self.mid(x, past)
        return self.conv_out(jax.nn.silu(self.norm_out(x)), past)


class Decoder(nnx.Module):
    """Middle, levels from coarse to fine, inverse Haar.

    `up` is indexed as in the encoder, 0 the finest, as in the published weights: it runs from its
    end.
    """

    def __init__(self, config: CosmosConfig):
        self.patch = config.patch
        before = config.width * config.decoder_mults[-1]
        stride = 1
        self.conv_in = ConvPair(config.z_channels, before)
        self.mid = Middle(before)
        levels = []
        for q, mult in enumerate(reversed(config.decoder_mults)):
            width = config.width * mult
            step = config.decoder_steps[q] if q < len(config.decoder_steps) else None
            level = Level(
                before,
                width,
                config.blocks + 1,
                attends=config.attends(len(config.decoder_mults) - 1 - q),
                stride=stride,
                resample=Upsample(width, step) if step else None,
            )
            levels.append(level)
            before = width
            if step and step.time:
                stride *= 2
        self.up = nnx.List(levels[::-1])
        self.norm_out, self.conv_out = FrameNorm(before), ConvPair(before, 3 * config.patch**3)

    def __call__(self, z: Frames, past: Past) -> Pixels:
        x = self.mid(self.conv_in(z, past), past)
        for level in reversed(self.up):
            x = level(x, past)
        x = self.conv_out(jax.nn.silu(self.norm_out(x)), past)
        return unpatch(x.astype(jnp.promote_types(x.dtype, jnp.float32)), self.patch, past)


class Level(nnx.Module):
    """Residual blocks at one size, each followed by attention if `attends`, then the step to the
    next level. `stride`: frames of this level that make one latent frame."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        blocks: int,
        *,
        attends: bool,
        stride: int,
        resample: Downsample | Upsample | None,
    ):
        widths = [inputs] + [outputs] * (blocks - 1)
        self.block = nnx.List([ResidualBlock(width, outputs) for width in widths])
        pairs = blocks if attends else 0
        self.attn = nnx.List([AttentionPair(outputs, stride=stride) for _ in range(pairs)])
        self.resample = resample

    def __call__(self, x: Frames, past: Past) -> Changed:
        for j, block in enumerate(self.block):
            x = block(x, past)
            if self.attn:
                x = self.attn[j](x, past)
        return x if self.resample is None else self.resample(x, past)


class Middle(nnx.Module):
    """Block, attention, block at latent resolution."""

    def __init__(self, channels: int):
        self.block_1 = ResidualBlock(channels, channels)
        self.attn_1 = AttentionPair(channels, stride=1)
        self.block_2 = ResidualBlock(channels, channels)

    def __call__(self, x: Frames, past: Past) -> Frames:
        return self.block_2(self.attn_1(self.block_1(x, past), past), past)


def patches(video: Pixels, patch: int, past: Past) -> Changed:
    """Haar bands of a chunk: in the first one, frame 0 is a group by itself; later chunks are whole
    groups."""
    if past.starts:
        return haar_patches(video, patch)
    return haar_patches(jnp.concatenate([video[:, :1], video], axis=1), patch)[:, 1:]


def unpatch(bands: Frames, patch: int, past: Past) -> Pixels:
    """The inverse of `patches`."""
    if past.starts:
        return haar_unpatch(bands, patch)
    return haar_unpatch(jnp.concatenate([bands[:, :1], bands], axis=1), patch)[:, 1:]
