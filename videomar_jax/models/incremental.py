"""z of one frame at a time, against a cache of the frames before it: how generation runs the model.

    cache = empty_cache(model, batch, frames, tokens)
    cache = commit_frame(model, tokens, t, context, cache, grid)    a finished frame joins it
    z     = predict_frame(model, tokens, mask, rotary, context, VisibleCache(cache, slots))

z equals that of the pass over all frames (`model(...)`), in which nothing is hidden in the earlier
frames: by causality their keys and values do not depend on later ones, so they are computed once.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from videomar_jax.models.attention import AttentionFn, Heads, KVCache, TextKV, attend_frames
from videomar_jax.models.kernels import Kernel
from videomar_jax.models.partitioning import constrain
from videomar_jax.models.rope import PositionScale, Rotary
from videomar_jax.models.transformer import Block, Context, TokenIndices, take_tokens
from videomar_jax.models.videomar import Grid, VideoMAR
from videomar_jax.types import Array, Bool, Float


class VisibleCache(NamedTuple):
    """A cache, and which of its L slots hold a frame that the current frame sees."""

    cache: KVCache
    """[depth, B, L, S, n, d]."""
    slots: Bool[Array, "L"] | None = None
    """None: all of them, which spares the mask."""
    hint: Float[Array, "B S D"] | None = None
    """What hidden tokens know of the frame before (`linear_prior.frame_hint`)."""


class Layer(NamedTuple):
    """A block with its own keys and values of the text and of earlier frames; or all of them,
    stacked."""

    block: Block
    text: TextKV
    cache: KVCache


# The cache


def empty_cache(model: VideoMAR, batch: int, frames: int, tokens: int) -> KVCache:
    """Slots for `frames` frames of `tokens` tokens: zeros [depth, B, T, S, n, d] in the compute
    dtype."""
    c = model.config
    shape = (c.depth, batch, frames, tokens, c.num_heads, c.head_dim)
    return KVCache(jnp.zeros(shape, c.dtype), jnp.zeros(shape, c.dtype))


def write_slot(cache: KVCache, kv: KVCache, slot: Array) -> KVCache:
    """The cache with the keys and values of one frame in `slot`."""
    write = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=slot, axis=2)
    return KVCache(
        write(cache.keys, kv.keys.astype(cache.keys.dtype)),
        write(cache.values, kv.values.astype(cache.values.dtype)),
    )


def commit_frame(
    model: VideoMAR,
    tokens: Float[Array, "B S P"],
    number: Array,
    context: Context,
    cache: KVCache,
    grid: Grid,
    scale: PositionScale | None = None,
    noise_level: Float[Array, "B"] | None = None,
) -> KVCache:
    """The cache with finished frame `number` in slot `number`; it sees the slots before it."""
    past = VisibleCache(cache, jnp.arange(cache.keys.shape[2]) < number)
    rotary = frame_rotary(model, number, grid, scale)
    kv = clean_frame_kv(model, tokens, rotary, context, past, noise_level)
    return write_slot(cache, kv, number)


# What the passes over one frame share


def with_keys_values(model: VideoMAR, context: Context) -> Context:
    """The context with the text's keys and values of every layer, [depth, B, K, n, d], which stay
    the same for a whole video."""

    def keys_values(block: Block) -> TextKV:
        return block.cross_attention.keys_values(context.tokens)

    return dataclasses.replace(context, tokens=jax.vmap(keys_values)(model.transformer.blocks))


def frame_rotary(
    model: VideoMAR, number: Array | int, grid: Grid, scale: PositionScale | None = None
) -> Rotary:
    """Rotary tables of frame `number` alone."""
    absolute = model.config.rope_frame_origin == "absolute"
    return model.rotary(jnp.asarray(number if absolute else 0)[None], grid, scale)


def cached(
    q: Float[Array, "B 1 Q n d"],
    k: Heads,
    v: Heads,
    *,
    cache: KVCache,
    slots: Bool[Array, "L"] | None,
    kernel: Kernel = "auto",
) -> Float[Array, "B 1 Q n d"]:
    """Queries of one frame see the frames in these slots of the cache (None: all) and their own."""
    keys = jnp.concatenate([cache.keys.astype(k.dtype), k], axis=1)
    values = jnp.concatenate([cache.values.astype(v.dtype), v], axis=1)
    mask = None
    if slots is not None:
        own = jnp.ones(k.shape[1] * k.shape[2], bool)
        mask = jnp.concatenate([jnp.repeat(slots, k.shape[2]), own])[None]
    return attend_frames(q, keys, values, key_mask=mask, kernel=kernel)


# The two passes


def predict_frame(
    model: VideoMAR,
    tokens: Float[Array, "B S P"],
    mask: Bool[Array, "B S"],
    rotary: Rotary,
    context: Context,
    past: VisibleCache,
    *,
    token_indices: TokenIndices | None = None,
    layers: Sequence[Layer] | None = None,
) -> Float[Array, "B R D"]:
    """z of one frame, given the frames before it.

    Args:
        rotary: that of the frame (`frame_rotary`).
        context: with keys and values (`with_keys_values`).
        token_indices: tokens whose z is wanted, [B, R]: the last layer leaves out all others.
            None: all S.
        layers: the layers with text and cache, one by one (`unstacked_layers`).
    """
    x = model.embed(tokens[:, None], mask[:, None], context).astype(jnp.float32)
    if past.hint is not None:
        x = x + jnp.where(mask[..., None], past.hint, 0.0)[:, None]
    apply = _layer_fn(model, context, rotary, past)
    if token_indices is None and layers is None:
        x, _ = _scan(model, apply, x, context, past)
    elif layers is None:
        x = _scan_but_last(apply, x, _stack(model, context, past), token_indices)
    else:
        for layer in layers[:-1]:
            x, _ = apply(x, layer)
        x, _ = apply(x, layers[-1], token_indices)
    return model.transformer.norm(constrain("stream", x))[:, 0]


def clean_frame_kv(
    model: VideoMAR,
    tokens: Float[Array, "B S P"],
    rotary: Rotary,
    context: Context,
    past: VisibleCache,
    noise_level: Float[Array, "B"] | None = None,
) -> KVCache:
    """Keys and values of a finished frame, [depth, B, 1, S, n, d]: a pass with nothing hidden.

    Arguments as in `predict_frame`; `noise_level` is the share of noise in `tokens`, for models
    with `history_levels`.
    """
    mask = jnp.zeros(tokens.shape[:2], bool)
    earlier = jnp.ones((1, 1), bool)
    x = model.embed(tokens[:, None], mask[:, None], context, earlier, noise_level)
    apply = _layer_fn(model, context, rotary, past)
    return _scan(model, apply, x.astype(jnp.float32), context, past)[1]


# Ways through the layers


def unstacked_layers(model: VideoMAR, text: TextKV, cache: KVCache) -> tuple[Layer, ...]:
    """The layers one by one: more to compile, but a stack that is applied many times is not copied
    at each use."""
    stack = Layer(model.transformer.blocks, text, cache)
    return tuple(_layer(stack, i) for i in range(model.config.depth))


def _layer_fn(model: VideoMAR, context: Context, rotary: Rotary, past: VisibleCache) -> Callable:
    """One layer as a function (x, layer, token indices) -> (x, its keys and values)."""

    def apply(x: Array, layer: Layer, token_indices: TokenIndices | None = None):
        block, x = constrain("layer", layer.block), constrain("stream", x)
        fn = model.attention_fn(cached, cache=layer.cache, slots=past.slots)
        if token_indices is not None:
            fn = functools.partial(_attend_from, fn, token_indices)
        return block(x, layer.text, context.mask, rotary, fn, token_indices)

    return apply


def _scan(
    model: VideoMAR, apply: Callable, x: Array, context: Context, past: VisibleCache
) -> tuple[Array, KVCache]:
    unroll = min(model.config.unroll, model.config.depth)
    return jax.lax.scan(apply, x, _stack(model, context, past), unroll=unroll)


def _scan_but_last(
    apply: Callable, x: Array, stack: Layer, token_indices: TokenIndices | None
) -> Array:
    """All layers but the last in a scan, the last one for `token_indices` only."""
    last = jax.tree.leaves(stack)[0].shape[0] - 1

    # A scan over numbers: one over a shortened stack would copy all parameters.
    def body(x, i):
        return apply(x, _layer(stack, i))[0], None

    x, _ = jax.lax.scan(body, x, jnp.arange(last))
    return apply(x, _layer(stack, last), token_indices)[0]


def _stack(model: VideoMAR, context: Context, past: VisibleCache) -> Layer:
    if not isinstance(context.tokens, TextKV):
        raise TypeError("The context has no keys and values yet: use `with_keys_values`.")
    return Layer(model.transformer.blocks, context.tokens, past.cache)


def _layer(stack: Layer, i: Array | int) -> Layer:
    return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, i, keepdims=False), stack)


def _attend_from(fn: AttentionFn, indices: TokenIndices, q: Array, k: Array, v: Array) -> Array:
    return fn(take_tokens(q, indices), k, v)
