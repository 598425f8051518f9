"""Every random choice of generation, made from one key for each sample: a video does not depend on
its batch."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from videomar_jax.types import Array, Float, Int


class FrameDraws(NamedTuple):
    """Every random choice of one frame, by token position; N evaluations of the head (none for the
    flow head)."""

    order: Int[Array, "B S"]
    noise: Float[Array, "B S P"]
    step_noise: Float[Array, "N B S P"]


def draw_frame(keys: Array, number: Array, tokens: int, width: int, head_steps: int) -> FrameDraws:
    """The draws of frame `number`; sample i uses `keys[i]` alone, so its video does not depend on
    its batch."""

    def one(key):
        order, start, steps = jax.random.split(jax.random.fold_in(key, number), 3)
        step_noise = jax.random.normal(steps, (head_steps, tokens, width))
        return FrameDraws(
            jax.random.permutation(order, tokens),
            jax.random.normal(start, (tokens, width)),
            step_noise,
        )

    draws = jax.vmap(one)(keys)
    return draws._replace(step_noise=jnp.moveaxis(draws.step_noise, 0, 1))
