"""The least time of a latent frame on this device, for the transformer and for the head.

It is that of the matrix products at the rate of a large product, or of reading the weights and the
cache at the rate of a large copy, whichever is longer. The work counted is that of the paper's
sampler without any saving: all tokens in every layer and reveal step, both branches where steps are
guided, and in the head the tokens that a step reveals.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.measuring import copy_peak, matmul_peak
from videomar_jax.diffusion.plans import plan_steps
from videomar_jax.models.config import ModelConfig
from videomar_jax.sampling.config import SamplingConfig
from videomar_jax.sampling.memory import cache_bytes
from videomar_jax.sampling.schedules import head_step_names, reveal_plan


class Work(NamedTuple):
    """What a part of the model does for one frame."""

    flops: float
    bytes_read: float


def device_peaks(dtype: str) -> dict[str, float]:
    """FLOP/s of a large product and bytes/s of a large copy."""
    return {"flops": matmul_peak(dtype), "bytes": copy_peak()}


def floor_seconds(
    config: ModelConfig,
    sampling: SamplingConfig,
    grid: tuple[int, int],
    batch: int,
    seen: int,
    peak: dict[str, float],
) -> float:
    """Seconds of a frame that sees `seen` others, at these rates."""
    seconds = 0.0
    for work in frame_work(config, sampling, grid, batch, seen):
        seconds += max(work.flops / peak["flops"], work.bytes_read / peak["bytes"])
    return seconds


def frame_work(
    config: ModelConfig, sampling: SamplingConfig, grid: tuple[int, int], batch: int, seen: int
) -> tuple[Work, Work]:
    """The work of the transformer and of the head."""
    tokens = math.prod(grid)
    plan = reveal_plan(tokens, sampling)
    names = head_step_names(sampling, len(plan.count))
    steps = plan_steps(config.process, names, sampling.head_solver)
    evaluations = jax.device_get(steps.count)[plan.head]
    copies = 1 + plan.guided
    return (
        _transformer_work(config, copies, tokens, batch, seen),
        _head_work(config, sampling, batch * tokens, batch * plan.count * copies, evaluations),
    )


def _transformer_work(
    config: ModelConfig, copies: np.ndarray, tokens: int, batch: int, seen: int
) -> Work:
    # The passes of the reveal steps, and one that commits the frame to the cache.
    passes = int(copies.sum()) + int(copies.max())
    rows = batch * tokens * passes
    linear = (6 + 2 * config.mlp_ratio) * config.width**2
    attended = tokens * (seen + 1) + config.text_tokens
    flops = 2 * config.depth * rows * (linear + 2 * config.width * attended)
    guided = bool(copies.max() > 1)
    grid = (tokens, 1)
    cache = cache_bytes(config, batch=batch, frames=seen, grid=grid, guided=guided)
    weights = config.depth * linear * jnp.dtype(config.dtype).itemsize
    return Work(flops, (len(copies) + 1) * (weights + cache))


def _head_work(
    config: ModelConfig,
    sampling: SamplingConfig,
    rows: int,
    drawn: np.ndarray,
    evaluations: np.ndarray,
) -> Work:
    width = config.head_width
    outputs = config.process.output_channels(config.token_dim)
    weights = (5 * config.head_depth + 2) * width**2 + width * (config.token_dim + outputs)
    # The part of the condition that z gives is computed once for a token.
    condition = 4 * rows * config.width * width
    dtype = "float32" if sampling.head_dtype == "model" else sampling.head_dtype
    # Counted as read are the weights of the two products of each block, in every evaluation.
    read = 2 * config.head_depth * width**2 * jnp.dtype(dtype).itemsize
    flops = 2 * float((drawn * evaluations).sum()) * weights + condition
    return Work(flops, float(evaluations.sum()) * read)
