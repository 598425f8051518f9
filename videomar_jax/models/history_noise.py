"""Noise on the frames that others continue (MAGI 2025), so that a model learns to continue frames
with small faults, as the sampler's own are.

A frame x with the share u of noise is seen as

    (1 - u) x + u eps,    eps ~ N(0, 1),                                                    (1)

and a model with `history_levels` is given u. A model with a linear prior sees x + u d eps, with d
the spread of what the prior leaves over: the sampler's own faults are about as large, and where the
prior leaves little, a share of the tokens themselves would drown what is to be learnt.

Training draws one u for all earlier frames of a clip (`training.history_noise`). In sampling it is
a setting for generated frames (`SamplingConfig.history_noise`); given frames are exact, u = 0.
"""

import jax

from videomar_jax.models.videomar import VideoMAR
from videomar_jax.types import Array, Float, Tokens


def add_history_noise(
    model: VideoMAR, tokens: Tokens, level: Float[Array, "B"], noise: Tokens
) -> Tokens:
    """Equation (1): frames as later ones see them.

    Args:
        tokens: [B, n, S, P], of frames that were not noised yet.
        level: u, in [0, 1).
        noise: eps, of the shape of the tokens.
    """
    share = level[:, None, None, None]
    if model.config.linear_prior:
        spread = jax.lax.stop_gradient(model.linear_prior.spread[...])
        return tokens + share * spread * noise
    return (1 - share) * tokens + share * noise
