"""The next-frame diffusion loss (paper, section 3.2).

supervise="one_frame", as in the paper: a random frame k of each clip is generated. Frames before k
are visible, in frame k the last ceil(S r) tokens of a random order are hidden, later frames are
hidden completely. Only the hidden tokens of frame k count:

    loss = 1/(m N) sum over hidden tokens of frame k, over m draws of (t, eps), of l            (1)

l is the loss of the diffusion process for one token. N counts the hidden tokens of all frames
(normaliser="all_masked", as the published code) or of frame k ("supervised"). By causality the
frames after k change nothing but N, so truncated training never computes them: the whole batch
shares one k (`truncated_frames`), and its clips arrive cut after it.

supervise="all_frames" (ours): the frames 1..T-1 at once, each as a masked copy that sees the clean
frames before it and itself. The model sees the same inputs for each frame as above; N counts all
hidden tokens.

Noise on the earlier frames, `loss.history_noise`: see `training.history_noise`.

The head runs on all S tokens of a supervised frame, hidden or not. Any of its tokens may be hidden,
so a gather of static size could leave none out; the 13 % that are visible on average are a few
percent of a step.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from videomar_jax.models import masking
from videomar_jax.models.forecast import with_forecast
from videomar_jax.models.linear_prior import FrameNumbers, mean_of_rest, previous_frames
from videomar_jax.models.patchify import patchify
from videomar_jax.models.videomar import Context, Grid, VideoMAR
from videomar_jax.training.config import LossConfig
from videomar_jax.training.draws import Batch, LossDraws
from videomar_jax.training.history_noise import with_history_noise
from videomar_jax.training.loss_bins import losses_apart
from videomar_jax.training.normaliser import LossNormaliser, loss_normaliser
from videomar_jax.types import Array, Bool, Float, Int, Tokens


class SupervisedFrames(NamedTuple):
    """The R frames of each clip that carry loss."""

    z: Float[Array, "B R S D"]
    target: Float[Array, "B R S P"]  # clean tokens
    hidden: Bool[Array, "B R S"]
    number: FrameNumbers  # of the frame in its clip
    previous: Float[Array, "B R S P"]  # the frame before, as the model sees it


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
        `diffusion_loss`, `masked_fraction` and (with its weight) `regression_loss`; by latent frame
        (`by_frame`, [T]) and by noise level (`by_noise`, equal bins of [0, 1]) the "sum" and the
        "count" of the losses of supervised tokens.
    """
    size = model.config.patch_size
    grid = (batch.latents.shape[2] // size, batch.latents.shape[3] // size)
    tokens = patchify(batch.latents, size)
    if normaliser is None:
        normaliser = loss_normaliser(draws, tokens.shape[:3], config)
    text = (batch.text, batch.text_mask)
    context = model.context(*text, draws.drop)
    context = with_forecast(model, context, tokens[:, 0], *text, grid)
    supervise = _one_frame if config.supervise == "one_frame" else _all_frames
    z, target, hidden, number, previous = supervise(model, tokens, context, grid, draws, config)
    if model.config.linear_prior:
        target = model.linear_prior(previous, number, grid, context.forecast).encode(target)
    # Tokens outside of the loss are zeroed before it as well: an overflow or a NaN that they cause
    # would still reach the gradient, as 0 * NaN.
    inside = hidden[..., None]
    z, target = jnp.where(inside, z, 0.0), jnp.where(inside, target, 0.0)
    regression_loss = None
    if config.regression_weight:
        mean = mean_of_rest(model, z, previous, number, grid, context)
        error = jnp.mean((mean - target) ** 2, axis=-1)
        regression_loss = jnp.sum(error * hidden) / normaliser.supervised
        if model.config.residual:
            target = target - jax.lax.stop_gradient(mean)
    # All S tokens went through the head, and only the hidden ones count.
    losses = jnp.where(hidden, diffusion_losses(model, z, target, draws), 0.0)  # [m, B, R, S]
    loss = jnp.sum(losses) / (config.draws_per_token * normaliser.hidden)
    metrics = {
        "diffusion_loss": loss,
        "masked_fraction": jnp.sum(hidden, dtype=jnp.float32) / normaliser.rows,
    }
    if regression_loss is not None:
        metrics["regression_loss"] = regression_loss
        loss = loss + config.regression_weight * regression_loss
    noise_level = model.process.noise_level(draws.times)
    metrics |= losses_apart(losses, hidden, number, tokens.shape[1], noise_level)
    return loss, metrics | {"loss": loss}


def diffusion_losses(
    model: VideoMAR, z: Float[Array, "B R S D"], target: Float[Array, "B R S P"], draws: LossDraws
) -> Float[Array, "m B R S"]:
    """l of equation (1) for every token and draw."""
    process = model.process
    with jax.named_scope("diffusion_head"):
        noisy = process.add_noise(target, draws.times, draws.noise)
        output = model.head.denoise(noisy, draws.times, model.head.condition(z))
        return process.loss(output, target, noisy, draws.times, draws.noise)


def _one_frame(
    model: VideoMAR,
    tokens: Tokens,
    context: Context,
    grid: Grid,
    draws: LossDraws,
    config: LossConfig,
) -> SupervisedFrames:
    frames, count = tokens.shape[1:3]
    in_current = _at(draws.num_masked, draws.current)[:, 0]
    counts = masking.one_frame_counts(draws.current, in_current, frames, count)
    mask = masking.hide_last(draws.orders, counts)
    # Frame k itself is seen as it is: noise on it would be noise on its visible tokens.
    earlier = jnp.arange(frames) < draws.current[:, None]
    seen = jnp.where(earlier[..., None, None], with_history_noise(model, tokens, draws), tokens)
    z = model(seen, mask, context, grid, earlier=earlier, noise_level=draws.history_level)
    previous = _at(seen, jnp.maximum(draws.current - 1, 0))

    def at_current(x):
        # A truncated clip ends with its current frame; a slice is cheaper than a gather.
        return x[:, -1:] if config.truncate else _at(x, draws.current)

    number = draws.current[:, None]
    return SupervisedFrames(at_current(z), at_current(tokens), at_current(mask), number, previous)


def _all_frames(
    model: VideoMAR,
    tokens: Tokens,
    context: Context,
    grid: Grid,
    draws: LossDraws,
    config: LossConfig,
) -> SupervisedFrames:
    supervised = slice(min(tokens.shape[1] - 1, 1), None)
    hidden = masking.hide_last(draws.orders[:, supervised], draws.num_masked[:, supervised])
    history, level = with_history_noise(model, tokens, draws)[:, :-1], draws.history_level
    z = model.teacher_forced(tokens, hidden, context, grid, history=history, noise_level=level)
    previous, number = previous_frames(history, z.shape[1])
    return SupervisedFrames(z, tokens[:, supervised], hidden, number, previous)


def _at(x: Array, frame: Int[Array, "B"]) -> Array:
    """Frame `frame` of every clip, [B, 1, ...]."""
    return jnp.take_along_axis(x, frame.reshape(-1, *[1] * (x.ndim - 1)), axis=1)
