"""The parameters of a model as a plain tree, apart from its structure.

Training and checkpoints work on the tree; `nnx.merge(graph, params)` makes a model of it again.
"""

from typing import Any

import jax
from flax import nnx

from videomar_jax.models.config import ModelConfig
from videomar_jax.models.videomar import VideoMAR
from videomar_jax.types import Key

Params = dict[str, Any]
"""A nested dict of arrays; the layers of a stack are stacked on the leading axis."""


def abstract_model(config: ModelConfig) -> tuple[nnx.GraphDef, Params]:
    """The model's structure, and its parameters as shapes; nothing is allocated."""
    graph, shapes = nnx.split(nnx.eval_shape(lambda: VideoMAR(config, rngs=nnx.Rngs(0))))
    return graph, nnx.to_pure_dict(shapes)


def init_params(config: ModelConfig, key: Key) -> Params:
    """Random parameters; call it under `jax.jit`."""
    return nnx.to_pure_dict(nnx.state(VideoMAR(config, rngs=nnx.Rngs(params=key))))


def count_params(params: Params) -> int:
    """How many numbers the model learns."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
