"""VideoMAR: a transformer over continuous video tokens, causal over frames and bidirectional inside
a frame (paper, section 3).

    h_{t,s} = mask_token where token s of frame t is hidden, else W_z x_{t,s} + b           (1)
    z = Transformer( h; text ),  where frame t sees the frames <= t                         (2)
    x_{t,s} ~ head( . | z_{t,s} )  for hidden tokens             (`models.diffusion_head`)  (3)

Three ways to compute z, with the same parameters and the same result:

    model(tokens, mask, ...)          all frames at once
    model.teacher_forced(...)         training on every next frame: clean frames, and a masked copy
                                      of each that sees the clean frames before it
    model.predict_frame(...)          generation: one frame against a cache of clean frames, which
    model.commit_frame(...)           adds a finished frame to the cache
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from videomar_jax.diffusion.base import Process
from videomar_jax.models import attention
from videomar_jax.models.attention import KVCache, VisibleCache
from videomar_jax.models.config import ModelConfig
from videomar_jax.models.diffusion_head import TIME_FEATURES, DiffusionHead, time_features
from videomar_jax.models.layers import linear
from videomar_jax.models.patchify import positions
from videomar_jax.models.rope import PositionScale, Rotary, rotary_embedding
from videomar_jax.models.transformer import Context, Layer, TokenIndices, Transformer
from videomar_jax.types import Array, Bool, Float, TextFeatures, TextMask, TokenMask, Tokens

Grid = tuple[int, int]
"""(H, W): token rows and columns of a frame."""


class History(NamedTuple):
    """Which frames are earlier ones that others continue, and the share of noise in them."""

    noise_level: Float[Array, "B"]  # 0: clean
    frames: Bool[Array, "#B T"]


class VideoMAR(nnx.Module):
    """The model. `VideoMAR(ModelConfig(...), rngs=nnx.Rngs(0))` makes one with random weights."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.config = config
        small = nnx.initializers.normal(0.02)
        self.mask_token = nnx.Param(small(rngs.params(), (config.width,)))
        self.null_context = nnx.Param(small(rngs.params(), (config.text_tokens, config.width)))
        self.z_proj = linear(config.token_dim, config.width, config, rngs, use_bias=True)
        self.context_embed = linear(config.text_width, config.width, config, rngs, use_bias=True)
        self.transformer = Transformer(config, rngs=rngs)
        self.head = DiffusionHead(config, rngs=rngs)
        # Ours, each off by default.
        if config.pooled_text:
            self.pooled_embed = linear(config.width, config.width, config, rngs)
        if config.regression:
            self.regression = linear(config.width, config.token_dim, config, rngs, use_bias=True)
        if config.history_levels:
            # Starts at zero, so that a model without levels can be continued with them.
            self.history_embed = linear(
                TIME_FEATURES, config.width, config, rngs, use_bias=True, std=0.0
            )

    @property
    def process(self) -> Process:
        """The diffusion process of the head."""
        return self.config.process

    # Inputs

    def context(
        self, text: TextFeatures, text_mask: TextMask, drop: Bool[Array, "B"] | None = None
    ) -> Context:
        """Projects text features; samples with `drop` True get the learned null context instead.

        Args:
            text: features of the text encoder.
            text_mask: True where a text token is not padding.
        Raises:
            ValueError: the text has another length or width than the model was built for.
        """
        expected = (self.config.text_tokens, self.config.text_width)
        if text.shape[1:] != expected:
            raise ValueError(
                f"Text features have {text.shape[1:]} tokens x values; this model takes {expected}."
            )
        drop = jnp.zeros(len(text), bool) if drop is None else drop
        projected = self.context_embed(text).astype(jnp.float32)
        tokens = jnp.where(drop[:, None, None], self.null_context[...], projected)
        mask = text_mask | (drop[:, None] & (self.config.null_text_mask == "ones"))
        pooled = None
        if self.config.pooled_text:
            # At least 1: a text that is masked as a whole has the mean 0, not 0/0.
            count = jnp.maximum(jnp.sum(mask, axis=1), 1)
            weight = mask[..., None] / count[:, None, None]
            pooled = self.pooled_embed(jnp.sum(tokens * weight, axis=1))
        return Context(tokens, mask if self.config.text_mask else None, pooled)

    def with_keys_values(self, context: Context) -> Context:
        """The context with the text's keys and values of every layer, for many passes."""
        return dataclasses.replace(
            context, tokens=self.transformer.text_keys_values(context.tokens)
        )

    def embed(
        self, tokens: Tokens, mask: TokenMask, context: Context, history: History | None = None
    ) -> Float[Array, "B T S D"]:
        """Equation (1), and what a model of ours adds to it: the pooled text, and on earlier frames
        the embedding of their noise level."""
        # Hidden values are zeroed before the projection as well: behind it, a NaN among them would
        # still reach the gradient of W_z, as 0 * NaN.
        visible = jnp.where(mask[..., None], 0.0, tokens)
        projected = self.z_proj(visible).astype(jnp.float32)
        x = jnp.where(mask[..., None], self.mask_token[...], projected)
        if history is not None and self.config.history_levels:
            features = time_features(history.noise_level)
            noise_embedding = self.history_embed(features).astype(jnp.float32)
            earlier = history.frames[..., None, None]
            x = x + jnp.where(earlier, noise_embedding[:, None, None, :], 0.0)
        return x if context.pooled is None else x + context.pooled[:, None, None, :]

    def rotary(self, frames: Array | int, grid: Grid, scale: PositionScale | None = None) -> Rotary:
        """Rotary tables of the frames 0..n-1, or of an array of frame numbers."""
        place = positions(frames, grid)
        return rotary_embedding(place, self.config.rope_channels, self.config.rope_base, scale)

    def frame_rotary(
        self, number: Array | int, grid: Grid, scale: PositionScale | None = None
    ) -> Rotary:
        """Rotary tables of frame `number` alone, as generation places it."""
        absolute = self.config.rope_frame_origin == "absolute"
        return self.rotary(jnp.asarray(number if absolute else 0)[None], grid, scale)

    def attention_fn(self, function: Callable, **options) -> functools.partial:
        """One of the frame patterns of `models.attention`, with the configured kernel."""
        return functools.partial(function, kernel=self.config.attention, **options)

    # Whole clips

    def __call__(
        self,
        tokens: Tokens,
        mask: TokenMask,
        context: Context,
        grid: Grid,
        *,
        causal: bool = True,
        history: History | None = None,
    ) -> Float[Array, "B T S D"]:
        """z of every token, all frames in one pass.

        Args:
            mask: True where a token is hidden.
            causal: False lets frames see later ones (ablation only).
            history: the earlier frames, for a model with `history_levels`.
        """
        h = self.embed(tokens, mask, context, history)
        pattern = attention.frame_causal if causal else attention.whole_clip
        rotary = self.rotary(tokens.shape[1], grid)
        return self.transformer(h, context, rotary, self.attention_fn(pattern))

    def teacher_forced(
        self,
        tokens: Tokens,
        mask: Bool[Array, "B M S"],
        context: Context,
        grid: Grid,
        *,
        earlier: Float[Array, "B T-1 S P"] | None = None,
        noise_level: Float[Array, "B"] | None = None,
    ) -> Float[Array, "B M S D"]:
        """z of masked copies of the frames 1..T-1 (of frame 0 for an image), M = max(T - 1, 1).

        Equal to one causal pass for each frame, but in a single pass over T-1 clean and M masked
        frames (complete teacher forcing, MAGI 2025).

        Args:
            mask: hidden tokens of the masked copies.
            earlier: the frames 0..T-2 as later frames see them, if noise was added; None: clean.
            noise_level: the share of noise in them; None: 0.
        """
        clips, frames = tokens.shape[:2]
        clean = frames - 1
        first = min(clean, 1)
        if earlier is None:
            earlier = tokens[:, :clean]
        seen = jnp.concatenate([earlier, tokens[:, first:]], axis=1)
        hidden = jnp.concatenate([jnp.zeros_like(mask[:, :clean]), mask], axis=1)
        history = _history(noise_level, jnp.arange(hidden.shape[1]) < clean, clips)
        h = self.embed(seen, hidden, context, history)
        numbers = jnp.concatenate([jnp.arange(clean), jnp.arange(first, frames)])
        pattern = self.attention_fn(attention.teacher_forcing, clean=clean)
        z = self.transformer(h, context, self.rotary(numbers, grid), pattern)
        return z[:, clean:]

    # Generation

    def empty_cache(self, batch: int, frames: int, tokens: int) -> KVCache:
        """Slots for `frames` frames of `tokens` tokens: zeros [depth, B, T, S, n, d] in the compute
        dtype."""
        c = self.config
        shape = (c.depth, batch, frames, tokens, c.num_heads, c.head_dim)
        return KVCache(jnp.zeros(shape, c.dtype), jnp.zeros(shape, c.dtype))

    def predict_frame(
        self,
        tokens: Float[Array, "B S P"],
        mask: Bool[Array, "B S"],
        rotary: Rotary,
        context: Context,
        past: VisibleCache,
        *,
        token_indices: TokenIndices | None = None,
        layers: Sequence[Layer] | None = None,
    ) -> Float[Array, "B R D"]:
        """z of one frame, given the clean frames before it.

        Args:
            rotary: that of the frame (`frame_rotary`).
            past: the clean frames that it sees.
            token_indices: tokens whose z is wanted; None: all S.
            layers: the layers with text and cache, one by one (`Transformer.unstacked_layers`).
        """
        h = self.embed(tokens[:, None], mask[:, None], context)
        pattern = self.attention_fn(attention.cached, visible=past.slots)
        z = self.transformer(
            h,
            context,
            rotary,
            pattern,
            cache=past.cache,
            token_indices=token_indices,
            layers=layers,
        )
        return z[:, 0]

    def clean_frame_kv(
        self,
        tokens: Float[Array, "B S P"],
        rotary: Rotary,
        context: Context,
        past: VisibleCache,
        noise_level: Float[Array, "B"] | None = None,
    ) -> KVCache:
        """Keys and values of a finished frame, [depth, B, 1, S, n, d]: a pass with nothing hidden.

        `noise_level` is the share of noise in `tokens`, for models with `history_levels`.
        """
        mask = jnp.zeros(tokens.shape[:2], bool)
        history = _history(noise_level, jnp.ones(1, bool), len(tokens))
        h = self.embed(tokens[:, None], mask[:, None], context, history)
        pattern = self.attention_fn(attention.cached, visible=past.slots)
        return self.transformer.keys_values(h, context, rotary, pattern, past.cache)

    def commit_frame(
        self,
        tokens: Float[Array, "B S P"],
        number: Array,
        context: Context,
        cache: KVCache,
        grid: Grid,
        scale: PositionScale | None = None,
        noise_level: Float[Array, "B"] | None = None,
    ) -> KVCache:
        """The cache with finished frame `number` in slot `number`; it sees the slots before it."""
        rotary = self.frame_rotary(number, grid, scale)
        past = VisibleCache(cache, jnp.arange(cache.keys.shape[2]) < number)
        kv = self.clean_frame_kv(tokens, rotary, context, past, noise_level)
        return write_slot(cache, kv, number)


def write_slot(cache: KVCache, kv: KVCache, slot: Array) -> KVCache:
    """The cache with the keys and values of one frame in `slot`."""
    put = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=slot, axis=2)
    return KVCache(*(put(old, new.astype(old.dtype)) for old, new in zip(cache, kv, strict=True)))


def _history(
    noise_level: Float[Array, "B"] | None, frames: Bool[Array, "T"], clips: int
) -> History:
    return History(jnp.zeros(clips) if noise_level is None else noise_level, frames[None])
