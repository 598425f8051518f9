"""The next-frame diffusion loss (paper, section 3.2).

`one`, the paper's: a random frame k of each clip is generated. Frames before k are visible, in
frame k the last ceil(S r) tokens of a random order are hidden, later frames are hidden completely.
Only frame k's hidden tokens count:

    loss = sum over hidden tokens of frame k, over draws of (t, eps), of process.loss / (draws * N)

with N the hidden tokens of all frames (`normaliser="all_masked"`, as the published code) or of frame k
("supervised"). By causality the frames after k change nothing but N. The layout "truncated"
therefore never computes them: the batch shares one k (`truncated_frames`), arrives cut after it,
    and N counts the hidden tokens of the frames that are there,
so that both normalisers are frame k's.

`all`: every frame 1..T-1 at once, each as a masked copy that sees the clean frames before it and
itself. The model sees the same inputs for each frame as in `one`; N counts all hidden tokens.

With `history_noise` = s > 0 the frames before a supervised one are seen as (1 - u) x + u eps, one u
~ U[0, s] for each clip, and the model is told u where it has `history_levels`.

The head runs on all S tokens of the supervised frames, hidden or not: each frame may hide all S of
    them, so a gather of
static size could leave none out, and the 13 % that are visible on average are a few percent of a
step.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from videomar_jax.models import masking
from videomar_jax.models.patchify import patchify
from videomar_jax.models.videomar import Context, Grid, History, VideoMAR
from videomar_jax.training.config import LossConfig
from videomar_jax.training.draws import (
    Batch,
    LossDraws,
    draw,
    supervised_frames,
    truncated_frames,
)
from videomar_jax.types import Array, Bool, Float, Int, Tokens

__all__ = [
    "Batch",
    "LossConfig",
    "LossDraws",
    "LossNormaliser",
    "diffusion_losses",
    "draw",
    "loss_normaliser",
    "next_frame_loss",
    "supervised_frames",
    "truncated_frames",
]

NOISE_BINS = 5
"""Equal bins of the noise level that losses are told apart by."""


class LossNormaliser(NamedTuple):
    """What sums over a batch are divided by: counts of tokens, which follow from the draws
    alone."""

    hidden: Float[Array, ""]  # N of the module's text
    supervised: Float[Array, ""]  # hidden tokens of supervised frames
    rows: int  # all tokens of supervised frames


def loss_normaliser(
    draws: LossDraws, shape: tuple[int, int, int], config: LossConfig
) -> LossNormaliser:
    """The counts of a batch of `shape` (B, T, S). Those of the whole batch, handed to
    `next_frame_loss` with each of its parts, make losses, metrics and gradients of the parts add up
    to those of the whole batch."""
    clips, frames, tokens = shape
    if config.supervise == "all_frames":
        supervised = hidden = jnp.sum(draws.num_masked[:, min(frames - 1, 1) :], dtype=jnp.float32)
    else:
        supervised = hidden = jnp.sum(_at(draws.num_masked, draws.current), dtype=jnp.float32)
        if config.normaliser == "all_masked":
            hidden = supervised + tokens * jnp.sum(frames - 1 - draws.current, dtype=jnp.float32)
    return LossNormaliser(hidden, supervised, clips * supervised_frames(frames, config) * tokens)


def next_frame_loss(
    model: VideoMAR,
    batch: Batch,
    draws: LossDraws,
    config: LossConfig,
    normaliser: LossNormaliser | None = None,
) -> tuple[Float[Array, ""], dict[str, Any]]:
    """The loss of one batch, and what to log beside it.

    Args:
        normaliser: the counts of the batch that this one is a part of; None: of this batch.

    Returns:
        The loss, and metrics that add up over the parts of a batch: the numbers `loss`,
            `diffusion_loss`,
        `masked_fraction` and (with its weight) `regression_loss`; by latent frame (`by_frame`, [T])
        and by noise level (`by_noise`, equal bins of [0, 1]) the "sum" of the losses of supervised
        rows and their "count".
    """
    size = model.config.patch_size
    grid = (batch.latents.shape[2] // size, batch.latents.shape[3] // size)
    tokens = patchify(batch.latents, size)
    if normaliser is None:
        normaliser = loss_normaliser(draws, tokens.shape[:3], config)
    context = model.context(batch.text, batch.text_mask, draws.drop)
    forms = {"one_frame": _one_frame, "all_frames": _all_frames}
    z, target, hidden, frame = forms[config.supervise](model, tokens, context, grid, draws, config)
    losses = jnp.where(hidden, diffusion_losses(model, z, target, draws), 0.0)  # [m, B, R, S]
    diffusion = jnp.sum(losses) / (config.draws_per_token * normaliser.hidden)
    metrics = {
        "diffusion_loss": diffusion,
        "masked_fraction": masking.count(hidden) / normaliser.rows,
    }
    loss = diffusion
    if config.regression_weight:
        error = jnp.mean((model.regression(z).astype(jnp.float32) - target) ** 2, axis=-1)
        metrics["regression_loss"] = jnp.sum(error * hidden) / normaliser.supervised
        loss = loss + config.regression_weight * metrics["regression_loss"]
    counted = jnp.broadcast_to(hidden, losses.shape)
    level = model.process.noise_level(draws.times)
    bins = jnp.minimum((level * NOISE_BINS).astype(jnp.int32), NOISE_BINS - 1)
    metrics["by_frame"] = _binned(losses.sum((0, 3)), counted.sum((0, 3)), frame, tokens.shape[1])
    metrics["by_noise"] = _binned(losses, counted, bins, NOISE_BINS)
    return loss, metrics | {"loss": loss}


def diffusion_losses(
    model: VideoMAR, z: Array, target: Array, draws: LossDraws
) -> Float[Array, "m B R S"]:
    """The head's loss for every row and draw; z and target are [B, R, S, ...]."""
    process = model.process
    with jax.named_scope("diffusion_head"):
        noisy = process.add_noise(target, draws.times, draws.noise)
        output = model.head.denoise(noisy, draws.times, model.head.condition(z))
        return process.loss(output, target, noisy, draws.times, draws.noise)


