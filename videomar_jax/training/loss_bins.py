"""Losses by latent frame and by noise level, for the log."""

import jax.numpy as jnp
import numpy as np

from videomar_jax.types import Array, Bool, Float, Int

NOISE_BINS = 5
"""Equal bins of the noise level."""


def losses_apart(
    losses: Float[Array, "m B R S"],
    hidden: Bool[Array, "B R S"],
    number: Int[Array, "#B R"] | np.ndarray,
    frames: int,
    noise_level: Float[Array, "m B R S"],
) -> dict[str, dict[str, Array]]:
    """The "sum" and the "count" of the losses of hidden tokens, each [bins].

    Args:
        losses: zero where a token is not hidden.
        number: of each supervised frame in its clip of `frames`; [R] where clips do not differ.
        noise_level: of each draw, in [0, 1].
    Returns:
        "by_frame", [frames], and "by_noise", equal bins of [0, 1].
    """
    counted = jnp.broadcast_to(hidden, losses.shape)
    number = jnp.broadcast_to(number, hidden.shape[:2])
    bins = jnp.minimum((noise_level * NOISE_BINS).astype(jnp.int32), NOISE_BINS - 1)
    return {
        "by_frame": _binned(losses.sum((0, 3)), counted.sum((0, 3)), number, frames),
        "by_noise": _binned(losses, counted, bins, NOISE_BINS),
    }


def _binned(values: Array, counts: Array, index: Array, bins: int) -> dict[str, Array]:
    """Sums of values and counts over the entries whose index is 0, 1, ..., bins - 1."""
    # A product with one-hot rows: a scatter-add would be slower on accelerators.
    member = (index[..., None] == jnp.arange(bins)).astype(jnp.float32)
    axes = tuple(range(index.ndim))
    return {
        "sum": jnp.sum(values[..., None] * member, axes),
        "count": jnp.sum(counts[..., None] * member, axes),
    }
