"""The block and the stack.

With the rows (shift1, scale1, gate1, shift2, scale2, gate2) of a block's learned table, the same
for all tokens:

    x = x + gate1 * SelfAttention( LN1(x) * (1 + scale1) + shift1 )
    x = x + CrossAttention( x, text )
    x = x + gate2 * FF( LN2(x) * (1 + scale2) + shift2 ),     FF: D → 4D, GELU (tanh), 4D → D

The layers' parameters are stacked on a leading axis and applied with `jax.lax.scan`: one block is
traced and compiled whatever the depth. The residual stream and all statistics are float32; matmuls
run in the compute dtype.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from videomar_jax.models.attention import CrossAttention, KVCache, Mix, SelfAttention, TextKV
from videomar_jax.models.config import ModelConfig
from videomar_jax.models.layers import layer_norm, linear
from videomar_jax.models.partitioning import laid_out
from videomar_jax.models.rope import Rotation
from videomar_jax.types import Array, Bool, Float, Int, Key

Stream = Float[Array, "B T S D"]
SomeRows = Float[Array, "B T _ D"]
Rows = Int[Array, "B R"]
"""Places of tokens in their frame; one behind the last stands for any token."""


def table_init(key: Key, config: ModelConfig) -> Float[Array, "6 D"]:
    """Normal / sqrt(D); the two gate rows start at `gate_init` when it is given."""
    table = jax.random.normal(key, (6, config.width)) / jnp.sqrt(config.width)
    return table if config.gate_init is None else table.at[jnp.array([2, 5])].set(config.gate_init)


class FeedForward(nnx.Module):
    """Two linear layers without bias around a tanh-approximated GELU."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.up = linear(config.width, config.mlp_ratio * config.width, config, rngs)
        self.down = linear(config.mlp_ratio * config.width, config.width, config, rngs)

    def __call__(self, x: Stream) -> Stream:
        return self.down(jax.nn.gelu(self.up(x), approximate=True))


class Block(nnx.Module):
    """One layer: attention over frames, attention to text, feed-forward."""

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
        rotation: Rotation,
        mix: Mix,
        rows: Rows | None = None,
    ) -> tuple[SomeRows, KVCache]:
        """Returns the stream and this layer's keys and values of the frames in `x`. With `rows` the
        stream of these tokens only; then `mix` is to give no others either."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.scale_shift_table[...]
        with jax.named_scope("self_attention"):
            attended, kv = self.self_attention(self.norm1(x) * (1 + scale1) + shift1, rotation, mix)
            x = (x if rows is None else take_rows(x, rows)) + gate1 * attended
        with jax.named_scope("cross_attention"):
            x = x + self.cross_attention(x, text, text_mask)
        with jax.named_scope("feed_forward"):
            x = x + gate2 * self.feed_forward(self.norm2(x) * (1 + scale2) + shift2)
        return x, kv


def take_rows(x: Float[Array, "B T S *rest"], rows: Rows) -> Float[Array, "B T R *rest"]:
    """The tokens at `rows` of every frame."""
    index = rows.reshape(len(rows), 1, -1, *[1] * (x.ndim - 3))
    return jnp.take_along_axis(x, index, axis=2, mode="clip")


Layer = tuple[Block, TextKV | None, KVCache | None]
"""A block, and what it has of the text and of finished frames."""

REMAT_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


class Transformer(nnx.Module):
    """`depth` blocks applied with one scan, and the final norm."""

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
        text: Float[Array, "B K D"] | TextKV,
        text_mask: Bool[Array, "B K"] | None,
        rotation: Rotation,
        mix: functools.partial,
        *,
        cache: KVCache | None = None,
        keep_kv: bool = False,
        rows: Rows | None = None,
        layers: Sequence[Layer] | None = None,
    ) -> tuple[SomeRows, KVCache | None]:
        """Runs all layers and the final norm.

        Args:
            text: the projected context, or its keys and values for every layer
                (`text_keys_values`).
            mix: which frames see which; with `cache` it takes this layer's slice as the argument
                `cache`.
            cache: [depth, B, T, S, n, d] of finished frames.
            keep_kv: also return the keys and values of the frames in `x`, [depth, B, T, S, n, d].
            rows: tokens whose outcome is wanted, [B, T, R, D]; the last layer works on no others.
            layers: blocks, text and cache cut apart (`apart`), which spares copying each out of the
                stack in a pass.
        """

        def body(x, layer, rows=None):
            block, layer_text, layer_cache = layer
            block, x = laid_out("layer", block), laid_out("stream", x)
            text_kv = block.cross_attention.keys_values(text) if layer_text is None else layer_text
            layer_mix = mix if layer_cache is None else functools.partial(mix, cache=layer_cache)
            if rows is not None:
                layer_mix = functools.partial(_mix_rows, layer_mix, rows)
            x, kv = block(x, text_kv, text_mask, rotation, layer_mix, rows)
            return x, (kv if keep_kv else None)

        if self.config.remat != "none":
            body = jax.checkpoint(body, policy=REMAT_POLICIES[self.config.remat], prevent_cse=False)
        x = x.astype(jnp.float32)
        if rows is None and layers is None:
            x, kv = jax.lax.scan(
                body, x, self._stack(text, cache), unroll=min(self.config.unroll, self.config.depth)
            )
        else:
            x, kv = self._in_turn(body, x, layers or self._stack(text, cache), rows), None
        return self.norm(laid_out("stream", x)), kv

    def _stack(self, text: Array | TextKV, cache: KVCache | None) -> Layer:
        """All layers, stacked."""
        return self.blocks, (text if isinstance(text, TextKV) else None), cache

    def apart(self, text: TextKV, cache: KVCache) -> tuple[Layer, ...]:
        """All layers, each on its own: more to compile, for a stack that is applied many times."""
        return tuple(_layer(self._stack(text, cache), i) for i in range(self.config.depth))

    def _in_turn(
        self, body, x: Stream, layers: Layer | Sequence[Layer], rows: Rows | None
    ) -> SomeRows:
        """Applies the layers one after the other, the last one to `rows` only."""
        last = self.config.depth - 1
        if isinstance(layers[0], Block):  # a stack
            x, _ = jax.lax.scan(
                lambda x, i: (body(x, _layer(layers, i))[0], None), x, jnp.arange(last)
            )
            return body(x, _layer(layers, last), rows)[0]
        for layer in layers[:last]:
            x, _ = body(x, layer)
        return body(x, layers[last], rows)[0]


def _layer(stack: Layer, i: Array | int) -> Layer:
    return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, i, keepdims=False), stack)


def _mix_rows(mix: Mix, rows: Rows, q: Array, k: Array, v: Array) -> Array:
    return mix(take_rows(q, rows), k, v)