Rows = tuple[
    Float[Array, "B R S D"], Float[Array, "B R S P"], Bool[Array, "B R S"], Int[Array, "B R"]
]
"""z, clean tokens, which of them are hidden, and the number of the frame, for R supervised frames
of each clip."""


def _one_frame(
    model: VideoMAR,
    tokens: Tokens,
    context: Context,
    grid: Grid,
    draws: LossDraws,
    config: LossConfig,
) -> Rows:
    clips, frames, count = tokens.shape[:3]
    counts = masking.one_frame_counts(
        draws.current, _at(draws.num_masked, draws.current)[:, 0], frames, count
    )
    mask = masking.hide_last(draws.orders, counts)
    earlier = jnp.arange(frames) < draws.current[:, None]
    seen = jnp.where(earlier[..., None, None], _with_history_noise(tokens, draws), tokens)
    z = model(seen, mask, context, grid, history=History(_level(draws, clips), earlier))

    def at_current(x):
        return x[:, -1:] if config.truncate else _at(x, draws.current)

    return at_current(z), at_current(tokens), at_current(mask), draws.current[:, None]


def _all_frames(
    model: VideoMAR,
    tokens: Tokens,
    context: Context,
    grid: Grid,
    draws: LossDraws,
    config: LossConfig,
) -> Rows:
    clips, frames = tokens.shape[:2]
    supervised = slice(min(frames - 1, 1), None)
    hidden = masking.hide_last(draws.orders[:, supervised], draws.num_masked[:, supervised])
    earlier = _with_history_noise(tokens, draws)[:, :-1]
    z = model.teacher_forced(
        tokens, hidden, context, grid, earlier=earlier, level=_level(draws, clips)
    )
    numbers = jnp.arange(frames)[supervised]
    return z, tokens[:, supervised], hidden, jnp.broadcast_to(numbers, (clips, len(numbers)))


def _with_history_noise(tokens: Tokens, draws: LossDraws) -> Tokens:
    """The frames as later frames see them; the last frame has no later one."""
    if draws.history_level is None:
        return tokens
    level = draws.history_level[:, None, None, None]
    noisy = (1 - level) * tokens[:, :-1] + level * draws.history_noise
    return jnp.concatenate([noisy, tokens[:, -1:]], axis=1)


def _level(draws: LossDraws, clips: int) -> Float[Array, "B"]:
    return jnp.zeros(clips) if draws.history_level is None else draws.history_level


def _at(x: Array, frame: Int[Array, "B"]) -> Array:
    """Frame `frame` of every clip, [B, 1, ...]."""
    return jnp.take_along_axis(x, frame.reshape(-1, *[1] * (x.ndim - 1)), axis=1)


def _binned(
    values: Array, counts: Array, index: Int[Array, "..."], bins: int
) -> dict[str, Float[Array, "bins"]]:
    """Sums of values and counts over the entries whose index is 0, 1, …, bins - 1."""
    member = (index[..., None] == jnp.arange(bins)).astype(jnp.float32)
    axes = tuple(range(index.ndim))
    return {
        name: jnp.sum(x[..., None] * member, axes)
        for name, x in (("sum", values), ("count", counts))
    }
