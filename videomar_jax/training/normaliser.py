"""What the loss of a batch is divided by: N of equation (1) of `training.loss`, and others."""

from typing import NamedTuple

import jax.numpy as jnp

from videomar_jax.training.config import LossConfig
from videomar_jax.training.draws import LossDraws, supervised_frames
from videomar_jax.types import Array, Float


class LossNormaliser(NamedTuple):
    """What sums over a batch are divided by: counts of tokens, which follow from the draws."""

    hidden: Float[Array, ""]  # N of equation (1)
    supervised: Float[Array, ""]  # hidden tokens of supervised frames
    rows: int  # all tokens of supervised frames


def loss_normaliser(draws: LossDraws, shape: tuple[int, ...], config: LossConfig) -> LossNormaliser:
    """The counts of a batch of `shape` (B, T, S).

    The counts of the whole batch, handed to `next_frame_loss` with each of its parts, make losses,
    metrics and gradients of the parts add up to those of the whole.
    """
    clips, frames, tokens = shape
    one_frame = config.supervise == "one_frame"
    if one_frame:
        counts = jnp.take_along_axis(draws.num_masked, draws.current[:, None], axis=1)
    else:
        counts = draws.num_masked[:, min(frames - 1, 1) :]
    supervised = hidden = jnp.sum(counts, dtype=jnp.float32)
    if one_frame and config.normaliser == "all_masked":
        # The later frames, all of whose tokens are hidden.
        hidden = supervised + tokens * jnp.sum(frames - 1 - draws.current, dtype=jnp.float32)
    return LossNormaliser(hidden, supervised, clips * supervised_frames(frames, config) * tokens)
