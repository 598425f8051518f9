"""Every random choice of generation, made from one key for each sample.

A video therefore does not depend on the batch it is drawn in.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from videomar_jax.types import Array, Float, Int


class FrameDraws(NamedTuple):
    """Every random choice of one frame; noise is indexed by token position."""

    order: Int[Array, "B S"]
    """A permutation of the tokens; its first entry is revealed first."""
    noise: Float[Array, "B S P"]
    """What the head's diffusion starts from."""
    step_noise: Float[Array, "N B S P"]
    """Added in each of N evaluations of the head; N = 0 for a process that adds none."""
    history_noise: Float[Array, "B S P"] | None = None
    """Added to the frame before, as this frame sees it; None: nothing is."""


# Beside the keys 0, 1 and 2 of the draws that every frame has.
_HISTORY = 3


def draw_frame(
    keys: Array,
    number: Array,
    tokens: int,
    width: int,
    evaluations: int,
    *,
    history_noise: bool = False,
) -> FrameDraws:
    """The draws of frame `number`, all standard normal but the order.

    Args:
        keys: [B] random keys; sample i uses `keys[i]` alone.
        tokens: S, the tokens of a frame.
        width: P, the values of a token.
        evaluations: N, for `step_noise`.
        history_noise: draw `history_noise` too; the other draws are the same with it.
    """

    def draw_sample(key: Array) -> FrameDraws:
        key = jax.random.fold_in(key, number)
        order, start, steps = jax.random.split(key, 3)
        history = None
        if history_noise:
            history = jax.random.normal(jax.random.fold_in(key, _HISTORY), (tokens, width))
        return FrameDraws(
            order=jax.random.permutation(order, tokens),
            noise=jax.random.normal(start, (tokens, width)),
            step_noise=jax.random.normal(steps, (evaluations, tokens, width)),
            history_noise=history,
        )

    # Head steps come first, so that a scan over them takes one slice at a time.
    draws = jax.vmap(draw_sample)(keys)
    return draws._replace(step_noise=jnp.moveaxis(draws.step_noise, 0, 1))
