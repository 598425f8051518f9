"""Noise on the frames that others continue (MAGI 2025): small faults of the sampler's own frames
then do not grow.

With `loss.history_noise` = s > 0 the frames before a supervised one are seen as

    (1 - u) x + u eps,   one u ~ U[0, s] for each clip,                                     (1)

and a model with `history_levels` is given u. A model with a linear prior sees x + u d eps, with d
the spread of what the prior leaves over: the sampler's own faults are about as large, and where the
prior leaves little, a share of the tokens themselves would drown what is to be learnt.
"""

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from videomar_jax.models.videomar import VideoMAR
from videomar_jax.training.config import LossConfig
from videomar_jax.types import Array, Float, Key, Tokens

if TYPE_CHECKING:
    from videomar_jax.training.draws import LossDraws


def draw_history_noise(
    key: Key, model: VideoMAR, shape: tuple[int, int, int], config: LossConfig
) -> tuple[Float[Array, "B"] | None, Float[Array, "B n S P"] | None]:
    """u and eps for a batch of `shape` (B, T, S); None where there is no such noise."""
    if not config.history_noise:
        return None, None
    batch, frames, tokens = shape
    level_key, noise_key = jax.random.split(key)
    level = jax.random.uniform(level_key, (batch,), maxval=config.history_noise)
    earlier = (batch, frames - 1, tokens, model.config.token_dim)
    return level, jax.random.normal(noise_key, earlier)


def with_history_noise(model: VideoMAR, tokens: Tokens, draws: "LossDraws") -> Tokens:
    """Equation (1) for all frames but the last, which no frame follows."""
    if draws.history_level is None:
        return tokens
    share = draws.history_level[:, None, None, None]
    if model.config.linear_prior:
        spread = jax.lax.stop_gradient(model.linear_prior.spread[...])
        noisy = tokens[:, :-1] + share * spread * draws.history_noise
    else:
        noisy = (1 - share) * tokens[:, :-1] + share * draws.history_noise
    return jnp.concatenate([noisy, tokens[:, -1:]], axis=1)
