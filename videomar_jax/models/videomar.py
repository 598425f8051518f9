"""VideoMAR: a transformer over continuous video tokens, causal over frames and bidirectional inside
a frame.

    tokens ─ z_proj ─► hidden ones replaced by mask_token ─► transformer (text by cross attention)
    ─► z z conditions the diffusion head, which draws the hidden tokens (`models.diffusion_head`).

Three ways to run it, the same weights and the same z:

    model(tokens, mask, …)            all frames at once, frame t sees frames <= t
    model.teacher_forced(…)           training on every next frame: clean frames plus a masked copy
    of each
    model.frame(…) / model.remember   generation: one frame against a cache of finished frames
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from videomar_jax.diffusion.base import Process
from videomar_jax.models import attention
from videomar_jax.models.attention import KVCache, TextKV
from videomar_jax.models.config import ModelConfig
from videomar_jax.models.diffusion_head import FEATURES, DiffusionHead, time_features
from videomar_jax.models.layers import linear
from videomar_jax.models.patchify import positions
from videomar_jax.models.rope import PositionScale, rotation
from videomar_jax.models.transformer import Layer, Rows, Transformer
from videomar_jax.types import Array, Bool, Float, TextFeatures, TextMask, TokenMask, Tokens

Grid = tuple[int, int]
"""(H, W): token rows and columns of a frame."""


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["tokens", "mask", "pooled"], meta_fields=[]
)
@dataclasses.dataclass(frozen=True)
class Context:
    """The text as the transformer sees it."""

    tokens: (
        Float[Array, "B K D"] | TextKV
    )  # projected features, or their keys and values for every layer
    mask: Bool[Array, "B K"] | None
    pooled: Float[Array, "B D"] | None = None


class History(NamedTuple):
    """Which frames are finished ones that others continue, and the share of noise in them (0:
    clean)."""

    level: Float[Array, "B"]
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
        if config.pooled_text:
            self.pooled_embed = linear(config.width, config.width, config, rngs)
        if config.regression:
            self.regression = linear(config.width, config.token_dim, config, rngs, use_bias=True)
        if config.history_levels:
            self.history_embed = linear(
                FEATURES, config.width, config, rngs, use_bias=True, std=0.0
            )

    @property
    def process(self) -> Process:
        """The diffusion process of the head."""
        return self.config.process

    # ---- text

    def context(
        self, text: TextFeatures, text_mask: TextMask, drop: Bool[Array, "B"] | None = None
    ) -> Context:
        """Projects text features; samples with `drop` True get the learned null context instead.

        Args:
            text: [B, K, E] features of the text encoder.
            text_mask: [B, K], True where a text token is not padding.
        Raises:
            ValueError: the text has another length or width than the model was built for.
        """
        expected = (self.config.text_tokens, self.config.text_width)
        if text.shape[1:] != expected:
            raise ValueError(
                f"Text features have {text.shape[1:]} tokens x values; this model takes {expected}."
            )
        drop = jnp.zeros(len(text), bool) if drop is None else drop
        tokens = jnp.where(
            drop[:, None, None],
            self.null_context[...],
            self.context_embed(text).astype(jnp.float32),
        )
        mask = text_mask | (drop[:, None] & (self.config.null_text_mask == "ones"))
        pooled = None
        if self.config.pooled_text:
            weight = mask[..., None] / jnp.sum(mask, axis=1)[:, None, None]
            pooled = self.pooled_embed(jnp.sum(tokens * weight, axis=1))
        return Context(tokens, mask if self.config.text_mask else None, pooled)

    def with_keys_values(self, context: Context) -> Context:
        """The context with the text's keys and values of every layer computed once, for many
        passes."""
        return dataclasses.replace(
            context, tokens=self.transformer.text_keys_values(context.tokens)
        )

    # ---- passes

    def embed(
        self, tokens: Tokens, mask: TokenMask, context: Context, history: History | None = None
    ) -> Float[Array, "B T S D"]:
        """Token projection, hidden tokens replaced by the mask token; a model with `history_levels`
        adds to every token of a finished frame the embedding of its noise level."""
        x = jnp.where(
            mask[..., None], self.mask_token[...], self.z_proj(tokens).astype(jnp.float32)
        )
        if history is not None and self.config.history_levels:
            told = self.history_embed(time_features(history.level)).astype(jnp.float32)
            x = x + jnp.where(history.frames[..., None, None], told[:, None, None, :], 0.0)
        return x if context.pooled is None else x + context.pooled[:, None, None, :]

    def rotation(self, frames: Array | int, grid: Grid, scale: PositionScale | None = None):
        """Rotary tables for the given frame numbers on a token grid."""
        return rotation(
            positions(frames, grid), self.config.rope_channels, self.config.rope_base, scale
        )

    def mix(self, function, **settings):
        """One of the frame patterns of `models.attention`, with the configured kernel."""
        return functools.partial(function, kernel=self.config.attention, **settings)

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
        """z of every token, all frames in one pass; `causal=False` lets frames see later ones
        (ablation only). `history` tells a model with `history_levels` which frames are finished."""
        mix = self.mix(attention.frame_causal if causal else attention.whole_clip)
        turns = self.rotation(tokens.shape[1], grid)
        x = self.embed(tokens, mask, context, history)
        return self.transformer(x, context.tokens, context.mask, turns, mix)[0]

    def teacher_forced(
        self,
        tokens: Tokens,
        mask: Bool[Array, "B M S"],
        context: Context,
        grid: Grid,
        *,
        earlier: Float[Array, "B T-1 S P"] | None = None,
        level: Float[Array, "B"] | None = None,
    ) -> Float[Array, "B M S D"]:
        """z of the masked copies of the frames 1..T-1 (of frame 0 for an image), each given clean
        earlier frames.

        Equal to one causal pass for each frame, in a single pass over T-1 clean and M masked frames
        (complete teacher forcing, MAGI 2025). `mask` belongs to the masked copies; M = max(T - 1,
        1).

        Args:
            earlier: the frames 0..T-2 as later frames see them, where noise was added; None: as
                they are.
            level: the share of noise in them; None: 0.
        """
        frames = tokens.shape[1]
        clean = frames - 1
        masked = tokens[:, min(clean, 1) :]
        hidden = jnp.concatenate([jnp.zeros_like(mask[:, :clean]), mask], axis=1)
        history = _history(level, jnp.arange(hidden.shape[1]) < clean, len(tokens))
        seen = jnp.concatenate([tokens[:, :clean] if earlier is None else earlier, masked], axis=1)
        x = self.embed(seen, hidden, context, history)
        numbers = jnp.concatenate([jnp.arange(clean), jnp.arange(min(clean, 1), frames)])
        mix = self.mix(attention.teacher_forcing, clean=clean)
        z, _ = self.transformer(x, context.tokens, context.mask, self.rotation(numbers, grid), mix)
        return z[:, clean:]

    # ---- generation

    def empty_cache(self, batch: int, frames: int, tokens: int) -> KVCache:
        """Room for `frames` finished frames of `tokens` tokens: zeros [depth, B, T, S, n, d] in the
        compute dtype."""
        c = self.config
        shape = (c.depth, batch, frames, tokens, c.num_heads, c.head_dim)
        return KVCache(jnp.zeros(shape, c.dtype), jnp.zeros(shape, c.dtype))

    def frame(
        self,
        tokens: Float[Array, "B S P"],
        mask: Bool[Array, "B S"],
        number: Array,
        context: Context,
        cache: KVCache,
        grid: Grid,
        scale: PositionScale | None = None,
        *,
        seen: Bool[Array, "L"] | str = "earlier",
        rows: Rows | None = None,
        layers: Sequence[Layer] | None = None,
    ) -> Float[Array, "B R D"]:
        """z of frame `number`, given the finished frames in the cache (which is only read).

        Args:
            seen: which places of the cache hold something to see: a mask, "all", or "earlier" for
                the first `number`.
            rows: tokens whose z is wanted; None: all S.
            layers: the transformer's layers with text and cache, cut apart (`Transformer.apart`).
        """
        return self._frame(
            tokens, mask, number, context, cache, grid, scale, seen=seen, rows=rows, layers=layers
        )[0]

    def finished(
        self,
        tokens: Float[Array, "B S P"],
        number: Array,
        context: Context,
        cache: KVCache,
        grid: Grid,
        scale: PositionScale | None = None,
        level: Float[Array, "B"] | None = None,
        *,
        seen: Bool[Array, "L"] | str = "earlier",
    ) -> KVCache:
        """Keys and values of finished frame `number`, [depth, B, 1, S, n, d]: a pass with nothing
        hidden. `level` is the share of noise in `tokens`, for models with `history_levels`; None:
        0. `seen` as in `frame`."""
        mask = jnp.zeros(tokens.shape[:2], bool)
        history = _history(level, jnp.ones(1, bool), len(tokens))
        return self._frame(
            tokens, mask, number, context, cache, grid, scale, history, keep_kv=True, seen=seen
        )[1]

    def remember(
        self,
        tokens: Float[Array, "B S P"],
        number: Array,
        context: Context,
        cache: KVCache,
        grid: Grid,
        scale: PositionScale | None = None,
        level: Float[Array, "B"] | None = None,
    ) -> KVCache:
        """The cache with finished frame `number` added in its place; `level` as in `finished`."""
        kv = self.finished(tokens, number, context, cache, grid, scale, level)
        put = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=number, axis=2)
        return KVCache(
            *(put(old, new.astype(old.dtype)) for old, new in zip(cache, kv, strict=True))
        )

    def _frame(
        self,
        tokens,
        mask,
        number,
        context,
        cache,
        grid,
        scale,
        history=None,
        *,
        keep_kv=False,
        seen="earlier",
        rows=None,
        layers=None,
    ):
        if isinstance(seen, str):
            seen = None if seen == "all" else jnp.arange(cache.keys.shape[2]) < number
        mix = self.mix(attention.cached, visible=seen)
        place = jnp.asarray(number if self.config.rope_frame_origin == "absolute" else 0)
        turns = self.rotation(place[None], grid, scale)
        x = self.embed(tokens[:, None], mask[:, None], context, history)
        z, kv = self.transformer(
            x,
            context.tokens,
            context.mask,
            turns,
            mix,
            cache=cache,
            keep_kv=keep_kv,
            rows=rows,
            layers=layers,
        )
        return z[:, 0], kv


def _history(level: Float[Array, "B"] | None, frames: Bool[Array, "T"], clips: int) -> History:
    return History(jnp.zeros(clips) if level is None else level, frames[None])
