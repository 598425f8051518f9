"""The block and the stack.

With the rows (shift1, scale1, gate1, shift2, scale2, gate2) of a block's learned table, the same
for all tokens (the published model has no time step in its blocks):

    x = x + gate1 * SelfAttention( LN1(x) * (1 + scale1) + shift1 )                         (1)
    x = x + CrossAttention( x, text )                                                       (2)
    x = x + gate2 * FF( LN2(x) * (1 + scale2) + shift2 )                                    (3)

with FF: D -> 4D, GELU (tanh), 4D -> D. The layers' parameters are stacked on a leading axis and
applied with `jax.lax.scan`, so that one block is traced and compiled whatever the depth. The
residual stream and all statistics are float32; products run in the compute dtype.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from videomar_jax.models.attention import (
    AttentionFn,
    CrossAttention,
    KVCache,
    SelfAttention,
    TextKV,
)
from videomar_jax.models.config import ModelConfig
from videomar_jax.models.layers import layer_norm, linear
from videomar_jax.models.partitioning import constrain
from videomar_jax.models.rope import Rotary
from videomar_jax.types import Array, Bool, Float, Int, Key

Stream = Float[Array, "B T S D"]
SomeTokens = Float[Array, "B T _ D"]
TokenIndices = Int[Array, "B R"]
"""Tokens of a frame, by index; S, one behind the last, stands for any token."""

REMAT_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Context:
    """The text as the transformer sees it."""

    tokens: Float[Array, "B K D"] | TextKV
    """Projected features, or their keys and values for every layer."""
    mask: Bool[Array, "B K"] | None
    """False at padding; None: everything is seen."""
    pooled: Float[Array, "B D"] | None = None
    """A summary that is added to every token, in models that have one."""


class Layer(NamedTuple):
    """A block with its own text and cache; or all blocks, stacked."""

    block: "Block"
    text: TextKV | None
    cache: KVCache | None


def table_init(key: Key, config: ModelConfig) -> Float[Array, "6 D"]:
    """Normal / sqrt(D); the two gate rows start at `gate_init` when it is given."""
    table = jax.random.normal(key, (6, config.width)) / jnp.sqrt(config.width)
    if config.gate_init is None:
        return table
    return table.at[jnp.array([2, 5])].set(config.gate_init)


class FeedForward(nnx.Module):
    """Two linear layers without bias around a tanh-approximated GELU."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.up = linear(config.width, config.mlp_ratio * config.width, config, rngs)
        self.down = linear(config.mlp_ratio * config.width, config.width, config, rngs)

    def __call__(self, x: Stream) -> Stream:
        return self.down(jax.nn.gelu(self.up(x), approximate=True))


