"""The train state: everything that changes from step to step, as one tree of arrays."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from videomar_jax.models.config import ModelConfig
from videomar_jax.models.params import Params, init_params
from videomar_jax.types import Key


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The state after `step` updates."""

    step: Any
    """int32 scalar."""
    params: Params
    """The parameters that are trained."""
    ema: Params
    """Their running average, which sampling uses."""
    opt_state: Any
    """The state of the optimizer."""

    def parts(self) -> dict[str, Any]:
        """The parts by name, as a checkpoint stores them."""
        return {"params": self.params, "ema": self.ema, "opt_state": self.opt_state}


def init_state(
    config: ModelConfig,
    optimizer: optax.GradientTransformation,
    key: Key,
    initial: Params | None = None,
    shardings: TrainState | None = None,
    prior: Params | None = None,
) -> TrainState:
    """A fresh state at step 0, the average equal to the parameters.

    Args:
        initial: parameters to start from; None: random ones.
        shardings: where every array goes. It is made there, so that no device ever holds the whole
            state.
        prior: the fitted linear prior, in place of the initial one.
    """

    def build(key, initial, prior):
        params = init_params(config, key) if initial is None else _copy(initial)
        if prior is not None:
            params["linear_prior"] = _copy(prior)
        return TrainState(jnp.zeros((), jnp.int32), params, _copy(params), optimizer.init(params))

    return jax.jit(build, out_shardings=shardings)(key, initial, prior)


def _copy(params: Params) -> Params:
    # Training donates the state: each of its trees needs buffers of its own.
    return jax.tree.map(jnp.copy, params)
