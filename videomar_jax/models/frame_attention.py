"""Attention between frames: which sees which, on one device or many, by the kernel at hand.

    attend_frames(q, k, v, sees=np.tri(T, dtype=bool))      frame t sees the frames 0..t

Kernels that skip what is not seen ("splash") compute all frames in one call. For the others the
visible frames are cut out and handed to the dense `kernels.attend`, one call for each frame of the
queries: that skips the half of all products that a mask would throw away.

On several devices XLA could partition the plain products by itself, but it would gather keys and
values once for each of these calls, and it cannot partition fused kernels along the tokens (cuDNN)
or at all (TPU). So where a `HeadLayout` is in force (`models.partitioning`), keys and values are
gathered once and each device computes its own queries.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from videomar_jax.models.kernels import Kernel, attend, choose_kernel
from videomar_jax.models.partitioning import HeadLayout, head_layout
from videomar_jax.platforms import platform
from videomar_jax.types import Array, Bool, Float

Heads = Float[Array, "B T S n d"]


def attend_frames(
    q: Float[Array, "B Tq Q n d"],
    k: Float[Array, "B Tk S n d"],
    v: Float[Array, "B Tk S n d"],
    *,
    sees: np.ndarray | None = None,
    key_mask: Bool[Array, "#B N"] | None = None,
    kernel: Kernel = "auto",
) -> Float[Array, "B Tq Q n d"]:
    """All tokens of a frame of `q` see all those of the frames of `k` and `v` that it sees.

    Args:
        sees: bool [Tq, Tk]; each row needs at least one True. None: all frames see all, for a whole
            clip the paper's ablation without causality.
        key_mask: False at keys that nobody sees, N = Tk * S; not together with `sees`.
        kernel: one of `kernels`' table.
    """
    if sees is not None and key_mask is not None:
        raise ValueError("Give which frames see which or a mask of keys, not both.")
    local = functools.partial(_attend, sees=sees, kernel=kernel)
    layout = head_layout()
    if layout is None:
        return local(q, k, v, key_mask)
    if layout.splits_tokens or platform() == "tpu":
        return _attend_on_mesh(layout, local, q, k, v, key_mask)
    # Samples and heads are independent of each other: XLA needs no help.
    return local(q, k, v, key_mask)


def _attend_on_mesh(layout: HeadLayout, local, q, k, v, key_mask) -> Float[Array, "B Tq Q n d"]:
    """`local` on each device for its own samples, queries and heads, and all keys of these."""
    sizes = dict(layout.mesh.shape)

    def fitting(names: tuple[str, ...], size: int) -> tuple[str, ...] | None:
        """The axes, where they divide the size."""
        return names if size % math.prod(sizes[name] for name in names) == 0 else None

    samples, heads = fitting(layout.samples, q.shape[0]), fitting(layout.heads, q.shape[3])
    queries = jax.P(samples, None, fitting(layout.tokens, q.shape[2]), heads)
    keys = jax.P(samples, None, None, heads)
    masks = None
    if key_mask is not None:
        masks = jax.P(samples if len(key_mask) == len(q) else None)
    spread = jax.shard_map(
        local,
        mesh=layout.mesh,
        in_specs=(queries, keys, keys, masks),
        out_specs=queries,
        # The check knows no rule for the fused kernels.
        check_vma=False,
    )
    return spread(q, k, v, key_mask)


def _attend(
    q: Float[Array, "B Tq Q n d"],
    k: Float[Array, "B Tk S n d"],
    v: Float[Array, "B Tk S n d"],
    key_mask: Bool[Array, "#B N"] | None,
    *,
    sees: np.ndarray | None,
    kernel: Kernel,
) -> Float[Array, "B Tq Q n d"]:
    """`attend_frames` on one device."""
    if sees is None:
        dense = attend(*(join_frames(x) for x in (q, k, v)), key_mask=key_mask, kernel=kernel)
        return dense.reshape(q.shape)
    kernel = choose_kernel(kernel, q.shape[2], k.shape[2], q.shape[-1], q.dtype)
    if kernel == "splash":
        # Imported late: nothing else needs the language that kernels for TPUs are written in.
        from videomar_jax.models.splash import splash_attention

        return splash_attention(q, k, v, sees=sees)
    out = []
    for t, row in enumerate(sees):
        own = slice(t, t + 1)
        out.append(
            _attend(q[:, own], _visible(k, row), _visible(v, row), None, sees=None, kernel=kernel)
        )
    return jnp.concatenate(out, axis=1)


def join_frames(x: Heads) -> Float[Array, "B N n d"]:
    """All tokens of all frames in one row, N = T * S."""
    return rearrange(x, "b t s n d -> b (t s) n d")


def _visible(x: Heads, row: np.ndarray) -> Float[Array, "B _ S n d"]:
    """The frames where `row` is True."""
    numbers = np.flatnonzero(row)
    # Runs of neighbours are slices, which copy less than a list of indices.
    runs = np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1)
    parts = [x[:, run[0] : run[-1] + 1] for run in runs]
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)
