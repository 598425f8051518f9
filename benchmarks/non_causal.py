"""What the paper's model is without its parts: no next-frame loss, and attention over all frames.

The two losses that `benchmarks.ablation` compares with the product's, with T latent frames of S
tokens, of which frame 0 is always visible:

    every_frame_loss   one rate r a clip; in each of the frames 1..T-1 a random ceil(S r) tokens are
                       hidden, and all of them carry loss                                        (1)
    next_frame_loss    one random frame k a clip; in frame k a random ceil(S r) tokens are hidden
                       and carry loss, the frames before it are visible and those behind it are
                       hidden as a whole                                                         (2)

In both, every frame attends to every frame. (2) with the causal mask is the product's own loss
(`training.loss`, supervise="one_frame", normaliser="supervised"), which is a test.

Without causality nothing of a finished frame can be kept: `sample` makes one pass over the whole
clip in each reveal step, with all later frames hidden, as (2) has it in training. With the causal
mask it makes the videos of `sampling.generate`, which is a test too.

Only for plain models (`check_plain`): of what the package adds to the paper's model they may have
the readout and the pooled text.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from videomar_jax.checks import UserError
from videomar_jax.diffusion.base import Timesteps
from videomar_jax.diffusion.solver import solver_timesteps
from videomar_jax.models import masking
from videomar_jax.models.config import ModelConfig
from videomar_jax.models.patchify import patchify, unpatchify
from videomar_jax.models.videomar import Context, Grid, VideoMAR
from videomar_jax.sampling import schedules
from videomar_jax.sampling.config import SamplingConfig
from videomar_jax.sampling.draws import FrameDraws, draw_frame
from videomar_jax.sampling.reference import draw_tokens
from videomar_jax.text_encoders import TextEncoder
from videomar_jax.tokenizers import Tokenizer, finite_clips, latent_shape, to_video
from videomar_jax.training.batches import encode
from videomar_jax.training.config import LossConfig
from videomar_jax.training.draws import Batch, LossDraws
from videomar_jax.training.loss import diffusion_losses
from videomar_jax.training.normaliser import LossNormaliser
from videomar_jax.types import (
    Array,
    Bool,
    Float,
    Int,
    Latents,
    TextFeatures,
    TextMask,
    TokenMask,
    Tokens,
    UInt8,
)


def check_plain(config: ModelConfig) -> None:
    """Raises a UserError for a model with a field that this module takes no account of."""
    # forecast and bilinear_units need the linear prior.
    for name in ("linear_prior", "previous_frame", "residual", "history_levels"):
        if getattr(config, name):
            raise UserError(f"model.{name} has no form without causality: turn it off.")
    if config.rope_frame_origin != "absolute":
        raise UserError("Without causality, model.rope_frame_origin must be 'absolute'.")


# Losses


class Hidden(NamedTuple):
    """What a loss hides, and where it looks."""

    mask: Bool[Array, "B T S"]
    """True where a token is hidden."""
    supervised: Int[Array, "B R"]
    """The frames whose hidden tokens carry loss."""


def every_frame_loss(
    model: VideoMAR,
    batch: Batch,
    draws: LossDraws,
    config: LossConfig,
    normaliser: LossNormaliser | None = None,
    *,
    causal: bool = False,
) -> tuple[Float[Array, ""], dict[str, Any]]:
    """Loss (1), a mean over hidden tokens; arguments as those of `training.loss.next_frame_loss`.

    Args:
        draws: with T-1 rows of noise a clip, as for supervise="all_frames". The rate of frame 1
            serves for the whole clip.
        normaliser: of no use here, as it counts the tokens of the product's losses.
    """
    frames = batch.latents.shape[1]
    counts = jnp.where(jnp.arange(frames) > 0, draws.num_masked[:, 1:2], 0)
    mask = masking.hide_last(draws.orders, counts)
    supervised = jnp.broadcast_to(jnp.arange(1, frames), (len(mask), frames - 1))
    return hidden_loss(model, batch, draws, config, Hidden(mask, supervised), causal)


def next_frame_loss(
    model: VideoMAR,
    batch: Batch,
    draws: LossDraws,
    config: LossConfig,
    normaliser: LossNormaliser | None = None,
    *,
    causal: bool = False,
) -> tuple[Float[Array, ""], dict[str, Any]]:
    """Loss (2), a mean over hidden tokens of frame k; arguments as those of `every_frame_loss`.

    Args:
        draws: with one row of noise a clip, as for supervise="one_frame".
    """
    frames, tokens = draws.orders.shape[1:]
    current = draws.current[:, None]
    in_current = jnp.take_along_axis(draws.num_masked, current, axis=1)[:, 0]
    counts = masking.one_frame_counts(draws.current, in_current, frames, tokens)
    mask = masking.hide_last(draws.orders, counts)
    return hidden_loss(model, batch, draws, config, Hidden(mask, current), causal)


def hidden_loss(
    model: VideoMAR,
    batch: Batch,
    draws: LossDraws,
    config: LossConfig,
    hidden: Hidden,
    causal: bool,
) -> tuple[Float[Array, ""], dict[str, Any]]:
    """The mean loss of the hidden tokens in supervised frames, and what it consists of.

    Args:
        draws: with R rows of noise a clip, those of the supervised frames in their order.
    """
    check_plain(model.config)
    _check_loss(config)
    size = model.config.patch_size
    grid = (batch.latents.shape[2] // size, batch.latents.shape[3] // size)
    tokens = patchify(batch.latents, size)
    context = model.context(batch.text, batch.text_mask, draws.drop)
    z = model(tokens, hidden.mask, context, grid, causal=causal)
    z, target = _frames_of(z, hidden.supervised), _frames_of(tokens, hidden.supervised)
    inside = _frames_of(hidden.mask, hidden.supervised)
    count = jnp.sum(inside, dtype=jnp.float32)
    losses = jnp.where(inside, diffusion_losses(model, z, target, draws), 0.0)
    loss = jnp.sum(losses) / (config.draws_per_token * count)
    metrics = {"diffusion_loss": loss}
    if config.regression_weight:
        error = jnp.mean((model.regression(z) - target) ** 2, axis=-1)
        metrics["regression_loss"] = jnp.sum(error * inside) / count
        loss = loss + config.regression_weight * metrics["regression_loss"]
    return loss, metrics | {"loss": loss}


def _check_loss(config: LossConfig) -> None:
    """Raises a UserError for a setting that would otherwise be passed over."""
    if config.normaliser != "supervised":
        raise UserError("Without causality, loss.normaliser must be 'supervised'.")
    for name in ("truncate", "history_noise"):
        if getattr(config, name):
            raise UserError(f"loss.{name} has no form without causality: leave it out.")


def _frames_of(x: Array, frames: Int[Array, "B R"]) -> Array:
    """The frames `frames` of every clip, [B, R, ...]."""
    return jnp.take_along_axis(x, frames.reshape(*frames.shape, *[1] * (x.ndim - 2)), axis=1)


# Sampling


def sample(
    model: VideoMAR,
    given: Float[Array, "B G h w C"],
    text: TextFeatures,
    text_mask: TextMask,
    keys: Array,
    *,
    num_frames: int,
    config: SamplingConfig,
    causal: bool = False,
) -> Latents:
    """Continues `given` to `num_frames` latent frames; arguments as in `sampling.generate`.

    Raises:
        UserError: the model is not plain, or the config has what this sampler has not.
    """
    check_plain(model.config)
    _check_sampling(config)
    patch = model.config.patch_size
    grid = (given.shape[2] // patch, given.shape[3] // patch)
    tokens = patchify(given, patch)
    batch, num_given, num_tokens, width = tokens.shape
    generated = num_frames - num_given
    tokens = jnp.pad(tokens, ((0, 0), (0, generated), (0, 0), (0, 0)))
    contexts = [model.context(text, text_mask)]
    if config.guided:
        contexts.append(model.context(text, text_mask, jnp.ones(batch, bool)))
    plan = schedules.reveal_plan(num_tokens, config)
    names = schedules.head_step_names(config, len(plan.count))
    heads = [solver_timesteps(model.process, name, config.head_solver) for name in names]
    # Noise for each evaluation of the head, where its process adds noise on the way.
    noisy = max(len(head.time) for head in heads) if model.process.stochastic else 0
    temperatures = schedules.temperatures(generated, config)
    bounds = schedules.clip_bounds(generated, config)
    for index in range(generated):
        number = num_given + index
        draws = draw_frame(keys, jnp.asarray(number), num_tokens, width, noisy)
        for step, head in enumerate(heads):
            turn = Turn(
                number=jnp.asarray(number),
                start=jnp.asarray(plan.start[step]),
                count=jnp.asarray(plan.count[step]),
                guidance=jnp.asarray(plan.guidance[step]),
                temperature=jnp.asarray(temperatures[index]),
                bound=jnp.asarray(bounds[index]),
                head=head,
            )
            tokens = _reveal(model, tokens, draws, turn, contexts, grid=grid, causal=causal)
    return unpatchify(tokens, grid, patch)


HONOURED = frozenset(
    {
        "steps",
        "head_steps",
        "head_solver",
        "guidance",
        "guidance_schedule",
        "guidance_interval",
        "temperature",
        "temperature_law",
        "latent_clip",
        "clip_first",
    }
)
"""The sampling settings that `sample` takes account of."""


def _check_sampling(config: SamplingConfig) -> None:
    """Raises a UserError for a setting that would otherwise be passed over."""
    for field in dataclasses.fields(config):
        if field.name not in HONOURED and getattr(config, field.name) != field.default:
            raise UserError(f"sampling.{field.name} cannot be had without causality: leave it out.")


class Turn(NamedTuple):
    """One reveal step of one frame; all but `head` are scalars."""

    number: Array
    """Of the frame in the clip."""
    start: Array
    """Tokens of its order that are visible already."""
    count: Array
    """Tokens that are revealed now."""
    guidance: Array
    temperature: Array
    bound: Array
    """The largest absolute value of a token."""
    head: Timesteps
    """Those of the head's evaluations."""


