"""Self attention over frames, and cross attention to text.

With q, k, v linear in the input, cut into n heads of width d:

    q <- rotate( g_q * q / rms(q) ),   k <- rotate( g_k * k / rms(k) )                      (1)
    y = softmax( q.k / sqrt(d) ) v                                                          (2)

The root mean square runs over the d channels; the gains g are learned. Cross attention is the same
without rotation, its keys and values those of the text.

Which frames see which is structure, not a mask of tokens: each function below says it by frames,
and `frame_attention` computes no more than what is visible (paper, section 3.1).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx

from videomar_jax.models.config import ModelConfig
from videomar_jax.models.frame_attention import Heads, attend_frames
from videomar_jax.models.kernels import Kernel
from videomar_jax.models.layers import linear
from videomar_jax.models.rope import Rotary, rotate
from videomar_jax.types import Array, Bool, Float

AttentionFn = Callable[[Heads, Heads, Heads], Heads]
"""Maps queries, keys and values, all cut into frames, to the attended values."""


class KVCache(NamedTuple):
    """Keys (after (1)) and values of clean frames; layers are stacked in front."""

    keys: Float[Array, "... B T S n d"]
    values: Float[Array, "... B T S n d"]


class TextKV(NamedTuple):
    """Keys and values of the text; layers are stacked in front."""

    keys: Float[Array, "... B K n d"]
    values: Float[Array, "... B K n d"]


# Which frames see which


def frame_causal(q: Heads, k: Heads, v: Heads, *, kernel: Kernel = "auto") -> Heads:
    """Frame t sees all tokens of frames 0..t: causal in time, bidirectional in space."""
    return attend_frames(q, k, v, sees=np.tri(q.shape[1], dtype=bool), kernel=kernel)


def teacher_forcing(q: Heads, k: Heads, v: Heads, *, clean: int, kernel: Kernel = "auto") -> Heads:
    """The first `clean` frames are causal; behind them, each masked copy of a frame sees the clean
    frames before that frame, and itself.

    The copies are those of the frames 1, 2, ...; with no clean frame there is one, of frame 0.
    """
    sees = np.eye(q.shape[1], dtype=bool)
    sees[:clean, :clean] = np.tri(clean)
    # The copy of frame t is number t - 1 of the copies, and sees t clean frames.
    sees[clean:, :clean] = np.tri(len(sees) - clean, clean)
    return attend_frames(q, k, v, sees=sees, kernel=kernel)


# Layers


def qk_norm(config: ModelConfig, rngs: nnx.Rngs) -> nnx.RMSNorm:
    """RMS norm over the channels of a head."""
    gain = nnx.initializers.constant(config.qk_norm_gain)
    # Float32 whatever the compute dtype: these statistics scale every score.
    return nnx.RMSNorm(config.head_dim, epsilon=1e-6, dtype=jnp.float32, scale_init=gain, rngs=rngs)


class SelfAttention(nnx.Module):
    """Attention over the frames of a clip; the caller's `attention_fn` says which see which."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.config = config
        # Output channels: head by head its query, key and value (the published layout).
        self.qkv = linear(config.width, 3 * config.width, config, rngs)
        self.out = linear(config.width, config.width, config, rngs)
        self.q_norm = qk_norm(config, rngs)
        self.k_norm = qk_norm(config, rngs)

    def queries_keys_values(
        self, x: Float[Array, "B T S D"], rotary: Rotary
    ) -> tuple[Heads, Heads, Heads]:
        """Queries and keys after (1), and values."""
        qkv = rearrange(self.qkv(x), "b t s (n c) -> b t s n c", n=self.config.num_heads)
        q, k, v = jnp.split(qkv, 3, axis=-1)
        channels = self.config.rope_channels
        q = rotate(self.q_norm(q), rotary, channels).astype(v.dtype)
        k = rotate(self.k_norm(k), rotary, channels).astype(v.dtype)
        return q, k, v

    def __call__(
        self, x: Float[Array, "B T S D"], rotary: Rotary, attention_fn: AttentionFn
    ) -> tuple[Array, KVCache]:
        q, k, v = self.queries_keys_values(x, rotary)
        y = rearrange(attention_fn(q, k, v), "b t s n d -> b t s (n d)")
        return self.out(y), KVCache(k, v)


class CrossAttention(nnx.Module):
    """Every visual token attends to the text tokens that are not padding."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.q = linear(config.width, config.width, config, rngs)
        # Output channels: head by head its key and value.
        self.kv = linear(config.width, 2 * config.width, config, rngs)
        self.out = linear(config.width, config.width, config, rngs)
        self.q_norm = qk_norm(config, rngs)
        self.k_norm = qk_norm(config, rngs)

    def keys_values(self, context: Float[Array, "B K D"]) -> TextKV:
        """What attention needs of the text; it stays the same while a video is generated."""
        kv = rearrange(self.kv(context), "b k (n c) -> b k n c", n=self.config.num_heads)
        k, v = jnp.split(kv, 2, axis=-1)
        # No rotation: text tokens have no place in the video.
        return TextKV(self.k_norm(k).astype(v.dtype), v)

    def __call__(
        self, x: Float[Array, "B T S D"], text: TextKV, text_mask: Bool[Array, "B K"] | None
    ) -> Array:
        q = rearrange(self.q(x), "b t s (n d) -> b t s n d", n=self.config.num_heads)
        q = self.q_norm(q).astype(text.values.dtype)
        k, v = text.keys[:, None], text.values[:, None]
        y = attend_frames(q, k, v, key_mask=text_mask, kernel=self.config.attention)
        return self.out(y.reshape(x.shape))
