"""The number types that a model samples in, whatever it was trained in."""

import dataclasses
import functools
from typing import Any

import jax.numpy as jnp
from flax import nnx

from videomar_jax.models.config import ModelConfig
from videomar_jax.models.diffusion_head import DiffusionHead
from videomar_jax.models.videomar import VideoMAR
from videomar_jax.sampling.config import SamplingConfig


def for_sampling(model: VideoMAR, config: SamplingConfig) -> VideoMAR:
    """The model with the matrix products that the config asks for: those of the transformer in
    `config.dtype`, those of the head in `config.head_dtype`.

    Kernels that are stored wider than they are used are converted once, here, rather than at every
    use. A model that has these types already is returned as it is; to draw many videos, convert
    the model once and keep it.
    """
    own_head_dtype = _head_dtype(model)
    dtype = model.config.dtype if config.dtype == "model" else config.dtype
    head_dtype = own_head_dtype if config.head_dtype == "model" else config.head_dtype
    stored = model.z_proj.kernel.dtype
    fits = jnp.dtype(dtype).itemsize >= stored.itemsize
    if fits and (dtype, head_dtype) == (model.config.dtype, own_head_dtype):
        return model
    params = nnx.to_pure_dict(nnx.state(model))
    if not fits:
        # The head is small and keeps its weights: its types are those of its products only.
        params = {
            name: part if name == "head" else _cast(part, dtype) for name, part in params.items()
        }
    return nnx.merge(_graph(dataclasses.replace(model.config, dtype=dtype), head_dtype), params)


def _head_dtype(model: VideoMAR) -> str:
    return jnp.dtype(model.head.input_proj.dtype).name


@functools.lru_cache(maxsize=8)
def _graph(config: ModelConfig, head_dtype: str) -> nnx.GraphDef:
    """A model whose head computes in a type of its own, without parameters."""

    def build() -> VideoMAR:
        model = VideoMAR(config, rngs=nnx.Rngs(0))
        model.head = DiffusionHead(dataclasses.replace(config, dtype=head_dtype), rngs=nnx.Rngs(0))
        return model

    return nnx.split(nnx.eval_shape(build))[0]


def _cast(params: Any, dtype: str) -> Any:
    """Kernels of linear layers and the biases beside them in `dtype`; all else as it is."""
    if not isinstance(params, dict):
        return params
    linear = ("kernel", "bias") if "kernel" in params else ()
    cast = {}
    for name, value in params.items():
        cast[name] = jnp.asarray(value, dtype) if name in linear else _cast(value, dtype)
    return cast
