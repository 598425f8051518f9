"""Fused attention on TPU: JAX's splash attention, fitted to frames.

The kernel keeps the scores of one block of queries and keys at a time in the core's own memory. Of
what it can do we use

    blocks that are skipped     those of frames that do not see each other, backwards too. Every
                                frame is padded to whole blocks, so that a block is seen as a whole
                                or not at all, and no score inside of it is masked by frames
    segments                    keys that nobody sees: padding, and what is masked at run time
                                (empty slots of a cache, the end of a text)

Source: jax.experimental.pallas.ops.tpu.splash_attention; the algorithm is that of Dao 2023,
"FlashAttention-2".
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from videomar_jax.types import Array, Bool, Float

LANES = 128
"""Rows of a block are a multiple of this, the width of a TPU's vector registers."""
LARGEST_BLOCK = 1024
"""Rows of the largest block."""


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
            least. None: all.
        key_mask: False at keys that nobody sees, N = Tk * S; each query needs one that it sees.
        interpret: run the kernel's steps one by one on any platform, to test it.
    """
    shape = q.shape
    if key_mask is not None:
        key_mask = jnp.broadcast_to(key_mask, (len(k), key_mask.shape[1])).reshape(k.shape[:3])
    if sees is None:
        # Frames make no difference: padding once, behind all of them, is enough.
        q, k, v = (x.reshape(len(x), 1, -1, *x.shape[3:]) for x in (q, k, v))
        key_mask = None if key_mask is None else key_mask.reshape(len(k), 1, -1)
        sees = np.ones((1, 1), bool)
    q_block, k_block = block_size(q.shape[2]), block_size(k.shape[2])
    segments = _segments(q, k, key_mask, q_block, k_block)
    queries, keys, values = (
        _pad(q * q.shape[-1] ** -0.5, q_block),
        _pad(k, k_block),
        _pad(v, k_block),
    )
    frame_mask = FrameMask(
        sees=tuple(tuple(map(bool, row)) for row in sees),
        queries=queries.shape[2],
        keys=keys.shape[2],
    )
    kernel = _kernel(frame_mask, q.shape[3], q_block, k_block, interpret)
    arrays = _heads_first(queries), _heads_first(keys), _heads_first(values)
    out = jax.vmap(kernel)(*arrays, segments)
    # A kernel that saves residuals would return a pair.
    assert isinstance(out, jax.Array)
    out = jnp.swapaxes(out, 1, 2).reshape(queries.shape)
    return out[:, :, : q.shape[2]].reshape(shape)


def block_size(rows: int) -> int:
    """The rows of a block for an axis of this length, which is then padded to a multiple of it."""

    def cost(block: int) -> int:
        # Padding is wasted work, and so are small blocks: a step of the kernel's loop is taken to
        # cost as much as `LANES` more rows (a choice, not a measurement).
        return -(-rows // block) * (block + LANES)

    return min(range(LARGEST_BLOCK, 0, -LANES), key=cost)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrameMask(masks.Mask):
    """Which query sees which key, for frames of whole blocks."""

    sees: tuple[tuple[bool, ...], ...]
    """For each frame of the queries, which of the keys it sees."""
    queries: int
    """Padded length of a frame of the queries."""
    keys: int
    """Padded length of a frame of the keys."""

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self.sees) * self.queries, len(self.sees[0]) * self.keys

    def __getitem__(self, index: tuple[slice, slice]) -> np.ndarray:
        # The kernel asks for one block at a time, which lies within one frame of each.
        rows, columns = (range(size)[part] for size, part in zip(self.shape, index, strict=True))
        visible = self.sees[rows[0] // self.queries][columns[0] // self.keys]
        return np.broadcast_to(np.bool_(visible), (len(rows), len(columns)))


@functools.lru_cache(maxsize=32)
def _kernel(
    mask: FrameMask, heads: int, q_block: int, k_block: int, interpret: bool
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


def _segments(
    q: Float[Array, "B Tq Q n d"],
    k: Float[Array, "B Tk S n d"],
    key_mask: Bool[Array, "B Tk S"] | None,
    q_block: int,
    k_block: int,
) -> kernels.SegmentIds | None:
    """A query sees the keys of its segment: those that count are in segment 1 with all queries."""
    padding = -k.shape[2] % k_block
    if key_mask is None and not padding:
        return None
    seen = jnp.ones(k.shape[:3], bool) if key_mask is None else key_mask
    seen = jnp.pad(seen, ((0, 0), (0, 0), (0, padding))).reshape(len(k), -1)
    queries = q.shape[1] * (q.shape[2] + -q.shape[2] % q_block)
    return kernels.SegmentIds(q=jnp.ones((len(q), queries), jnp.int32), kv=seen.astype(jnp.int32))


def _pad(x: Float[Array, "B T S n d"], block: int) -> Float[Array, "B T _ n d"]:
    return jnp.pad(x, ((0, 0), (0, 0), (0, -x.shape[2] % block), (0, 0), (0, 0)))


def _heads_first(x: Float[Array, "B T S n d"]) -> Float[Array, "B n N d"]:
    return jnp.swapaxes(x.reshape(len(x), -1, *x.shape[3:]), 1, 2)
