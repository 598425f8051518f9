"""What a latent frame takes at least on this device: its matrix products at the rate of a large
product, or the weights and the cache they read at the rate of a large copy, whichever is longer,
for the transformer and for the head.

Counted is the method as it is told, without any saving: all tokens in every layer and reveal step,
    both branches where
steps are guided, and in the head the tokens that a step reveals.
"""

import math

import jax
import jax.numpy as jnp

from benchmarks.measuring import copy_peak, matmul_peak
from videomar_jax.diffusion.solver import plan_steps
from videomar_jax.models.config import ModelConfig
from videomar_jax.sampling.config import SamplingConfig
from videomar_jax.sampling.memory import cache_bytes
from videomar_jax.sampling.schedules import head_step_names, reveal_plan


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
    transformer, head = frame_work(config, sampling, grid, batch, seen)
    return sum(
        max(flops / peak["flops"], size / peak["bytes"]) for flops, size in (transformer, head)
    )


def frame_work(
    config: ModelConfig, sampling: SamplingConfig, grid: tuple[int, int], batch: int, seen: int
) -> tuple[tuple[float, float], tuple[float, float]]:
    """(FLOPs, bytes read) of the transformer and of the head."""
    tokens = math.prod(grid)
    plan = reveal_plan(tokens, sampling)
    names = head_step_names(sampling, len(plan.count))
    steps = plan_steps(config.process, names, sampling.head_solver)
    evaluations = jax.device_get(steps.count)[plan.head]
    doubled = 1 + plan.guided
    rows = (
        batch * tokens * (int(doubled.sum()) + int(doubled.max()))
    )  # and one pass to remember the last frame
    width, item = config.width, jnp.dtype(config.dtype).itemsize
    linear = (6 + 2 * config.mlp_ratio) * width**2
    flops = (
        2 * config.depth * rows * (linear + 2 * width * (tokens * (seen + 1) + config.text_tokens))
    )
    cache = cache_bytes(config, batch=batch, frames=seen, grid=grid, guided=bool(doubled.max() > 1))
    read = (len(plan.count) + 1) * (config.depth * linear * item + cache)
    w = config.head_width
    outputs = config.process.output_channels(config.token_dim)
    weights = (5 * config.head_depth + 2) * w**2 + w * (config.token_dim + outputs)
    drawn = batch * float((plan.count * doubled * evaluations).sum())
    head = jnp.dtype("float32" if sampling.head_dtype == "model" else sampling.head_dtype).itemsize
    once = 4 * batch * tokens * width * w  # the part of the condition that z gives
    return (flops, read), (
        2 * drawn * weights + once,
        float(evaluations.sum()) * 2 * config.head_depth * w**2 * head,
    )
