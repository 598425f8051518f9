"""The loss on held-out clips, with the averaged parameters.

The clips and the draws are always the same, so values are comparable over a whole run.
"""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from videomar_jax.data.loader import fixed_clips
from videomar_jax.data.sources import ClipShape
from videomar_jax.models.params import Params
from videomar_jax.models.partitioning import Rule, sharding_rule
from videomar_jax.parallel.multihost import process_share
from videomar_jax.parallel.sharding import batch_shardings, head_layout, place, replicated
from videomar_jax.platforms import compile_for, platform_of
from videomar_jax.training.batches import TrainingInputs, encoded_at_once, to_batch
from videomar_jax.training.config import LossConfig
from videomar_jax.training.draws import Batch, draw
from videomar_jax.training.loss import next_frame_loss
from videomar_jax.training.step import token_shape
from videomar_jax.types import Array


class Validation:
    """Maps parameters to the mean loss over the same clips.

    Args:
        graph: the model's structure.
        shape: of the clips; the last stage's, so that early and late steps are measured alike.
        clips: at most so many held-out clips, rounded down to whole batches (one batch at least).
        batch_size: clips at a time, over all processes.
    """

    def __init__(
        self,
        graph: nnx.GraphDef,
        config: LossConfig,
        inputs: TrainingInputs,
        mesh: Mesh,
        *,
        shape: ClipShape,
        clips: int,
        batch_size: int,
    ):
        if config.truncate:
            # Truncation would judge the last frame alone; without it every frame is judged, by a
            # loss that is otherwise the same.
            config = dataclasses.replace(config, truncate=False, normaliser="supervised")
        if inputs.held_out is None:
            raise ValueError("The inputs have no held-out clips to validate on.")
        self._graph, self._config, self._mesh = graph, config, mesh
        self._inputs, self._held_out = inputs, inputs.held_out
        count = max(min(clips, len(self._held_out)) // batch_size, 1)
        self._batches = [self._read(shape, number, batch_size) for number in range(count)]
        self._loss: Callable = jax.jit(self._loss_of)

    def _read(self, shape: ClipShape, number: int, size: int) -> Batch:
        """Batch `number` of `size` clips as global arrays; reads this process's share of it."""
        share, shares = process_share(self._mesh)
        rows = size // shares
        first = number * size + share * rows
        indices = [i % len(self._held_out) for i in range(first, first + rows)]
        at_once = encoded_at_once(shape, rows)
        pieces = []
        for start in range(0, rows, at_once):
            clips = fixed_clips(self._held_out, indices[start : start + at_once], shape=shape)
            pieces.append(jax.tree.map(np.asarray, to_batch(clips, self._inputs)))
        batch = jax.tree.map(lambda *arrays: np.concatenate(arrays), *pieces)
        return place(batch, batch_shardings(batch, self._mesh), first_row=share * rows, rows=size)

    def _loss_of(self, params: Params, batch: Batch, number: Array) -> Array:
        model = nnx.merge(self._graph, params)
        shape = token_shape(batch, model.config.patch_size)
        draws = draw(jax.random.fold_in(jax.random.key(0), number), model, shape, self._config)
        with sharding_rule(Rule(heads=head_layout(self._mesh))):
            return next_frame_loss(model, batch, draws, self._config)[0]

    def __call__(self, params: Params) -> float:
        """The mean loss over the clips."""
        with compile_for(platform_of(replicated(self._mesh))):
            losses = [self._loss(params, batch, i) for i, batch in enumerate(self._batches)]
        return float(np.mean(losses))
