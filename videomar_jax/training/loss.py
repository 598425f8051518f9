"""The next-frame diffusion loss (paper, section 3.2).

`one`, the paper's: a random frame k of each clip is generated. Frames before k are visible, in frame k the last
ceil(S r) tokens of a random order are hidden, later frames are hidden completely. Only frame k's hidden tokens count:

    loss = sum over hidden tokens of frame k, over draws of (t, eps), of process.loss / (draws * N)

with N the hidden tokens of all frames (`normaliser="mask"`, as the published code) or of frame k ("loss_mask").

`all`: every frame 1..T-1 at once, each as a masked copy that sees the clean frames before it and itself. The model
sees the same inputs for each frame as in `one`; N counts all hidden tokens.
"""

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp

from videomar_jax.models import masking
from videomar_jax.models.diffusion import make_process
from videomar_jax.models.patchify import patchify
from videomar_jax.models.videomar import VideoMAR
from videomar_jax.types import Array, Float, Key


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Which frames are supervised, and how.

    Raises:
        ValueError: a value outside its range, by name.
    """

    frames: Literal["one", "all"] = "one"
    normaliser: Literal["mask", "loss_mask"] = "mask"
    mask_rate_min: float = 0.7
    text_dropout: float = 0.1
    draws_per_token: int = 4  # (t, eps) draws for each token and step
    regression_weight: float = 0.0  # ours: weight of |readout(z) - x_0|^2, needs model.regression

    def __post_init__(self):
        if self.frames not in ("one", "all"):
            raise ValueError(f"loss.frames is {self.frames!r}; it may be 'one' or 'all'.")
        if self.normaliser not in ("mask", "loss_mask"):
            raise ValueError(f"loss.normaliser is {self.normaliser!r}; it may be 'mask' or 'loss_mask'.")
        if not 0 <= self.mask_rate_min < 1:
            raise ValueError(f"loss.mask_rate_min must lie in [0, 1), not {self.mask_rate_min}.")
        if not 0 <= self.text_dropout <= 1:
            raise ValueError(f"loss.text_dropout must lie in [0, 1], not {self.text_dropout}.")
        if self.draws_per_token < 1:
            raise ValueError(f"loss.draws_per_token must be at least 1, not {self.draws_per_token}.")


@functools.partial(jax.tree_util.register_dataclass, data_fields=["latents", "text", "text_mask"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Batch:
    """What one training step sees: arrays, or shapes in an abstract batch."""

    latents: Any  # Latents [B, T, h, w, C]
    text: Any  # TextFeatures [B, K, E]
    text_mask: Any  # TextMask [B, K]


_DRAWS = ["current", "orders", "num_masked", "drop", "times", "noise"]


@functools.partial(jax.tree_util.register_dataclass, data_fields=_DRAWS, meta_fields=[])
@dataclasses.dataclass(frozen=True)
class LossDraws:
    """Every random choice of one loss; R supervised frames (1 for `one`, max(T - 1, 1) for `all`), m draws a token."""

    current: Any  # int [B]: the frame k that `one` supervises
    orders: Any  # Orders [B, T, S]
    num_masked: Any  # int [B, T]: hidden tokens a frame has when it is generated
    drop: Any  # bool [B]: text replaced by the null context
    times: Any  # [m, B, R, S]: what the process's `draw_times` gives
    noise: Any  # float [m, B, R, S, P]


def supervised_frames(frames: int, config: LossConfig) -> int:
    """R, the frames of a clip of `frames` latent frames that carry loss in one step."""
    return 1 if config.frames == "one" else max(frames - 1, 1)


def draw(key: Key, model: VideoMAR, shape: tuple[int, int, int], config: LossConfig) -> LossDraws:
    """Draws everything for a batch of `shape` (B, T, S)."""
    batch, frames, tokens = shape
    keys = jax.random.split(key, 6)
    rows = (config.draws_per_token, batch, supervised_frames(frames, config), tokens)
    rate = masking.mask_rate(jax.random.uniform(keys[2], (batch, frames)), config.mask_rate_min)
    return LossDraws(
        current=jax.random.randint(keys[0], (batch,), 1, frames) if frames > 1 else jnp.zeros(batch, jnp.int32),
        orders=masking.random_orders(keys[1], shape),
        num_masked=masking.num_masked(tokens, rate),
        drop=jax.random.bernoulli(keys[3], config.text_dropout, (batch,)),
        times=make_process(model.config).draw_times(keys[4], rows),
        noise=jax.random.normal(keys[5], (*rows, model.config.token_dim)),
    )


def next_frame_loss(
    model: VideoMAR, batch: Batch, draws: LossDraws, config: LossConfig
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The loss of one batch, and what to log beside it."""
    size = model.config.patch_size
    grid = (batch.latents.shape[2] // size, batch.latents.shape[3] // size)
    tokens = patchify(batch.latents, size)
    context = model.context(batch.text, batch.text_mask, draws.drop)
    forms = {"one": _one_frame, "all": _all_frames}
    z, target, hidden, normaliser = forms[config.frames](model, tokens, context, grid, draws, config)
    losses = diffusion_losses(model, z, target, draws)  # [m, B, R, S]
    diffusion = jnp.sum(losses * hidden) / (config.draws_per_token * normaliser)
    metrics = {"diffusion_loss": diffusion, "masked_fraction": jnp.mean(hidden, dtype=jnp.float32)}
    loss = diffusion
    if config.regression_weight:
        error = jnp.mean((model.regression(z).astype(jnp.float32) - target) ** 2, axis=-1)
        metrics["regression_loss"] = jnp.sum(error * hidden) / masking.count(hidden)
        loss = loss + config.regression_weight * metrics["regression_loss"]
    return loss, metrics | {"loss": loss}


def diffusion_losses(model: VideoMAR, z: Array, target: Array, draws: LossDraws) -> Float[Array, "m B R S"]:
    """The head's loss for every row and draw; z and target are [B, R, S, ...]."""
    process = make_process(model.config)
    with jax.named_scope("diffusion_head"):
        noisy = process.noised(target, draws.times, draws.noise)
        output = model.head.denoise(noisy, draws.times, model.head.condition(z))
        return process.loss(output, target, noisy, draws.times, draws.noise)


def _one_frame(model, tokens, context, grid, draws, config):
    frames, count = tokens.shape[1:3]
    in_current = jnp.take_along_axis(draws.num_masked, draws.current[:, None], axis=1)[:, 0]
    mask = masking.hide_last(draws.orders, masking.one_frame_counts(draws.current, in_current, frames, count))

    def at_current(x):  # frame k of every sample, [B, 1, ...]
        return jnp.take_along_axis(x, draws.current.reshape(-1, *[1] * (x.ndim - 1)), axis=1)

    z = model(tokens, mask, context, grid)
    hidden = at_current(mask)
    normaliser = masking.count(mask if config.normaliser == "mask" else hidden)
    return at_current(z), at_current(tokens), hidden, normaliser


def _all_frames(model, tokens, context, grid, draws, config):
    supervised = slice(min(tokens.shape[1] - 1, 1), None)
    hidden = masking.hide_last(draws.orders[:, supervised], draws.num_masked[:, supervised])
    z = model.teacher_forced(tokens, hidden, context, grid)
    return z, tokens[:, supervised], hidden, masking.count(hidden)
