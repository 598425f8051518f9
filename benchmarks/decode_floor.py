"""What a latent frame takes at least on this device: its matrix products at the rate of a large product, or the weights
and the cache they read at the rate of a large copy, whichever is longer, for the transformer and for the head.

Counted is the method as it is told, without any saving: all tokens in every layer and reveal step, both branches where
steps are guided, and in the head the tokens that a step reveals.
"""

import math
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from videomar_jax.models.config import ModelConfig
from videomar_jax.models.diffusion import output_values
from videomar_jax.sampling.config import SamplingConfig
from videomar_jax.sampling.head_plan import head_plan
from videomar_jax.sampling.memory import cache_bytes
from videomar_jax.sampling.schedules import head_step_names, reveal_plan


def device_peaks(dtype: str) -> dict[str, float]:
    """FLOP/s of a large product and bytes/s of a large copy, the best of several."""
    cpu = jax.default_backend() == "cpu"
    size = 2048 if cpu else 8192
    matrix = jax.random.normal(jax.random.key(0), (size, size), dtype)
    product = jax.jit(lambda a: jnp.matmul(a, a, preferred_element_type=jnp.float32))
    block = jnp.zeros(2**26 if cpu else 2**30, jnp.float32)
    copy = jax.jit(lambda x: x + 1)
    return {
        "flops": 2 * size**3 / _best(lambda: jax.block_until_ready(product(matrix))),
        "bytes": 2 * block.nbytes / _best(lambda: jax.block_until_ready(copy(block))),
    }


def _best(function: Callable[[], Any], repeats: int = 8) -> float:
    function()
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        best = min(best, time.perf_counter() - start)
    return best


def floor_seconds(config: ModelConfig, sampling: SamplingConfig, grid: tuple[int, int], batch: int, seen: int,
                  peak: dict[str, float]) -> float:  # fmt: skip
    """Seconds of a frame that sees `seen` others, at these rates."""
    transformer, head = frame_work(config, sampling, grid, batch, seen)
    return sum(max(flops / peak["flops"], size / peak["bytes"]) for flops, size in (transformer, head))


def frame_work(
    config: ModelConfig, sampling: SamplingConfig, grid: tuple[int, int], batch: int, seen: int
) -> tuple[tuple[float, float], tuple[float, float]]:
    """(FLOPs, bytes read) of the transformer and of the head."""
    tokens = math.prod(grid)
    plan = reveal_plan(tokens, sampling)
    steps = head_plan(config, sampling, head_step_names(sampling.head_steps, len(plan.count)))
    evaluations = jax.device_get(steps.count)[plan.head]
    doubled = 1 + plan.guided
    rows = batch * tokens * (int(doubled.sum()) + int(doubled.max()))  # and one pass to remember the last frame
    width, item = config.width, jnp.dtype(config.dtype).itemsize
    linear = (6 + 2 * config.mlp_ratio) * width**2
    flops = 2 * config.depth * rows * (linear + 2 * width * (tokens * (seen + 1) + config.text_tokens))
    cache = cache_bytes(config, batch=batch, frames=seen, grid=grid, guided=bool(doubled.max() > 1))
    read = (len(plan.count) + 1) * (config.depth * linear * item + cache)
    w = config.head_width
    weights = (5 * config.head_depth + 2) * w**2 + w * (config.token_dim + output_values(config))
    drawn = batch * float((plan.count * doubled * evaluations).sum())
    head = jnp.dtype("float32" if sampling.head_dtype == "model" else sampling.head_dtype).itemsize
    once = 4 * batch * tokens * width * w  # the part of the condition that z gives
    return (flops, read), (2 * drawn * weights + once, float(evaluations.sum()) * 2 * config.head_depth * w**2 * head)


def torch_peak(python: str | None) -> float | None:
    """FLOP/s of PyTorch's product of two 2048 x 2048 matrices on CPU, in this interpreter or in `python`."""
    code = (
        "import time, torch\na = torch.randn(2048, 2048)\nbest = 9e9\nfor _ in range(10):\n"
        "    t = time.perf_counter(); torch.matmul(a, a); best = min(best, time.perf_counter() - t)\n"
        "print(2 * 2048**3 / best)"
    )
    done = subprocess.run([python or sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return float(done.stdout) if done.returncode == 0 else None
