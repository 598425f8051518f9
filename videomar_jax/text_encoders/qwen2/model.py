"""The Qwen2 decoder up to its last hidden state (technical report arXiv:2407.10671); also the text
part of Qwen2-VL.

With g query heads for each key-value head (grouped-query attention), one layer is

    x = x + W_o Attention( R(W_q u + b_q), R(W_k u + b_k), W_v u + b_v ),    u = RMSNorm(x)
    x = x + W_down( SiLU(W_gate u) * W_up u ),                               u = RMSNorm(x)

R rotates pairs (i, i + d/2) of each head by m * theta^(-2i/d), m the token's position in the row.
Positions are counted from 0 whatever the padding, as `transformers` does in a call with an
attention mask and no position ids. Token i attends to the tokens j <= i that the mask marks. A
token that may attend to nothing (padding at the start of a row) averages all values; no token
attends to it in turn.

The layers' parameters are stacked on a leading axis and applied with `jax.lax.scan`. They keep
their stored type and are cast to the compute type when used (XLA's CPU backend casts 16-bit stacks
to float32 before the loop, which takes twice their memory while a batch runs). Residual stream,
norms, rotation and softmax are float32.
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from videomar_jax.checks import Count, Positive, UserError, check_fields
from videomar_jax.types import Array, Bool, Float, Int

ComputeType = Literal["float32", "bfloat16"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Qwen2Config:
    """Sizes of a decoder."""

    vocab_size: Count
    width: Count
    depth: Count
    heads: Count
    kv_heads: Count
    """Key-value heads; each serves heads / kv_heads query heads."""
    head_width: Count
    mlp_width: Count
    rope_theta: Positive = 1e6
    norm_epsilon: Positive = 1e-6
    window: Count | None = None
    """Tokens that the narrowest layer looks back; None if every layer attends to all."""
    positions: Count | None = None
    """The longest text that the model was made for; None if nothing says it."""
    dtype: ComputeType = "float32"
    """What matrix products are computed in."""

    def __post_init__(self):
        check_fields("Qwen2Config", self)
        if self.heads % self.kv_heads:
            raise UserError(
                f"heads = {self.heads} must be a multiple of kv_heads = {self.kv_heads}"
            )
        if self.head_width % 2:
            raise UserError(f"head_width = {self.head_width} must be even: pairs are rotated")

    @property
    def precision(self) -> jax.lax.Precision | None:
        """Full float32 products on accelerators too, which otherwise round them."""
        return jax.lax.Precision.HIGHEST if self.dtype == "float32" else None


class KeysValues(NamedTuple):
    """Rotated keys, and values, of tokens 0 .. P-1; stacked over the layers outside of a layer."""

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
    """x rotated by the positions first, first + 1, ... of its tokens; computed in float32, returned
    in the type of x."""
    half = x.shape[-1] // 2
    frequencies = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = (first + jnp.arange(x.shape[1], dtype=jnp.float32))[:, None] * frequencies
    cos, sin = jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]
    low, high = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    rotated = jnp.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1)
    return rotated.astype(x.dtype)


def attend(
    q: Float[Array, "B N heads d"],
    k: Float[Array, "B L kv d"],
    v: Float[Array, "B L kv d"],
    mask: Bool[Array, "B N L"],
    precision: jax.lax.Precision | None = None,
) -> Float[Array, "B N heads d"]:
    """Softmax attention, where query heads j*g .. (j+1)*g-1 share key-value head j.

    `mask` is True where a query may attend to a key. Scores and softmax are float32.
    """
    grouped = q.reshape(*q.shape[:2], k.shape[2], -1, q.shape[-1])
    options = {"preferred_element_type": jnp.float32, "precision": precision}
    scores = jnp.einsum("bnkgd,blkd->bkgnl", grouped, k, **options) * q.shape[-1] ** -0.5
    weights = jax.nn.softmax(jnp.where(mask[:, None, None], scores, -1e30), axis=-1)
    out = jnp.einsum("bkgnl,blkd->bnkgd", weights.astype(v.dtype), v, **options)
    return out.reshape(q.shape).astype(q.dtype)


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
        self, x: Float[Array, "B N D"], mask: Bool[Array, "B N L"], prefix: KeysValues | None = None
    ) -> tuple[Float[Array, "B N D"], KeysValues]:
        """The stream after this layer, and the keys and values of the tokens in x.

        Args:
            prefix: keys and values of the tokens before those in x.
        """
        u = self.attention_norm(x)
        with jax.named_scope("self_attention"):
            first = 0 if prefix is None else prefix.keys.shape[1]
            heads = (*x.shape[:2], -1, self.config.head_width)
            q = rotate(self.query(u).reshape(heads), first, self.config.rope_theta)
            k = rotate(self.key(u).reshape(heads), first, self.config.rope_theta)
            own = KeysValues(k, self.value(u).reshape(heads))
            kv = own
            if prefix is not None:
                kv = KeysValues(_join(prefix.keys, own.keys), _join(prefix.values, own.values))
            attended = attend(q, *kv, mask, self.config.precision)
            x = x + self.out(attended.reshape(*x.shape[:2], -1))
        with jax.named_scope("feed_forward"):
            u = self.mlp_norm(x)
            x = x + self.down(jax.nn.silu(self.gate(u)) * self.up(u))
        return x, own


def _join(
    prefix: Float[Array, "#B P kv d"], own: Float[Array, "B N kv d"]
) -> Float[Array, "B L kv d"]:
    """The prefix, the same for each row if it has one row, in front of `own`."""
    prefix = jnp.broadcast_to(prefix, (len(own), *prefix.shape[1:]))
    return jnp.concatenate([prefix, own], axis=1)


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
            prefix: keys and values [depth, 1 or B, P, kv, d] of tokens before these; every token
                attends to all of them.
        """
        count = tokens.shape[1]
        before = 0 if prefix is None else prefix.keys.shape[2]
        causal = jnp.tril(jnp.ones((count, before + count), bool), k=before)
        allowed = jnp.pad(mask, ((0, 0), (before, 0)), constant_values=True)
        attends = causal & allowed[:, None]

        def apply(x: Array, layer: tuple[Layer, KeysValues | None]) -> tuple[Array, KeysValues]:
            block, block_prefix = layer
            return block(x, attends, block_prefix)

        x = self.embed.embedding[...][tokens].astype(jnp.float32)
        x, kv = jax.lax.scan(apply, x, (self.layers, prefix))
        return self.norm(x), kv