class Block(nnx.Module):
    """One layer, equations (1) to (3)."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.scale_shift_table = nnx.Param(table_init(rngs.params(), config))
        self.norm1 = layer_norm(config.width, 1e-5, rngs)
        self.self_attention = SelfAttention(config, rngs=rngs)
        self.cross_attention = CrossAttention(config, rngs=rngs)
        self.norm2 = layer_norm(config.width, 1e-5, rngs)
        self.feed_forward = FeedForward(config, rngs=rngs)

    def __call__(
        self,
        x: Stream,
        text: TextKV,
        text_mask: Bool[Array, "B K"] | None,
        rotary: Rotary,
        attention_fn: AttentionFn,
        token_indices: TokenIndices | None = None,
    ) -> tuple[SomeTokens, KVCache]:
        """The stream, and this layer's keys and values of the frames in `x`.

        With `token_indices` the stream of these tokens only, for which `attention_fn` must then
        give the values.
        """
        shift1, scale1, gate1, shift2, scale2, gate2 = self.scale_shift_table[...]
        with jax.named_scope("self_attention"):
            h = self.norm1(x) * (1 + scale1) + shift1
            attended, kv = self.self_attention(h, rotary, attention_fn)
            if token_indices is not None:
                x = take_tokens(x, token_indices)
            x = x + gate1 * attended
        with jax.named_scope("cross_attention"):
            x = x + self.cross_attention(x, text, text_mask)
        with jax.named_scope("feed_forward"):
            x = x + gate2 * self.feed_forward(self.norm2(x) * (1 + scale2) + shift2)
        return x, kv


def take_tokens(x: Float[Array, "B T S *rest"], indices: TokenIndices) -> Float[Array, "..."]:
    """These tokens of every frame, [B, T, R, *rest]."""
    index = indices.reshape(len(indices), 1, -1, *[1] * (x.ndim - 3))
    return jnp.take_along_axis(x, index, axis=2, mode="clip")


class Transformer(nnx.Module):
    """`depth` blocks and the final norm."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.blocks = jax.vmap(lambda keys: Block(config, rngs=keys))(rngs.split(config.depth))
        self.norm = layer_norm(config.width, 1e-6, rngs)

    def text_keys_values(self, context: Float[Array, "B K D"]) -> TextKV:
        """Keys and values of the text for every layer, [depth, B, K, n, d]."""
        return jax.vmap(lambda block: block.cross_attention.keys_values(context))(self.blocks)

    def __call__(
        self,
        x: Stream,
        context: Context,
        rotary: Rotary,
        attention_fn: AttentionFn,
        *,
        cache: KVCache | None = None,
        token_indices: TokenIndices | None = None,
        layers: Sequence[Layer] | None = None,
    ) -> SomeTokens:
        """Runs all layers and the final norm.

        Args:
            attention_fn: which frames see which; with a cache it also takes this layer's part of
                it, as the argument `cache`.
            cache: [depth, B, T, S, n, d] of clean frames.
            token_indices: tokens whose outcome is wanted, [B, T, R, D]; the last layer leaves out
                all others.
            layers: the layers one by one (`unstacked_layers`), with their own text and cache.
        """
        apply = self._layer_fn(context, rotary, attention_fn)
        x = x.astype(jnp.float32)
        if token_indices is None and layers is None:
            x, _ = self._scan(apply, x, context, cache)
        elif layers is None:
            x = self._scan_but_last(apply, x, self._stack(context, cache), token_indices)
        else:
            for layer in layers[:-1]:
                x, _ = apply(x, layer)
            x, _ = apply(x, layers[-1], token_indices)
        return self.norm(constrain("stream", x))

    def keys_values(
        self,
        x: Stream,
        context: Context,
        rotary: Rotary,
        attention_fn: AttentionFn,
        cache: KVCache | None = None,
    ) -> KVCache:
        """Keys and values of the frames in `x`, [depth, B, T, S, n, d]; arguments as above."""
        apply = self._layer_fn(context, rotary, attention_fn, keep_kv=True)
        return self._scan(apply, x.astype(jnp.float32), context, cache)[1]

    def unstacked_layers(self, text: TextKV, cache: KVCache) -> tuple[Layer, ...]:
        """The layers one by one: more to compile, but a stack that is applied many times is not
        copied at each use."""
        stack = Layer(self.blocks, text, cache)
        return tuple(_layer(stack, i) for i in range(self.config.depth))

    def _layer_fn(
        self, context: Context, rotary: Rotary, attention_fn: AttentionFn, keep_kv: bool = False
    ) -> Callable:
        """One layer as a function (x, layer, token indices) -> (x, its keys and values or None)."""

        def apply(x, layer, token_indices=None):
            block, x = constrain("layer", layer.block), constrain("stream", x)
            text, fn = layer.text, attention_fn
            if text is None:
                text = block.cross_attention.keys_values(context.tokens)
            if layer.cache is not None:
                fn = functools.partial(fn, cache=layer.cache)
            if token_indices is not None:
                fn = functools.partial(_attend_from, fn, token_indices)
            x, kv = block(x, text, context.mask, rotary, fn, token_indices)
            return x, kv if keep_kv else None

        if self.config.remat == "none":
            return apply
        # A scan needs no barriers against common subexpressions of forward and backward pass.
        policy = REMAT_POLICIES[self.config.remat]
        return jax.checkpoint(apply, policy=policy, prevent_cse=False)

    def _stack(self, context: Context, cache: KVCache | None) -> Layer:
        text = context.tokens if isinstance(context.tokens, TextKV) else None
        return Layer(self.blocks, text, cache)

    def _scan(
        self, apply: Callable, x: Stream, context: Context, cache: KVCache | None
    ) -> tuple[Stream, KVCache | None]:
        unroll = min(self.config.unroll, self.config.depth)
        return jax.lax.scan(apply, x, self._stack(context, cache), unroll=unroll)

    def _scan_but_last(
        self, apply: Callable, x: Stream, stack: Layer, token_indices: TokenIndices | None
    ) -> SomeTokens:
        """All layers but the last in a scan, the last one for `token_indices` only."""
        last = self.config.depth - 1

        # A scan over numbers: one over a shortened stack would copy all parameters.
        def body(x, i):
            return apply(x, _layer(stack, i))[0], None

        x, _ = jax.lax.scan(body, x, jnp.arange(last))
        return apply(x, _layer(stack, last), token_indices)[0]


def _layer(stack: Layer, i: Array | int) -> Layer:
    return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, i, keepdims=False), stack)


def _attend_from(fn: AttentionFn, indices: TokenIndices, q: Array, k: Array, v: Array) -> Array:
    return fn(take_tokens(q, indices), k, v)
