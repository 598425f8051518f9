"""VideoMAR: a transformer over continuous video tokens, causal over frames and bidirectional inside
a frame (paper, section 3).

    h_{t,s} = mask_token where token s of frame t is hidden, else W_z x_{t,s} + b           (1)
    z = Transformer( h; text ),  where frame t sees the frames <= t                         (2)
    x_{t,s} ~ head( . | z_{t,s} )  for hidden tokens             (`models.diffusion_head`)  (3)

Three ways to compute z, with the same parameters and the same result:

    model(tokens, mask, ...)            all frames at once
    model.teacher_forced(...)           training on every next frame: clean frames, and a masked
                                        copy of each that sees the clean frames before it
    incremental.predict_frame(...)      generation: one frame against a cache of those before it
"""

import functools
from collections.abc import Callable

import jax.numpy as jnp
from flax import nnx

from videomar_jax.diffusion.base import Process
from videomar_jax.models import attention
from videomar_jax.models.config import ModelConfig
from videomar_jax.models.diffusion_head import TIME_FEATURES, DiffusionHead, time_features
from videomar_jax.models.layers import linear
from videomar_jax.models.linear_prior import FrameBeforeMap, LinearPrior, MeanReadout, add_hint
from videomar_jax.models.patchify import positions
from videomar_jax.models.rope import PositionScale, Rotary, rotary_embedding
from videomar_jax.models.transformer import Context, Stream, Transformer
from videomar_jax.types import Array, Bool, Float, TextFeatures, TextMask, TokenMask, Tokens

Grid = tuple[int, int]
"""(H, W): token rows and columns of a frame."""


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
            self.regression = MeanReadout(config, rngs=rngs)
        if config.history_levels:
            # Starts at zero, so that a model without levels can be continued with them.
            self.history_embed = linear(
                TIME_FEATURES, config.width, config, rngs, use_bias=True, std=0.0
            )
        if config.linear_prior:
            self.linear_prior = LinearPrior(config)
        if config.previous_frame:
            self.previous_embed = FrameBeforeMap(config.width, config, rngs=rngs)

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
        # The null context replaces the features behind the projection (the published model).
        projected = self.context_embed(text).astype(jnp.float32)
        tokens = jnp.where(drop[:, None, None], self.null_context[...], projected)
        # A dropped text keeps its mask unless the config says otherwise.
        mask = text_mask | (drop[:, None] & (self.config.null_text_mask == "ones"))
        pooled = None
        if self.config.pooled_text:
            # At least 1: a text that is masked as a whole has the mean 0, not 0/0.
            count = jnp.maximum(jnp.sum(mask, axis=1), 1)
            weight = mask[..., None] / count[:, None, None]
            pooled = self.pooled_embed(jnp.sum(tokens * weight, axis=1))
        return Context(tokens, mask if self.config.text_mask else None, pooled)

    def embed(
        self,
        tokens: Tokens,
        mask: TokenMask,
        context: Context,
        earlier: Bool[Array, "#B T"] | None = None,
        noise_level: Float[Array, "B"] | None = None,
    ) -> Stream:
        """Equation (1), and what a model of ours adds to it: the pooled text, and on earlier frames
        the embedding of their noise level.

        Args:
            earlier: which frames are earlier ones that others continue; None: of no interest.
            noise_level: the share of noise in these; None: 0.
        """
        # Hidden values are zeroed before the projection as well: behind it, a NaN among them would
        # still reach the gradient of W_z, as 0 * NaN.
        visible = jnp.where(mask[..., None], 0.0, tokens)
        projected = self.z_proj(visible).astype(jnp.float32)
        x = jnp.where(mask[..., None], self.mask_token[...], projected)
        if earlier is not None and self.config.history_levels:
            if noise_level is None:
                noise_level = jnp.zeros(len(tokens))
            features = time_features(noise_level)
            noise_embedding = self.history_embed(features).astype(jnp.float32)
            x = x + jnp.where(earlier[..., None, None], noise_embedding[:, None, None, :], 0.0)
        return x if context.pooled is None else x + context.pooled[:, None, None, :]

    def rotary(self, frames: Array | int, grid: Grid, scale: PositionScale | None = None) -> Rotary:
        """Rotary tables of the frames 0..n-1, or of an array of frame numbers."""
        place = positions(frames, grid)
        return rotary_embedding(place, self.config.rope_channels, self.config.rope_base, scale)

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
        earlier: Bool[Array, "#B T"] | None = None,
        noise_level: Float[Array, "B"] | None = None,
    ) -> Stream:
        """z of every token, all frames in one pass.

        Args:
            mask: True where a token is hidden.
            causal: False lets frames see later ones (ablation only).
            earlier, noise_level: as in `embed`, for a model with `history_levels`.
        """
        h = self.embed(tokens, mask, context, earlier, noise_level)
        h = add_hint(self, h, mask, tokens[:, :-1], grid, context)
        pattern = attention.frame_causal if causal else attention.attend_frames
        rotary = self.rotary(tokens.shape[1], grid)
        return self.transformer(h, context, rotary, self.attention_fn(pattern))

    def teacher_forced(
        self,
        tokens: Tokens,
        mask: Bool[Array, "B M S"],
        context: Context,
        grid: Grid,
        *,
        history: Float[Array, "B T-1 S P"] | None = None,
        noise_level: Float[Array, "B"] | None = None,
    ) -> Float[Array, "B M S D"]:
        """z of masked copies of the frames 1..T-1 (of frame 0 for an image), M = max(T - 1, 1).

        Equal to one causal pass for each frame, but in a single pass over T-1 clean and M masked
        frames (complete teacher forcing, MAGI 2025).

        Args:
            mask: hidden tokens of the masked copies.
            history: the frames 0..T-2 as later frames see them, if noise was added; None: clean.
            noise_level: the share of noise in them; None: 0.
        """
        frames = tokens.shape[1]
        clean = frames - 1
        first = min(clean, 1)
        if history is None:
            history = tokens[:, :clean]
        seen = jnp.concatenate([history, tokens[:, first:]], axis=1)
        hidden = jnp.concatenate([jnp.zeros_like(mask[:, :clean]), mask], axis=1)
        earlier = jnp.arange(hidden.shape[1]) < clean
        h = self.embed(seen, hidden, context, earlier[None], noise_level)
        h = add_hint(self, h, mask, history, grid, context)
        # A masked copy stands at the position of its frame.
        numbers = jnp.concatenate([jnp.arange(clean), jnp.arange(first, frames)])
        pattern = self.attention_fn(attention.teacher_forcing, clean=clean)
        z = self.transformer(h, context, self.rotary(numbers, grid), pattern)
        return z[:, clean:]
