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
    """The model with the products of the transformer in `config.dtype` and those of the head in
    `config.head_dtype`.

    Kernels that are stored wider than they are used are converted once, here, rather than at every
    use. A model that is so already comes back as it is; for many videos convert it once and keep
    it.
    """
    dtype, head_dtype = _wanted(model, config)
    narrow = jnp.dtype(dtype).itemsize >= model.z_proj.kernel.dtype.itemsize
    if narrow and (dtype, head_dtype) == (model.config.dtype, _head_dtype(model)):
        return model
    params = nnx.to_pure_dict(nnx.state(model))
    if not narrow:
        params = {
            name: part if name == "head" else _cast(part, dtype) for name, part in params.items()
        }
    return nnx.merge(_graph(dataclasses.replace(model.config, dtype=dtype), head_dtype), params)


def _wanted(model: VideoMAR, config: SamplingConfig) -> tuple[str, str]:
    own = (model.config.dtype, _head_dtype(model))
    asked = (config.dtype, config.head_dtype)
    return tuple(mine if wish == "model" else wish for mine, wish in zip(own, asked, strict=True))


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
    """Kernels of linear layers, and the biases beside them, in `dtype`; everything else as it
    is."""
    if not isinstance(params, dict):
        return params
    linear = {name for name in ("kernel", "bias") if "kernel" in params}
    return {
        name: jnp.asarray(v, dtype) if name in linear else _cast(v, dtype)
        for name, v in params.items()
    }
