"""One update: a pure function (state, batch) → (state, metrics), jitted once for each shape of batch."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import optax
from flax import nnx

from videomar_jax.training.loss import Batch, LossConfig, draw, next_frame_loss
from videomar_jax.training.optimizer import OptimizerConfig, ema_decay
from videomar_jax.training.state import TrainState
from videomar_jax.types import Array, Key


def make_train_step(
    graph: nnx.GraphDef, optimizer: optax.GradientTransformation, loss_config: LossConfig, config: OptimizerConfig,
) -> Callable[[TrainState, Batch, Key], tuple[TrainState, dict[str, Array]]]:  # fmt: skip
    """The update function. The state is donated; the draws of step s come from fold_in(key, s)."""

    @functools.partial(jax.jit, donate_argnums=0)
    def train_step(state: TrainState, batch: Batch, key: Key) -> tuple[TrainState, dict[str, Array]]:
        def loss_of(params: Any):
            model = nnx.merge(graph, params)
            size = model.config.patch_size
            clips, frames, rows, columns, _ = batch.latents.shape
            shape = (clips, frames, rows * columns // size**2)
            draws = draw(jax.random.fold_in(key, state.step), model, shape, loss_config)
            return next_frame_loss(model, batch, draws, loss_config)

        (_, metrics), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        decay = ema_decay(config, state.step)
        ema = jax.tree.map(lambda average, new: decay * average + (1 - decay) * new, state.ema, params)
        norms = {
            "gradient_norm": optax.global_norm(gradients),
            "update_norm": optax.global_norm(updates),
            "parameter_norm": optax.global_norm(params),
        }
        return TrainState(state.step + 1, params, ema, opt_state), metrics | norms

    return train_step
