"""Self attention over frames and cross attention to text, both with RMS-normalised queries and
keys.

Scores are q.k / sqrt(d) after q and k were normalised over d, scaled by one learned vector each,
and (self attention)
rotated. Which keys a frame sees is structure, not a boolean matrix: the functions `frame_causal`,
    `teacher_forcing`,
`whole_clip` and `cached` each cut queries and keys into frames and call one dense `attend`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from videomar_jax.models.config import ModelConfig
from videomar_jax.models.layers import linear
from videomar_jax.models.rope import Rotation, rotate
from videomar_jax.types import Array, Bool, Float

Heads = Float[Array, "B T S n d"]


class KVCache(NamedTuple):
    """Keys (after norm and rotation) and values of finished frames: [B, T, S, n, d], stacked over
    layers outside."""

    keys: Float[Array, "... B T S n d"]
    values: Float[Array, "... B T S n d"]


Mix = Callable[[Heads, Heads, Heads], Heads]
"""Maps queries, keys and values, all cut into frames, to the attended values."""


def attend(
    q: Float[Array, "B Q n d"],
    k: Float[Array, "B N n d"],
    v: Float[Array, "B N n d"],
    *,
    key_mask: Bool[Array, "#B N"] | None = None,
    kernel: str = "auto",
) -> Float[Array, "B Q n d"]:
    """Dense softmax attention; `key_mask` is False at keys that nobody sees (each row must keep one
    True).

    kernel: "xla", "cudnn" (GPU, 16-bit only, fails loudly elsewhere) or "auto", cuDNN where it runs
        and XLA elsewhere.
    """
    if kernel == "auto":
        kernel = "cudnn" if jax.default_backend() == "gpu" and q.dtype.itemsize == 2 else "xla"
    if kernel == "xla":
        return softmax_attention(q, k, v, key_mask)
    mask = (
        None
        if key_mask is None
        else jnp.broadcast_to(key_mask[:, None, None], (len(q), 1, q.shape[1], k.shape[1]))
    )
    return jax.nn.dot_product_attention(q, k, v, mask=mask, implementation=kernel)


def softmax_attention(q, k, v, key_mask):
    """Plain attention, scores and softmax in float32. Dividing by the sum after the product with
    the values spares a pass over the scores, and in the backward pass turns a sum over keys into
    one over channels."""
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q * q.shape[-1] ** -0.5, k, v))  # B n N d
    scores = jnp.einsum("bnqd,bnkd->bnqk", q, k, preferred_element_type=jnp.float32)
    if key_mask is not None:
        scores = jnp.where(key_mask[:, None, None, :], scores, -1e30)
    weights = jnp.exp(scores - jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
    total = jnp.sum(weights, axis=-1, keepdims=True)
    summed = jnp.einsum(
        "bnqk,bnkd->bnqd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32
    )
    return jnp.swapaxes(summed / total, 1, 2).astype(v.dtype)


def flat(x: Heads) -> Float[Array, "B N n d"]:
    """Joins frames and tokens."""
    return rearrange(x, "b t s n d -> b (t s) n d")


def frame_causal(q: Heads, k: Heads, v: Heads, *, kernel: str = "auto") -> Heads:
    """Frame t sees all tokens of frames up to t: causal in time, bidirectional in space (paper,
    section 3.1)."""
    out = [
        attend(q[:, t], flat(k[:, : t + 1]), flat(v[:, : t + 1]), kernel=kernel)
        for t in range(q.shape[1])
    ]
    return jnp.stack(out, axis=1)


def whole_clip(q: Heads, k: Heads, v: Heads, *, kernel: str = "auto") -> Heads:
    """Every token sees every token: no temporal causality (the paper's ablation)."""
    return attend(flat(q), flat(k), flat(v), kernel=kernel).reshape(q.shape)


def teacher_forcing(q: Heads, k: Heads, v: Heads, *, clean: int, kernel: str = "auto") -> Heads:
    """The first `clean` frames are clean and causal; of the rest, masked copies, each sees the
    clean frames before it and itself. Masked copies stand for the frames 1, 2, … (or for frame 0
    alone when nothing is clean)."""
    first = min(clean, 1)
    parts = [frame_causal(q[:, :clean], k[:, :clean], v[:, :clean], kernel=kernel)] if clean else []
    for i in range(q.shape[1] - clean):
        own, seen = slice(clean + i, clean + i + 1), first + i
        keys, values = (flat(jnp.concatenate([x[:, :seen], x[:, own]], axis=1)) for x in (k, v))
        parts.append(attend(q[:, clean + i], keys, values, kernel=kernel)[:, None])
    return jnp.concatenate(parts, axis=1)


def cached(
    q: Float[Array, "B 1 Q n d"],
    k: Heads,
    v: Heads,
    *,
    cache: KVCache,
    visible: Bool[Array, "L"] | None,
    kernel: str = "auto",
) -> Float[Array, "B 1 Q n d"]:
    """Queries of one frame see the `visible` frames of the cache (None: all of them) and the frame
    itself."""
    keys, values = (
        flat(jnp.concatenate([c.astype(x.dtype), x], axis=1))
        for c, x in zip(cache, (k, v), strict=True)
    )
    mask = None
    if visible is not None:
        own = jnp.ones(k.shape[1] * k.shape[2], bool)
        mask = jnp.concatenate([jnp.repeat(visible, k.shape[2]), own])[None]
    return attend(flat(q), keys, values, key_mask=mask, kernel=kernel).reshape(q.shape)


def qk_norm(config: ModelConfig, rngs: nnx.Rngs) -> nnx.RMSNorm:
    """RMS norm over the width of a head; statistics in float32."""
    gain = nnx.initializers.constant(config.qk_norm_gain)
    return nnx.RMSNorm(config.head_dim, epsilon=1e-6, dtype=jnp.float32, scale_init=gain, rngs=rngs)


class SelfAttention(nnx.Module):
    """Attention over the frames of a clip; which frames see which is handed in as `mix`."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.qkv = linear(
            config.width, 3 * config.width, config, rngs
        )  # rows: head, then q, k, v, then channel
        self.out = linear(config.width, config.width, config, rngs)
        self.q_norm = qk_norm(config, rngs)
        self.k_norm = qk_norm(config, rngs)

    def queries_keys_values(
        self, x: Float[Array, "B T S D"], rotation: Rotation
    ) -> tuple[Heads, Heads, Heads]:
        """Normalised and rotated queries and keys, and the values."""
        q, k, v = jnp.split(
            rearrange(self.qkv(x), "b t s (n c) -> b t s n c", n=self.config.num_heads), 3, axis=-1
        )
        channels = self.config.rope_channels
        q, k = (
            rotate(norm(u), rotation, channels).astype(v.dtype)
            for norm, u in ((self.q_norm, q), (self.k_norm, k))
        )
        return q, k, v

    def __call__(
        self, x: Float[Array, "B T S D"], rotation: Rotation, mix: Mix
    ) -> tuple[Array, KVCache]:
        q, k, v = self.queries_keys_values(x, rotation)
        y = rearrange(mix(q, k, v), "b t s n d -> b t s (n d)")
        return self.out(y), KVCache(k, v)


class TextKV(NamedTuple):
    """Keys and values of the text for one layer, [B, K, n, d] (stacked over layers outside)."""

    keys: Float[Array, "... B K n d"]
    values: Float[Array, "... B K n d"]


class CrossAttention(nnx.Module):
    """Every visual token attends to the text tokens that are not padding."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.q = linear(config.width, config.width, config, rngs)
        self.kv = linear(
            config.width, 2 * config.width, config, rngs
        )  # rows: head, then k, v, then channel
        self.out = linear(config.width, config.width, config, rngs)
        self.q_norm = qk_norm(config, rngs)
        self.k_norm = qk_norm(config, rngs)

    def keys_values(self, context: Float[Array, "B K D"]) -> TextKV:
        """What attention needs of the text; it does not change while a video is generated."""
        k, v = jnp.split(
            rearrange(self.kv(context), "b k (n c) -> b k n c", n=self.config.num_heads), 2, axis=-1
        )
        return TextKV(self.k_norm(k).astype(v.dtype), v)

    def __call__(
        self, x: Float[Array, "B T S D"], text: TextKV, text_mask: Bool[Array, "B K"] | None
    ) -> Array:
        q = rearrange(self.q(x), "b t s (n d) -> b (t s) n d", n=self.config.num_heads)
        q = self.q_norm(q).astype(text.values.dtype)
        y = attend(q, text.keys, text.values, key_mask=text_mask, kernel=self.config.attention)
        return self.out(y.reshape(x.shape))
