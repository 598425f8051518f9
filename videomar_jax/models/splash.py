"""Fused attention on TPU: JAX's splash attention, fitted to frames.

The kernel keeps the scores of one block of queries and keys at a time in the core's own memory. Of
it we use

    a mask that is computed in the kernel   which frame sees which: bit j of a query's number says
                                            whether it sees key frame j. Blocks that nobody sees
                                            are skipped, in the backward pass too
    segments                                keys that are masked at run time: empty slots of a
                                            cache, padding of a text

Blocks divide the number of queries and keys, so both are padded. With a mask of frames every frame
is padded by itself, so that a block never holds tokens of two frames.

Source: jax.experimental.pallas.ops.tpu.splash_attention; the algorithm is that of Dao 2023,
"FlashAttention-2".
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from videomar_jax.types import Array, Bool, Float

LANES = 128
"""Rows of a block are a multiple of the width of a TPU's vector registers."""
LARGEST_BLOCK = 1024
"""Rows; with larger blocks the scores of the backward pass do not fit into a core's memory."""
MOST_FRAMES = 31
"""Key frames that the bits of an int32 can tell apart."""


def splash_attention(
    q: Float[Array, "B Tq Q n d"],
    k: Float[Array, "B Tk S n d"],
    v: Float[Array, "B Tk S n d"],
    *,
    sees: np.ndarray | None = None,
    key_mask: Bool[Array, "#B N"] | None = None,
    interpret: bool = False,
) -> Float[Array, "B Tq Q n d"]:
    """Every query attends to the keys that it sees; scores are q.k / sqrt(d), in float32.

    Args:
        sees: bool [Tq, Tk], which frame of the queries sees which of the keys; each sees one at
            least, and there are at most `MOST_FRAMES` of them. None: all.
        key_mask: False at keys that nobody sees, N = Tk * S; not together with `sees`.
        interpret: run the kernel's steps one by one on any platform, to test it.
    """
    q = q * q.shape[-1] ** -0.5
    if sees is None:
        # Frames make no difference, so that padding at the end of all of them is enough.
        out = _attend_all(*(_one_frame(x) for x in (q, k, v)), key_mask, interpret)
        return out.reshape(q.shape)
    if key_mask is not None:
        raise ValueError("Give a mask of frames or one of keys, not both.")
    q_block, k_block = block_size(q.shape[2]), block_size(k.shape[2])
    padded = (_pad(q, q_block), _pad(k, k_block), _pad(v, k_block))
    mask = FrameMask(
        bits=tuple(int(row @ (1 << np.arange(len(row)))) for row in sees.astype(np.int64)),
        queries=padded[0].shape[2],
        frames=k.shape[1],
        keys=padded[1].shape[2],
        real_keys=k.shape[2],
    )
    kernel = _kernel(mask, q.shape[3], q_block, k_block, interpret)
    out = jax.vmap(kernel)(*(_heads_first(x) for x in padded))
    return _heads_last(out, padded[0].shape)[:, :, : q.shape[2]]


def block_size(rows: int) -> int:
    """The rows of a block for an axis of this length, which is then padded to a multiple of it."""

    def cost(block: int) -> float:
        # Padding is wasted work; small blocks are too: a step of the kernel's loop costs about as
        # much as `LANES` more rows would (a choice, not a measurement).
        return -(-rows // block) * (block + LANES)

    return min(range(LARGEST_BLOCK, 0, -LANES), key=cost)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrameMask(masks.Mask):
    """Which query sees which key, computed from frames of padded length."""

    bits: tuple[int, ...]
    """For each frame of the queries, the frames of keys that it sees, as bits."""
    queries: int
    """Padded length of a frame of the queries."""
    frames: int
    """Frames of the keys."""
    keys: int
    """Padded length of a frame of the keys."""
    real_keys: int
    """Keys of a frame that are not padding."""

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self.bits) * self.queries, self.frames * self.keys

    @property
    def q_sequence(self) -> np.ndarray:
        """What the kernel hands to `mask_function` as the number of a query."""
        return np.repeat(np.asarray(self.bits, np.int32), self.queries)

    @property
    def mask_function(self) -> Callable[[Any, Any], Any]:
        """(numbers of queries, indices of keys) → bool; for numpy outside of the kernel too."""
        return functools.partial(_sees, keys=self.keys, real_keys=self.real_keys)

    def __getitem__(self, index: tuple[slice, slice]) -> np.ndarray:
        rows = self.q_sequence[index[0]]
        columns = np.arange(self.shape[1])[index[1]]
        shape = len(rows), len(columns)
        # Mostly all rows are of one frame: then one of them says it all.
        if (rows == rows[0]).all():
            rows = rows[:1]
        return np.broadcast_to(self.mask_function(rows[:, None], columns[None]), shape)


