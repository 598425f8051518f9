"""One update: a pure function (state, batch, key) → (state, metrics).

It is compiled once for each shape of batch. With accumulation the batch is worked on in n parts,
one after the other, whose gradients are added. The loss of each part is divided by the counts of
the whole batch, so the update is that of the whole batch, whatever n is.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from videomar_jax.models.params import Params
from videomar_jax.models.partitioning import Rule, constrain, sharding_rule
from videomar_jax.platforms import compile_for, platform_of
from videomar_jax.training.config import LossConfig, OptimizerConfig
from videomar_jax.training.draws import Batch, LossDraws, draw
from videomar_jax.training.loss import next_frame_loss
from videomar_jax.training.normaliser import loss_normaliser
from videomar_jax.training.optimizer import ema_decay
from videomar_jax.training.state import TrainState
from videomar_jax.types import Array, Key

TrainStep = Callable[[TrainState, Batch, Key], tuple[TrainState, dict[str, Any]]]


def make_train_step(
    graph: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    loss_config: LossConfig,
    config: OptimizerConfig,
    *,
    accumulate: int = 1,
    shardings: TrainState | None = None,
    rule: Rule | None = None,
) -> TrainStep:
    """The update function, compiled at its first call. It donates the state; the draws of step s
    come from fold_in(key, s).

    Args:
        accumulate: parts that a batch is worked on in; they must divide the number of its clips.
        shardings: how the arrays of the state are sharded, and stay so.
        rule: how those of the computation are sharded (`parallel.sharding.layout_rule`).
    """
    out_shardings, platform = None, None
    if shardings is not None:
        platform = platform_of(shardings)
        # Metrics are scalars, replicated like the step.
        out_shardings = (shardings, jax.tree.leaves(shardings.step)[0])

    @functools.partial(jax.jit, donate_argnums=0, out_shardings=out_shardings)
    def train_step(state: TrainState, batch: Batch, key: Key) -> tuple[TrainState, dict[str, Any]]:
        model = nnx.merge(graph, state.params)
        shape = token_shape(batch, model.config.patch_size)
        draws = draw(jax.random.fold_in(key, state.step), model, shape, loss_config)
        normaliser = loss_normaliser(draws, shape, loss_config)

        def gradients_of_part(batch, draws):
            def loss_of(params):
                model = nnx.merge(graph, constrain("outside", params))
                return next_frame_loss(model, batch, draws, loss_config, normaliser)

            with sharding_rule(rule), compile_for(platform):
                (_, metrics), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
            if shardings is not None:
                gradients = jax.lax.with_sharding_constraint(gradients, shardings.params)
            return gradients, metrics

        gradients, metrics = sum_over_parts(gradients_of_part, batch, draws, accumulate)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        ema = _average(state.ema, params, ema_decay(config, state.step))
        norms = {
            "gradient_norm": optax.tree.norm(gradients),
            "update_norm": optax.tree.norm(updates),
            "parameter_norm": optax.tree.norm(params),
            "ema_drift": optax.tree.norm(jax.tree.map(jnp.subtract, params, ema)),
        }
        return TrainState(state.step + 1, params, ema, opt_state), metrics | norms

    return train_step


def _average(average: Params, new: Params, decay: Array | float) -> Params:
    mean = jax.tree.map(lambda a, x: decay * a + (1 - decay) * x, average, new)
    if "linear_prior" in new:
        # It is constant; the average of a constant would drift with every rounding.
        mean["linear_prior"] = new["linear_prior"]
    return mean


def token_shape(batch: Batch, patch_size: int) -> tuple[int, int, int]:
    """(B, T, S) of a batch."""
    clips, frames, rows, columns, _ = batch.latents.shape
    return clips, frames, rows * columns // patch_size**2


def sum_over_parts(function: Callable, batch: Batch, draws: LossDraws, parts: int) -> Any:
    """The sum of function(batch, draws) over `parts` parts of the batch, one after the other."""
    if parts == 1:
        return function(batch, draws)

    def add(total, piece):
        return jax.tree.map(jnp.add, total, function(*piece)), None

    pieces = (jax.tree.map(lambda x: _cut(x, parts), batch), split_draws(draws, parts))
    first = jax.tree.map(lambda x: x[0], pieces)
    shapes = jax.eval_shape(function, *first)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.scan(add, zeros, pieces)[0]


def split_draws(draws: LossDraws, parts: int) -> LossDraws:
    """The draws of `parts` equal parts of the batch, stacked on a new leading axis.

    Part i takes the clips i, i + parts, i + 2 parts, ...

    Raises:
        ValueError: the number of clips is not a multiple of `parts`.
    """
    clips = len(draws.current)
    if parts < 1 or clips % parts:
        raise ValueError(f"A batch of {clips} clips cannot be split into {parts} equal parts.")
    pieces = {}
    for field in dataclasses.fields(draws):
        x = getattr(draws, field.name)
        axis = 1 if field.name in ("times", "noise") else 0
        pieces[field.name] = None if x is None else _cut(x, parts, axis)
    return LossDraws(**pieces)


def _cut(x: Array, parts: int, axis: int = 0) -> Array:
    # A batch whose clips are cut into blocks over devices keeps every clip where it is: part i is
    # every `parts`-th clip, not a block of them.
    x = x.reshape(*x.shape[:axis], x.shape[axis] // parts, parts, *x.shape[axis + 1 :])
    return jnp.moveaxis(x, axis + 1, 0)
