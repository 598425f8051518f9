"""How much memory a video takes, known before its first frame is drawn.

The cache is exact: keys and values of every layer for the earlier frames that are kept, for the
rows with and without text. The rest is an estimate of what XLA holds at the same time: a view of
the cache in the order that attention wants, the widest layer, the scores where attention is not
fused, noise, and the head's modulations.
"""

import bisect
import math
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from videomar_jax.checks import UserError
from videomar_jax.models.config import ModelConfig
from videomar_jax.models.kernels import choose_kernel
from videomar_jax.sampling.config import SamplingConfig
from videomar_jax.sampling.decoder import cache_length

GIB = 2**30


# What a request needs


def cache_bytes(
    model: ModelConfig, *, batch: int, frames: int, grid: tuple[int, int], guided: bool
) -> int:
    """Bytes of the keys and values of `frames` earlier frames."""
    rows = 2 * batch if guided else batch
    values = model.depth * rows * frames * math.prod(grid) * model.width
    return 2 * values * jnp.dtype(model.dtype).itemsize


def request_bytes(
    model: ModelConfig,
    config: SamplingConfig,
    *,
    batch: int,
    frames: int,
    grid: tuple[int, int],
    fused: bool = False,
) -> dict[str, int]:
    """Bytes that a video needs at its peak beside the parameters, by purpose.

    Args:
        frames: latent frames in all.
        grid: token rows and columns.
        fused: attention does not hold its scores.
    """
    tokens = math.prod(grid)
    # Guidance computes every token twice, with and without text.
    rows = 2 * batch if config.guided else batch
    size = jnp.dtype(model.dtype).itemsize
    kept = cache_length(config, frames - 1)
    cache = cache_bytes(model, batch=batch, frames=kept, grid=grid, guided=config.guided)
    noises = 1
    if model.process.stochastic:
        noises += config.parsed_head_steps.most(model.process.steps)
    modulations = (3 * model.head_depth + 2) * model.head_width
    # The float32 stream in four places; q, k, v and the feed-forward layer in the compute dtype.
    layer_values = 4 * 4 + (3 + 2 * model.mlp_ratio) * size
    scores = 2 * 4 * rows * model.num_heads * tokens**2 * (kept + 1)
    return {
        "cache": cache,
        "view of the cache": cache + 4 * cache // model.depth,
        "text": 2 * model.depth * rows * model.text_tokens * model.width * size,
        "layer": rows * tokens * model.width * layer_values,
        "scores": 0 if fused else scores,
        "noise": 2 * 4 * batch * tokens * model.token_dim * noises,
        "head": 2 * 4 * max(512, rows * tokens // 20) * modulations,
        "video": 2 * 4 * batch * frames * tokens * model.token_dim,
    }


def check_memory(
    model: ModelConfig,
    config: SamplingConfig,
    *,
    batch: int,
    frames: int,
    grid: tuple[int, int],
    free: int | None,
    shards: int = 1,
) -> None:
    """Refuses a video that memory cannot hold.

    Args:
        batch, frames, grid: as in `request_bytes`.
        free: bytes that are free on a device; None skips the check.
        shards: over how many devices the work is split.
    Raises:
        UserError: it does not fit; the text says how many frames would.
    """
    if free is None:
        return
    # Only plain attention holds the scores.
    tokens = math.prod(grid)
    kernel = choose_kernel(model.attention, tokens, tokens, model.head_dim, model.dtype)
    fused = kernel != "xla"

    def needed(frames: int) -> int:
        parts = request_bytes(model, config, batch=batch, frames=frames, grid=grid, fused=fused)
        return sum(parts.values()) // shards

    if needed(frames) <= free:
        return
    # What is needed never falls with the number of frames, so that a bisection finds the most.
    fit = bisect.bisect_right(range(frames), free, lo=2, key=needed) - 1
    hope = f"{fit} frames would fit" if fit > 1 else "not even two frames fit"
    raise UserError(
        f"{batch} x {frames} latent frames of {grid[0]}x{grid[1]} tokens need about "
        f"{needed(frames) / GIB:.1f} GiB beside the model, and {free / GIB:.1f} GiB are free: "
        f"{hope}. Ask for fewer frames or videos at a time, a smaller size, or a window over "
        "earlier frames (sampling.window)."
    )


# What a device has


def free_bytes(device: jax.Device | None = None) -> int | None:
    """Bytes that are free on the device; None where that cannot be known.

    A CPU has what the machine has, or what is left within the limit of the container.
    """
    if device is None:
        device = jax.local_devices()[0]
    stats: dict[str, Any] = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    if device.platform != "cpu":
        return None
    known = [size for size in (_machine_bytes(), container_bytes()) if size is not None]
    return min(known, default=None)


def _machine_bytes() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, IndexError, ValueError):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return None


def container_bytes(root: Path = Path("/")) -> int | None:
    """Bytes left within the memory limits of the control groups of this process; None: no limit.

    Args:
        root: where `proc` and `sys` are.
    """
    left = []
    for folder, limit, usage in _control_groups(root):
        try:
            # Files that were read and can be dropped count as used, but are free for us.
            text = (folder / "memory.stat").read_text(encoding="ascii")
            stat = dict(line.split() for line in text.splitlines())
            dropped = int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))
            most = int((folder / limit).read_text(encoding="ascii"))
            used = int((folder / usage).read_text(encoding="ascii"))
        except (OSError, ValueError):
            # No such file, or "max": this group sets no limit.
            continue
        left.append(max(most - used + dropped, 0))
    return min(left, default=None)


def _control_groups(root: Path) -> list[tuple[Path, str, str]]:
    """(folder, file of the limit, file of the usage) of this process's groups and all above."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    groups = []
    for line in lines:
        # "number:controllers:path"; version 2 of control groups names no controllers.
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mount, names = root / "sys/fs/cgroup", ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            mount = root / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        # In a container the path may be that of the machine, which is not to be seen from inside.
        folder = mount / path.lstrip("/")
        for group in (folder, *folder.parents):
            if group == mount or mount in group.parents:
                groups.append((group, *names))
    return groups
