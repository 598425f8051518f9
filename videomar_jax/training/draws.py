"""What the loss takes in: a batch, and every random choice of one step.

All choices of a step are drawn at once, for the whole batch, from one key. So a recorded run can be
replayed by handing in its draws, and a batch can be worked on in parts with the draws it has as a
whole.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from videomar_jax.models import masking
from videomar_jax.models.videomar import VideoMAR
from videomar_jax.training.config import LossConfig
from videomar_jax.training.history_noise import draw_history_noise
from videomar_jax.types import Key


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """What one training step sees: arrays, or their shapes in an abstract batch."""

    latents: Any
    """Latents [B, T, h, w, C]."""
    text: Any
    """TextFeatures [B, K, E]."""
    text_mask: Any
    """TextMask [B, K]."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LossDraws:
    """Every random choice of one loss.

    R supervised frames a clip (`supervised_frames`), m draws of time and noise a token. In
    `times` and `noise` the clips are on axis 1, everywhere else on axis 0.
    """

    current: Any
    """int [B]: k, the frame that is supervised if only one is."""
    orders: Any
    """Orders [B, T, S]."""
    num_masked: Any
    """int [B, T]: hidden tokens of a frame when it is generated."""
    drop: Any
    """bool [B]: text replaced by the null context."""
    times: Any
    """[m, B, R, S]: what the process's `draw_times` gives."""
    noise: Any
    """float [m, B, R, S, P]: eps."""
    history_level: Any = None
    """float [B]: u, the share of noise in the earlier frames; None: they are clean."""
    history_noise: Any = None
    """float [B, T - 1, S, P]: that noise."""


def supervised_frames(frames: int, config: LossConfig) -> int:
    """R, the frames of a clip of `frames` latent frames that carry loss in one step."""
    return 1 if config.supervise == "one_frame" else max(frames - 1, 1)


def draw(key: Key, model: VideoMAR, shape: tuple[int, int, int], config: LossConfig) -> LossDraws:
    """Draws everything for a batch of `shape` (B, T, S).

    In truncated training T counts the frames that are left, of which the last is the current one.
    """
    batch, frames, tokens = shape
    keys = jax.random.split(key, 6)
    rows = (config.draws_per_token, batch, supervised_frames(frames, config), tokens)
    # A rate for each frame; the published code draws one a batch, by the same law.
    rate = masking.mask_rate(jax.random.uniform(keys[2], (batch, frames)), config.mask_rate_min)
    # An image is its own current frame.
    current = jnp.full(batch, frames - 1, jnp.int32)
    if not config.truncate and frames > 1:
        current = jax.random.randint(keys[0], (batch,), 1, frames)
    # A key of its own: the other draws are the same with and without noise on the history.
    level, history = draw_history_noise(jax.random.fold_in(key, 6), model, shape, config)
    return LossDraws(
        current=current,
        orders=masking.random_orders(keys[1], shape),
        num_masked=masking.num_masked(tokens, rate),
        drop=jax.random.bernoulli(keys[3], config.text_dropout, (batch,)),
        times=model.process.draw_times(keys[4], rows),
        noise=jax.random.normal(keys[5], (*rows, model.config.token_dim)),
        history_level=level,
        history_noise=history,
    )