def _sees(query: Any, key: Any, *, keys: int, real_keys: int) -> Any:
    visible = ((query >> (key // keys)) & 1) == 1
    # Where nothing is padded there is nothing to compute.
    return visible if keys == real_keys else visible & (key % keys < real_keys)


def _attend_all(
    q: Float[Array, "B 1 Q n d"],
    k: Float[Array, "B 1 N n d"],
    v: Float[Array, "B 1 N n d"],
    key_mask: Bool[Array, "#B N"] | None,
    interpret: bool,
) -> Float[Array, "B 1 Q n d"]:
    q_block, k_block = block_size(q.shape[2]), block_size(k.shape[2])
    padded = (_pad(q, q_block), _pad(k, k_block), _pad(v, k_block))
    queries, keys = padded[0].shape[2], padded[1].shape[2]
    kernel = _kernel(masks.FullMask((queries, keys)), q.shape[3], q_block, k_block, interpret)
    out_of = _heads_first
    if key_mask is None and keys == k.shape[2]:
        out = jax.vmap(kernel)(*(out_of(x) for x in padded))
    else:
        seen = jnp.ones((1, k.shape[2]), bool) if key_mask is None else key_mask
        # A query sees the keys of its own segment: those that count are in segment 1 with it.
        seen = jnp.pad(seen, ((0, 0), (0, keys - seen.shape[1]))).astype(jnp.int32)
        seen = jnp.broadcast_to(seen, (len(q), keys))
        segments = kernels.SegmentIds(q=jnp.ones((len(q), queries), jnp.int32), kv=seen)
        out = jax.vmap(kernel)(*(out_of(x) for x in padded), segments)
    return _heads_last(out, padded[0].shape)[:, :, : q.shape[2]]


@functools.lru_cache(maxsize=32)
def _kernel(
    mask: masks.Mask, heads: int, q_block: int, k_block: int, interpret: bool
) -> kernels.SplashAttentionKernel:
    """The kernel for one clip, [n, Q, d] and [n, N, d]; its tables are made once."""
    sizes = kernels.BlockSizes(
        block_q=q_block,
        block_kv=k_block,
        block_q_dkv=q_block,
        block_kv_dkv=k_block,
        block_q_dq=q_block,
        block_kv_dq=k_block,
    )
    # Kept as numpy arrays: JAX arrays that are made in a trace must not outlive it.
    with jax.ensure_compile_time_eval():
        kernel = kernels.make_splash_mha(
            masks.MultiHeadMask([mask] * heads),
            block_sizes=sizes,
            head_shards=1,
            q_seq_shards=1,
            interpret=interpret,
        )
        return jax.tree.map(np.asarray, kernel)


def _one_frame(x: Float[Array, "B T S n d"]) -> Float[Array, "B 1 N n d"]:
    return x.reshape(len(x), 1, -1, *x.shape[3:])


def _pad(x: Float[Array, "B T S n d"], block: int) -> Float[Array, "B T _ n d"]:
    return jnp.pad(x, ((0, 0), (0, 0), (0, -x.shape[2] % block), (0, 0), (0, 0)))


def _heads_first(x: Float[Array, "B T S n d"]) -> Float[Array, "B n N d"]:
    return jnp.swapaxes(x.reshape(len(x), -1, *x.shape[3:]), 1, 2)


def _heads_last(x: Float[Array, "B n N d"], shape: tuple[int, ...]) -> Float[Array, "B T S n d"]:
    return jnp.swapaxes(x, 1, 2).reshape(shape)
