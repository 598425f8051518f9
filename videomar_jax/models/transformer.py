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
from typing import Any

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

# What the backward pass finds saved: only the input of each layer, or also the products with the
# parameters, so that attention and elementwise work is all that is computed again.
REMAT_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Context:
    """The text as the transformer sees it."""

    tokens: Any
    """Projected features [B, K, D]; in generation a `TextKV` of every layer instead."""
    mask: Bool[Array, "B K"] | None
    """False at padding; None: everything is seen."""
    pooled: Float[Array, "B D"] | None = None
    """A summary that is added to every token, in models that have one."""
    forecast: Float[Array, "N T S P"] | None = None
    """What frame 0 and the text let one expect of every frame (`models.forecast`). N rows: one a
    sample, where guidance has two of everything else."""


def table_init(key: Key, config: ModelConfig) -> Float[Array, "6 D"]:
    """Normal / sqrt(D); the two gate rows start at `gate_init` when it is given."""
    table = jax.random.normal(key, (6, config.width)) / jnp.sqrt(config.width)
    # As published the gates start near zero with a random sign.
    if config.gate_init is None:
        return table
    # Rows 2 and 5 are the gates.
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
        # Epsilons here, in `Transformer` and in the head are those of the published code.
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
        # The scopes make a profile read like the equations.
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
    # Clipped: the surplus index reads the last token, whose result nobody uses.
    index = indices.reshape(len(indices), 1, -1, *[1] * (x.ndim - 3))
    return jnp.take_along_axis(x, index, axis=2, mode="clip")


class Transformer(nnx.Module):
    """`depth` blocks and the final norm."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.config = config
        # One block with all parameters stacked, each layer from a key of its own.
        self.blocks = jax.vmap(lambda keys: Block(config, rngs=keys))(rngs.split(config.depth))
        self.norm = layer_norm(config.width, 1e-6, rngs)

    def __call__(
        self, x: Stream, context: Context, rotary: Rotary, attention_fn: AttentionFn
    ) -> Stream:
        """Runs all layers and the final norm; `attention_fn` says which frames see which."""

        def layer(x: Stream, block: Block) -> tuple[Stream, None]:
            block, x = constrain("layer", block), constrain("stream", x)
            text = block.cross_attention.keys_values(context.tokens)
            x, _ = block(x, text, context.mask, rotary, attention_fn)
            return x, None

        if self.config.remat != "none":
            # Inside a scan nothing can be merged across the two passes, so no barriers are needed.
            policy = REMAT_POLICIES[self.config.remat]
            layer = jax.checkpoint(layer, policy=policy, prevent_cse=False)
        unroll = min(self.config.unroll, self.config.depth)
        x, _ = jax.lax.scan(layer, x.astype(jnp.float32), self.blocks, unroll=unroll)
        return self.norm(constrain("stream", x))
