"""A clip in temporal chunks: the same result as in one piece, in memory that does not grow with the
clip's length.

A network step maps one chunk and its `Past` to the chunk's output. What passes from chunk to chunk
are the last frames of causal convolutions and the keys and values of temporal attention (in buffers
for the whole clip, at latent resolution). The first chunk takes the remainder, so that all others
have one size and one program:

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
    """What the next chunk needs of the chunks before it."""

    seen: Any  # int32: latent frames so far
    kept: tuple[Any, ...]  # one array for each layer that looks back, in running order


def run_chunk(
    step: NetworkStep, x: Array, state: ChunkState | None, *, frames: int, capacity: int
) -> tuple[Array, ChunkState]:
    """One chunk of `frames` latent frames, and the state after it.

    Args:
        state: that after the previous chunk; None where the clip starts.
        capacity: the largest number of latent frames of the whole clip.
    """
    if state is None:
        past = Past(capacity=capacity)
    else:
        past = Past(state.kept, seen=state.seen, capacity=capacity)
    y = step(x, past)
    return y, ChunkState(seen=jnp.asarray(past.seen + frames, jnp.int32), kept=tuple(past.kept))


def run_clip(
    step: NetworkStep, x: Array, *, frames: int, chunk: int | None, strides: tuple[int, int]
) -> Array:
    """A whole clip [B, 1 + a (frames - 1), ...] to [B, 1 + b (frames - 1), ...].

    Jittable; the loop over chunks is a `lax.scan` that fills one output.

    Args:
        frames: latent frames of the clip.
        chunk: latent frames at a time; None for all.
        strides: (a, b), input and output frames of one latent frame.
    """
    if chunk is None or frames <= chunk:
        return step(x, Past(capacity=frames))
    loops = (frames - 1) // chunk
    first = frames - loops * chunk
    stride_in, stride_out = strides
    first_in = 1 + stride_in * (first - 1)
    y, state = run_chunk(step, x[:, :first_in], None, frames=first, capacity=frames)
    length_out = 1 + stride_out * (frames - 1)
    out = jnp.zeros((y.shape[0], length_out, *y.shape[2:]), y.dtype)
    out = jax.lax.dynamic_update_slice_in_dim(out, y, 0, axis=1)

    def body(carry: tuple[ChunkState, Array], _: None) -> tuple[tuple[ChunkState, Array], None]:
        state, out = carry
        start_in = 1 + stride_in * (state.seen - 1)
        start_out = 1 + stride_out * (state.seen - 1)
        part = jax.lax.dynamic_slice_in_dim(x, start_in, chunk * stride_in, axis=1)
        y, state = run_chunk(step, part, state, frames=chunk, capacity=frames)
        return (state, jax.lax.dynamic_update_slice_in_dim(out, y, start_out, axis=1)), None

    (_, out), _ = jax.lax.scan(body, (state, out), length=loops)
    return out
