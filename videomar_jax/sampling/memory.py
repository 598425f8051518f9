"""How much memory a video takes, told before it is begun.

The cache is exact: keys and values of every layer for the finished frames that are kept, for the
    rows with and without
text. The rest is an estimate of what XLA holds at the same time: a view of the cache in the order
    that attention wants,
the widest layer, the scores where attention is not fused, noise, and the head's modulations.
"""

import bisect
import math
import os
from typing import Any

import jax
import jax.numpy as jnp

from videomar_jax.models.config import ModelConfig
from videomar_jax.sampling.config import SamplingConfig
from videomar_jax.sampling.rope_scaling import cache_length
from videomar_jax.sampling.schedules import head_step_names

GIB = 2**30


def cache_bytes(
    model: ModelConfig, *, batch: int, frames: int, grid: tuple[int, int], guided: bool
) -> int:
    """Bytes of the keys and values of `frames` finished frames."""
    rows, size = batch * (2 if guided else 1), jnp.dtype(model.dtype).itemsize
    return 2 * model.depth * rows * frames * math.prod(grid) * model.width * size


def request_bytes(
    model: ModelConfig,
    config: SamplingConfig,
    *,
    batch: int,
    frames: int,
    grid: tuple[int, int],
    fused: bool = False,
) -> dict[str, int]:
    """Bytes that a video of `frames` latent frames needs at its peak beside the parameters, by
    purpose.

    Args:
        fused: attention does not hold its scores (cuDNN).
    """
    tokens, rows = math.prod(grid), batch * (2 if config.guided else 1)
    size, kept = jnp.dtype(model.dtype).itemsize, cache_length(config, frames - 1)
    cache = cache_bytes(model, batch=batch, frames=kept, grid=grid, guided=config.guided)
    head_steps = 0
    if model.head == "ddpm":
        names = head_step_names(config.head_steps, config.steps)
        head_steps = max(_steps(name) for name in names)
    modulations = (3 * model.head_depth + 2) * model.head_width
    return {
        "cache": cache,
        "view of the cache": cache + 4 * cache // model.depth,
        "text": 2 * model.depth * rows * model.text_tokens * model.width * size,
        "layer": rows * tokens * model.width * (4 * 4 + (3 + 2 * model.mlp_ratio) * size),
        "scores": 0 if fused else 2 * 4 * rows * model.num_heads * tokens**2 * (kept + 1),
        "noise": 2 * 4 * batch * tokens * model.token_dim * (head_steps + 1),
        "head": 2 * 4 * max(512, rows * tokens // 20) * modulations,
        "video": 2 * 4 * batch * frames * tokens * model.token_dim,
    }


def _steps(name: str) -> int:
    """Head steps of "N", "ddimN" or "N,N,…"; "" is all thousand."""
    return sum(int(part.removeprefix("ddim")) for part in name.split(",")) if name else 1000


def free_bytes(device: jax.Device | None = None) -> int | None:
    """Bytes that may still be taken on the device, on CPU of the machine's memory; None where
    nobody tells."""
    device = device or jax.local_devices()[0]
    stats: dict[str, Any] = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    if device.platform != "cpu":
        return None
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            lines = dict(line.split(":", 1) for line in file)
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return _available_pages()


def _available_pages() -> int | None:
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return None


def check_memory(
    model: ModelConfig,
    config: SamplingConfig,
    *,
    batch: int,
    frames: int,
    grid: tuple[int, int],
    free: int | None,
    ways: int = 1,
) -> None:
    """Raises before a video is begun that memory cannot hold.

    Args:
        free: bytes to be had on a device; None skips the check.
        ways: over how many devices the work is spread.
    Raises:
        ValueError: it does not fit; the text says how many frames would.
    """
    if free is None:
        return
    fused = (
        jax.default_backend() == "gpu" and model.dtype == "bfloat16" and model.attention != "xla"
    )

    def needed(frames: int) -> int:
        parts = request_bytes(model, config, batch=batch, frames=frames, grid=grid, fused=fused)
        return sum(parts.values()) // ways

    if needed(frames) <= free:
        return
    fit = (
        bisect.bisect_right(range(frames), free, lo=2, key=needed) - 1
    )  # what is needed never falls with frames
    hope = f"{fit} frames would fit" if fit > 1 else "not even two frames fit"
    raise ValueError(
        f"{batch} x {frames} latent frames of {grid[0]}x{grid[1]} tokens need about {needed(frames) / GIB:.1f} GiB "
        f"beside the model, and {free / GIB:.1f} GiB are free: {hope}. Ask for fewer frames or videos at a time, a "
        f"smaller size, or a window over finished frames (sampling.window)."
    )
