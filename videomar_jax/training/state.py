"""The train state: everything that changes from step to step, as one tree of arrays."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from videomar_jax.models.config import ModelConfig
from videomar_jax.models.videomar import VideoMAR
from videomar_jax.types import Key

Params = dict[str, Any]
"""The model's parameters as a plain nested dict of arrays, layers stacked on the leading axis."""


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["step", "params", "ema", "opt_state"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class TrainState:
    """`step` updates were made; `ema` are the averaged parameters that sampling uses."""

    step: Any  # int32 scalar
    params: Params
    ema: Params
    opt_state: Any

    def parts(self) -> dict[str, Any]:
        """The parts by name, as a checkpoint stores them."""
        return {"params": self.params, "ema": self.ema, "opt_state": self.opt_state}


def abstract_model(config: ModelConfig) -> tuple[nnx.GraphDef, Params]:
    """The model's structure, and its parameters as shapes; nothing is allocated."""
    graph, shapes = nnx.split(nnx.eval_shape(lambda: VideoMAR(config, rngs=nnx.Rngs(0))))
    return graph, nnx.to_pure_dict(shapes)


def init_params(config: ModelConfig, key: Key) -> Params:
    """Random parameters; to be called under `jit`."""
    return nnx.to_pure_dict(nnx.state(VideoMAR(config, rngs=nnx.Rngs(params=key))))


def init_state(
    config: ModelConfig,
    optimizer: optax.GradientTransformation,
    key: Key,
    initial: Params | None = None,
    shardings: TrainState | None = None,
) -> TrainState:
    """A fresh state at step 0: random parameters or the `initial` ones, the average equal to them.

    shardings: where every array goes; it is made there, so that no device ever holds the whole
        state.
    """

    def build(key, initial):
        params = init_params(config, key) if initial is None else jax.tree.map(jnp.copy, initial)
        return TrainState(
            jnp.zeros((), jnp.int32), params, jax.tree.map(jnp.copy, params), optimizer.init(params)
        )

    return jax.jit(build, out_shardings=shardings)(key, initial)


def count_params(params: Params) -> int:
    """How many numbers the model learns."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
