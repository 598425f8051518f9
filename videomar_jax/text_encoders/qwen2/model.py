"""The Qwen2 decoder, up to its last hidden state (technical report arXiv:2407.10671; text part of
Qwen2-VL as well).

With g query heads for each key-value head (grouped-query attention), one layer is

    x = x + W_o Attention( R(W_q u + b_q), R(W_k u + b_k), W_v u + b_v ),    u = RMSNorm(x)
    x = x + W_down( SiLU(W_gate u) * W_up u ),                               u = RMSNorm(x)

R rotates pairs (i, i + d/2) of each head by m * theta^(-2i/d), m the token's place in the row.
Places are counted from 0 whatever the padding, as `transformers` does for a call with an attention
mask and no position ids. Token i sees the tokens j <= i that the mask marks. A row's token that
sees nothing (padding in front of everything) averages all values; nobody sees that token in turn.

The layers' parameters are stacked on a leading axis and applied with `jax.lax.scan`. They stay in
the type they are stored in and are cast to the compute dtype when used (XLA's CPU backend casts
16-bit stacks to float32 before the loop, which takes twice their memory while a batch runs).
Residual stream, norms, rotation and softmax are float32.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from videomar_jax.types import Array, Bool, Float, Int

DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Qwen2Config:
    """Sizes of a decoder. `window`: tokens that the narrowest layer looks back, None where all see
    everything."""

    vocab_size: int
    width: int
    depth: int
    heads: int
    kv_heads: int
    head_width: int
    mlp_width: int
    rope_theta: float = 1e6
    norm_epsilon: float = 1e-6
    window: int | None = None
    dtype: str = "float32"

    def __post_init__(self):
        sizes = ("vocab_size", "width", "depth", "heads", "kv_heads", "head_width", "mlp_width")
        if wrong := [
            f"{name} = {getattr(self, name)}" for name in sizes if getattr(self, name) < 1
        ]:
            raise ValueError(f"sizes of a Qwen2 decoder must be at least 1: {', '.join(wrong)}")
        if self.heads % self.kv_heads:
            raise ValueError(
                f"heads = {self.heads} must be a multiple of kv_heads = {self.kv_heads}"
            )
        if self.head_width % 2:
            raise ValueError(
                f"head_width = {self.head_width} must be even: the rotation turns pairs"
            )
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype is {self.dtype!r}; it may be {' or '.join(DTYPES)}")

    @property
    def precision(self) -> jax.lax.Precision | None:
        """Float32 means float32 on accelerators too, where products of float32 are otherwise
        rounded."""
        return jax.lax.Precision.HIGHEST if self.dtype == "float32" else None


class KeysValues(NamedTuple):
    """Rotated keys, and values, of tokens 0 .. P-1; stacked over layers outside a layer."""

    keys: Float[Array, "*depth B P kv d"]
    values: Float[Array, "*depth B P kv d"]


def _linear(
    inputs: int, outputs: int, config: Qwen2Config, rngs: nnx.Rngs, *, use_bias: bool = False
) -> nnx.Linear:
    return nnx.Linear(
        inputs,
        outputs,
        use_bias=use_bias,
        dtype=config.dtype,
        precision=config.precision,
        rngs=rngs,
        kernel_init=nnx.initializers.normal(0.02),
    )


def _norm(config: Qwen2Config, rngs: nnx.Rngs) -> nnx.RMSNorm:
    return nnx.RMSNorm(config.width, epsilon=config.norm_epsilon, dtype=jnp.float32, rngs=rngs)


def rotate(x: Float[Array, "B N heads d"], first: int, theta: float) -> Float[Array, "B N heads d"]:
    """Rotary positions first, first + 1, ... of the tokens in x, in float32; the result has the
    type of x."""
    half = x.shape[-1] // 2
    frequencies = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = (first + jnp.arange(x.shape[1], dtype=jnp.float32))[:, None] * frequencies
    cos, sin = jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]
    low, high = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    return jnp.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1).astype(
        x.dtype
    )


def attend(
    q: Float[Array, "B N heads d"],
    k: Float[Array, "B L kv d"],
    v: Float[Array, "B L kv d"],
    seen: Bool[Array, "B N L"],
    precision: jax.lax.Precision | None = None,
) -> Float[Array, "B N heads d"]:
    """Softmax attention; query heads j*g .. (j+1)*g-1 share key-value head j. Scores and softmax in
    float32."""
    grouped = q.reshape(*q.shape[:2], k.shape[2], -1, q.shape[-1])
    options = {"preferred_element_type": jnp.float32, "precision": precision}
    scores = jnp.einsum("bnkgd,blkd->bkgnl", grouped, k, **options) * q.shape[-1] ** -0.5
    weights = jax.nn.softmax(jnp.where(seen[:, None, None], scores, -1e30), axis=-1)
    return (
        jnp.einsum("bkgnl,blkd->bnkgd", weights.astype(v.dtype), v, **options)
        .reshape(q.shape)
        .astype(q.dtype)
    )


class Layer(nnx.Module):
    """Grouped-query self attention and a gated feed-forward, each on the normalised stream."""

    def __init__(self, config: Qwen2Config, *, rngs: nnx.Rngs):
        self.config = config
        inner, kv_inner = config.heads * config.head_width, config.kv_heads * config.head_width
        self.attention_norm = _norm(config, rngs)
        self.query = _linear(config.width, inner, config, rngs, use_bias=True)
        self.key = _linear(config.width, kv_inner, config, rngs, use_bias=True)
        self.value = _linear(config.width, kv_inner, config, rngs, use_bias=True)
        self.out = _linear(inner, config.width, config, rngs)
        self.mlp_norm = _norm(config, rngs)
        self.gate = _linear(config.width, config.mlp_width, config, rngs)
        self.up = _linear(config.width, config.mlp_width, config, rngs)
        self.down = _linear(config.mlp_width, config.width, config, rngs)

    def __call__(
        self, x: Float[Array, "B N D"], seen: Bool[Array, "B N L"], prefix: KeysValues | None = None
    ) -> tuple[Float[Array, "B N D"], KeysValues]:
        """The stream after this layer, and the keys and values of the tokens in x; `prefix` stands
        before them."""
        u = self.attention_norm(x)
        with jax.named_scope("self_attention"):
            first = 0 if prefix is None else prefix.keys.shape[1]
            heads = (*x.shape[:2], -1, self.config.head_width)
            q, k = (
                rotate(part(u).reshape(heads), first, self.config.rope_theta)
                for part in (self.query, self.key)
            )
            own = KeysValues(k, self.value(u).reshape(heads))
            kv = (
                own
                if prefix is None
                else KeysValues(*(_join(p, o) for p, o in zip(prefix, own, strict=True)))
            )
            x = x + self.out(attend(q, *kv, seen, self.config.precision).reshape(*x.shape[:2], -1))
        with jax.named_scope("feed_forward"):
            u = self.mlp_norm(x)
            x = x + self.down(jax.nn.silu(self.gate(u)) * self.up(u))
        return x, own


def _join(
    prefix: Float[Array, "#B P kv d"], own: Float[Array, "B N kv d"]
) -> Float[Array, "B L kv d"]:
    return jnp.concatenate([jnp.broadcast_to(prefix, (len(own), *prefix.shape[1:])), own], axis=1)


class Qwen2(nnx.Module):
    """Token embedding, `depth` layers in one scan, final norm; no head over the vocabulary."""

    def __init__(self, config: Qwen2Config, *, rngs: nnx.Rngs):
        self.config = config
        self.embed = nnx.Embed(config.vocab_size, config.width, rngs=rngs)
        self.layers = jax.vmap(lambda keys: Layer(config, rngs=keys))(rngs.split(config.depth))
        self.norm = _norm(config, rngs)

    def __call__(
        self, tokens: Int[Array, "B N"], mask: Bool[Array, "B N"], prefix: KeysValues | None = None
    ) -> tuple[Float[Array, "B N D"], KeysValues]:
        """The last hidden state in float32, and the keys and values of `tokens` for every layer.

        Args:
            mask: False at tokens that no token attends to.
            prefix: keys and values [depth, 1 or B, P, kv, d] of tokens before these, all of which
                are attended to.
        """
        count, before = tokens.shape[1], 0 if prefix is None else prefix.keys.shape[2]
        causal = jnp.tril(jnp.ones((count, before + count), bool), k=before)
        seen = causal & jnp.pad(mask, ((0, 0), (before, 0)), constant_values=True)[:, None]
        x = self.embed.embedding[...][tokens].astype(jnp.float32)
        x, kv = jax.lax.scan(lambda x, layer: layer[0](x, seen, layer[1]), x, (self.layers, prefix))
        return self.norm(x), kv
