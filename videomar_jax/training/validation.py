"""The loss on held-out clips, with the averaged parameters and always the same draws: comparable
over a whole run."""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from videomar_jax.data.loader import fixed_clips
from videomar_jax.data.sources import ClipShape
from videomar_jax.parallel.multihost import process_share
from videomar_jax.parallel.sharding import batch_shardings, place
from videomar_jax.training.batches import TrainingInputs, encoded_at_once, to_batch
from videomar_jax.training.config import LossConfig
from videomar_jax.training.loss import Batch, draw, next_frame_loss
from videomar_jax.training.state import Params
from videomar_jax.training.step import token_shape
from videomar_jax.types import Array


class Validation:
    """Call it with parameters to get the mean loss over the same clips.

    Args:
        shape: of the clips; the last stage's, so that early and late steps are measured alike.
        clips: at most so many held-out clips, rounded down to whole batches (one batch at least).
        batch_size: clips at a time, over all processes.
    """

    def __init__(
        self,
        graph: nnx.GraphDef,
        config: LossConfig,
        parts: TrainingInputs,
        mesh: Mesh,
        *,
        shape: ClipShape,
        clips: int,
        batch_size: int,
    ):
        if (
            config.truncate
        ):  # every frame is to be judged, not the last alone; the same loss otherwise
            config = dataclasses.replace(config, truncate=False, normaliser="supervised")
        self._graph, self._config, self._mesh = graph, config, mesh
        count = max(min(clips, len(parts.held_out)) // batch_size, 1)
        self._batches = [self._read(parts, shape, i, batch_size) for i in range(count)]
        self._loss: Callable = jax.jit(self._loss_of)

    def _read(self, parts: TrainingInputs, shape: ClipShape, number: int, size: int) -> Batch:
        share, shares = process_share(self._mesh)
        rows = size // shares
        first = number * size + share * rows
        indices = [i % len(parts.held_out) for i in range(first, first + rows)]
        count = encoded_at_once(shape, rows)
        pieces = [
            jax.tree.map(
                np.asarray,
                to_batch(fixed_clips(parts.held_out, indices[i : i + count], shape=shape), parts),
            )
            for i in range(0, rows, count)
        ]
        batch = jax.tree.map(lambda *parts: np.concatenate(parts), *pieces)
        return place(batch, batch_shardings(batch, self._mesh), first_row=share * rows, rows=size)

    def _loss_of(self, params: Params, batch: Batch, number: Array) -> Array:
        model = nnx.merge(self._graph, params)
        shape = token_shape(batch, model.config.patch_size)
        draws = draw(jax.random.fold_in(jax.random.key(0), number), model, shape, self._config)
        return next_frame_loss(model, batch, draws, self._config)[0]

    def __call__(self, params: Params) -> float:
        """The mean loss over the clips."""
        return float(
            np.mean([self._loss(params, batch, i) for i, batch in enumerate(self._batches)])
        )
