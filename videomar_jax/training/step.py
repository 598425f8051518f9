"""One update: a pure function (state, batch) → (state, metrics), jitted once for each shape of
batch.

With accumulation the batch is worked on in n parts, one after the other, whose gradients are added.
Each part's loss is divided by the hidden tokens of the whole batch, so the update is that of the
whole batch, whatever n is.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from videomar_jax.models.partitioning import Rule, laid_out, layout
from videomar_jax.training.config import LossConfig, OptimizerConfig
from videomar_jax.training.loss import Batch, draw, loss_normaliser, next_frame_loss
from videomar_jax.training.optimizer import ema_decay
from videomar_jax.training.state import TrainState
from videomar_jax.types import Array, Key


def make_train_step(
    graph: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    loss_config: LossConfig,
    config: OptimizerConfig,
    *,
    accumulate: int = 1,
    shardings: TrainState | None = None,
    rule: Rule | None = None,
) -> Callable[[TrainState, Batch, Key], tuple[TrainState, dict[str, Any]]]:
    """The update function. The state is donated; the draws of step s come from fold_in(key, s).

    Args:
        accumulate: parts that a batch is worked on in; the number of its clips must be a multiple.
        shardings: where the arrays of the state lie, and stay.
        rule: where those of the computation lie (`training.sharding.layout_rule`).
    """
    whole = None if shardings is None else jax.tree.leaves(shardings.step)[0]

    @functools.partial(
        jax.jit, donate_argnums=0, out_shardings=None if shardings is None else (shardings, whole)
    )
    def train_step(state: TrainState, batch: Batch, key: Key) -> tuple[TrainState, dict[str, Any]]:
        model = nnx.merge(graph, state.params)
        shape = token_shape(batch, model.config.patch_size)
        draws = draw(jax.random.fold_in(key, state.step), model, shape, loss_config)
        normaliser = loss_normaliser(draws, shape, loss_config)

        def part(batch, draws):
            def loss_of(params):
                model = nnx.merge(graph, laid_out("outside", params))
                return next_frame_loss(model, batch, draws, loss_config, normaliser)

            with layout(rule):
                (_, metrics), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
            if shardings is not None:
                gradients = jax.lax.with_sharding_constraint(gradients, shardings.params)
            return gradients, metrics

        gradients, metrics = summed_over_parts(part, batch, draws, accumulate)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        decay = ema_decay(config, state.step)
        ema = jax.tree.map(
            lambda average, new: decay * average + (1 - decay) * new, state.ema, params
        )
        norms = {
            "gradient_norm": optax.tree.norm(gradients),
            "update_norm": optax.tree.norm(updates),
            "parameter_norm": optax.tree.norm(params),
            "ema_drift": optax.tree.norm(jax.tree.map(jnp.subtract, params, ema)),
        }
        return TrainState(state.step + 1, params, ema, opt_state), metrics | norms

    return train_step


def token_shape(batch: Batch, patch_size: int) -> tuple[int, int, int]:
    """(B, T, S) of a batch."""
    clips, frames, rows, columns, _ = batch.latents.shape
    return clips, frames, rows * columns // patch_size**2


def summed_over_parts(function: Callable, batch: Batch, draws: Any, parts: int) -> Any:
    """The sum of function(batch, draws) over `parts` parts of the batch, one after the other."""
    if parts == 1:
        return function(batch, draws)

    # Part i takes the clips i, i + parts, …: each device keeps the clips that it has.
    def cut(x: Array) -> Array:
        return jnp.moveaxis(x.reshape(len(x) // parts, parts, *x.shape[1:]), 1, 0)

    pieces = (jax.tree.map(cut, batch), draws.split(parts))
    zeros = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype),
        jax.eval_shape(function, *jax.tree.map(lambda x: x[0], pieces)),
    )
    return jax.lax.scan(
        lambda total, piece: (jax.tree.map(jnp.add, total, function(*piece)), None), zeros, pieces
    )[0]
