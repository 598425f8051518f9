"""The noise on earlier frames in training, `loss.history_noise` = s > 0: one share u ~ U[0, s] for
each clip; see `models.history_noise`."""

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from videomar_jax.models.history_noise import add_history_noise
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
    """The frames as later ones see them; the last is left as it is, as no frame follows it."""
    if draws.history_level is None:
        return tokens
    noisy = add_history_noise(model, tokens[:, :-1], draws.history_level, draws.history_noise)
    return jnp.concatenate([noisy, tokens[:, -1:]], axis=1)
