"""A clip in temporal chunks: the same numbers as in one piece, in memory that does not grow with
its length.

A network step maps one chunk and its `Past` to the chunk's output. Causal convolutions keep their
last frames, temporal attention its keys and values (in buffers for the whole clip, at latent
resolution), and nothing else. The first chunk takes what the later ones leave over, so that all
others have one size and one program:

    T latent frames = first + loops * chunk,   1 <= first <= chunk
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from videomar_jax.tokenizers.cosmos.layers import Past
from videomar_jax.types import Array

NetworkStep = Callable[[Array, Past], Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class ChunkState:
    """What the next chunk needs of all before it."""

    seen: Any  # int32: latent frames so far
    kept: tuple[Any, ...]  # one array for each look back, in running order


def run_chunk(
    step: NetworkStep, x: Array, state: ChunkState | None, *, frames: int, capacity: int
) -> tuple[Array, ChunkState]:
    """One chunk of `frames` latent frames after `state` (None: the clip starts here) of a clip of
    up to `capacity`."""
    past = Past(None) if state is None else Past(state.kept, seen=state.seen)
    past.capacity = capacity
    y = step(x, past)
    return y, ChunkState(seen=jnp.asarray(past.seen + frames, jnp.int32), kept=tuple(past.kept))


def run_clip(
    step: NetworkStep, x: Array, *, frames: int, chunk: int | None, strides: tuple[int, int]
) -> Array:
    """A whole clip [B, 1 + a (frames - 1), ...] to [B, 1 + b (frames - 1), ...] with (a, b) =
    `strides`.

    chunk: latent frames at a time; None for all. Jittable; the loop over chunks is a `lax.scan`
        that fills one output.
    """
    if chunk is None or frames <= chunk:
        return step(x, Past(capacity=frames))
    loops = (frames - 1) // chunk
    first = frames - loops * chunk
    length_in, length_out = (1 + stride * (first - 1) for stride in strides)
    y, state = run_chunk(step, x[:, :length_in], None, frames=first, capacity=frames)
    out = jnp.zeros((y.shape[0], length_out + loops * chunk * strides[1], *y.shape[2:]), y.dtype)
    out = jax.lax.dynamic_update_slice_in_dim(out, y, 0, axis=1)

    def body(carry: tuple[ChunkState, Array], _: None) -> tuple[tuple[ChunkState, Array], None]:
        state, out = carry
        start_in, start_out = (1 + stride * (state.seen - 1) for stride in strides)
        part = jax.lax.dynamic_slice_in_dim(x, start_in, chunk * strides[0], axis=1)
        y, state = run_chunk(step, part, state, frames=chunk, capacity=frames)
        return (state, jax.lax.dynamic_update_slice_in_dim(out, y, start_out, axis=1)), None

    (_, out), _ = jax.lax.scan(body, (state, out), length=loops)
    return out