@functools.partial(jax.jit, static_argnames=("grid", "causal"))
def _reveal(
    model: VideoMAR,
    tokens: Tokens,
    draws: FrameDraws,
    turn: Turn,
    contexts: Sequence[Context],
    *,
    grid: Grid,
    causal: bool,
) -> Tokens:
    """The clip with the next tokens of a frame."""
    rank = masking.ranks(draws.order)
    hidden = _hidden(rank, turn, tokens.shape[1])
    # Without causality the frames to come matter: they are hidden, as they were in training.
    z = [model(tokens, hidden, context, grid, causal=causal) for context in contexts]
    z = jnp.concatenate([jnp.take(each, turn.number, axis=1) for each in z])
    new = draw_tokens(
        model,
        z,
        draws.noise,
        draws.step_noise[: len(turn.head.time)],
        turn.head,
        turn.guidance,
        turn.temperature,
    )
    new = jnp.clip(new, -turn.bound, turn.bound)
    is_due = (rank >= turn.start) & (rank < turn.start + turn.count)
    before = jnp.take(tokens, turn.number, axis=1)
    return tokens.at[:, turn.number].set(jnp.where(is_due[..., None], new, before))


def _hidden(rank: Int[Array, "B S"], turn: Turn, frames: int) -> TokenMask:
    """Frame `turn.number` from its `start`-th token on, and all later frames."""
    frame = jnp.arange(frames)[None, :, None]
    in_current = (frame == turn.number) & (rank[:, None] >= turn.start)
    return in_current | (frame > turn.number)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class NonCausalSampler:
    """From first frames and prompts to videos, as `inference.stream.VideoSampler`."""

    model: VideoMAR
    tokenizer: Tokenizer
    text_encoder: TextEncoder
    config: SamplingConfig
    batch_size: int
    causal: bool = False

    def __call__(
        self, given: UInt8[np.ndarray, "N G Hp Wp 3"], prompts: Sequence[str], num_frames: int
    ) -> UInt8[np.ndarray, "N F Hp Wp 3"]:
        """Video i is drawn with seed i.

        Raises:
            UserError: a video holds NaN or infinity.
        """
        total, _, _ = latent_shape(self.tokenizer, num_frames, *given.shape[2:4])
        videos = []
        for row in range(0, len(given), self.batch_size):
            # A short last batch is filled up and cut, so that only one program is compiled.
            chosen = [(row + i) % len(given) for i in range(self.batch_size)]
            text, mask = self.text_encoder.encode([prompts[i] for i in chosen])
            keys = jax.vmap(jax.random.key)(jnp.asarray(chosen, jnp.uint32))
            latents = sample(
                self.model,
                encode(self.tokenizer, given[chosen]),
                jnp.asarray(text),
                jnp.asarray(mask),
                keys,
                num_frames=total,
                config=self.config,
                causal=self.causal,
            )
            pixels, finite = _decode(self.tokenizer, latents)
            if not np.asarray(finite).all():
                raise UserError("Generated videos hold NaN or infinity: the training has diverged.")
            videos.append(np.asarray(pixels)[: len(given) - row])
        made = np.concatenate(videos)
        # What was given comes back as it was given.
        return np.concatenate([given, made[:, given.shape[1] :]], axis=1)


@jax.jit
def _decode(
    tokenizer: Tokenizer, latents: Latents
) -> tuple[UInt8[Array, "B F Hp Wp 3"], Bool[Array, "B"]]:
    pixels = tokenizer.decode(latents)
    return to_video(pixels), finite_clips(pixels)
