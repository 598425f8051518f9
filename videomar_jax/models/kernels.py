"""Dense softmax attention: one function, and the kernels behind it.

"xla"     plain products and a float32 softmax; runs everywhere
"cudnn"   the fused kernel of NVIDIA GPUs; 16-bit types only
"splash"  the fused kernel of TPUs (`splash`)
"auto"    cudnn or splash where they run and pay, xla elsewhere
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from videomar_jax.platforms import platform
from videomar_jax.types import Array, Bool, Float

Kernel = Literal["auto", "xla", "cudnn", "splash"]


def attend(
    q: Float[Array, "B Q n d"],
    k: Float[Array, "B N n d"],
    v: Float[Array, "B N n d"],
    *,
    key_mask: Bool[Array, "#B N"] | None = None,
    kernel: Kernel = "auto",
) -> Float[Array, "B Q n d"]:
    """Every query attends to every key that is not masked; scores are q.k / sqrt(d).

    Args:
        key_mask: False at keys that nobody sees; each row needs at least one True.
        kernel: one of the module's table; a fused one raises where it is not supported.
    """
    kernel = choose_kernel(kernel, q.shape[1], k.shape[1], q.shape[-1], q.dtype)
    if kernel == "splash":
        # Imported late: nothing else needs the language that kernels for TPUs are written in.
        from videomar_jax.models.splash import splash_attention

        frame = (x[:, None] for x in (q, k, v))
        return splash_attention(*frame, key_mask=key_mask)[:, 0]
    if kernel == "xla":
        return plain_attention(q, k, v, key_mask)
    if kernel != "cudnn":
        raise ValueError(
            f"There is no attention kernel {kernel!r}; use auto, xla, cudnn or splash."
        )
    mask = None
    if key_mask is not None:
        mask = jnp.broadcast_to(key_mask[:, None, None], (len(q), 1, q.shape[1], k.shape[1]))
    return jax.nn.dot_product_attention(q, k, v, mask=mask, implementation="cudnn")


def choose_kernel(kernel: Kernel, queries: int, keys: int, width: int, dtype: Any) -> Kernel:
    """The kernel that "auto" stands for on the platform that is compiled for; others as they are.

    Args:
        queries, keys: their numbers, of a frame where frames are told apart.
        width: d, channels of a head.
        dtype: of queries and keys.
    """
    if kernel != "auto":
        return kernel
    if platform() == "gpu" and jnp.dtype(dtype).itemsize == 2:
        return "cudnn"
    # Padded to blocks of 128 or more, fewer would be more than twice the work. Other widths than
    # multiples of 64 are not tried.
    fits = min(queries, keys) >= 64 and width % 64 == 0
    return "splash" if platform() == "tpu" and fits else "xla"


def plain_attention(
    q: Float[Array, "B Q n d"],
    k: Float[Array, "B N n d"],
    v: Float[Array, "B N n d"],
    key_mask: Bool[Array, "#B N"] | None,
) -> Float[Array, "B Q n d"]:
    """Attention in plain products, scores and softmax in float32."""
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q * q.shape[-1] ** -0.5, k, v))  # B n N d
    scores = jnp.einsum("bnqd,bnkd->bnqk", q, k, preferred_element_type=jnp.float32)
    if key_mask is not None:
        scores = jnp.where(key_mask[:, None, None, :], scores, -1e30)
    # The maximum only guards against overflow: its gradient is zero, so it is cut off.
    weights = jnp.exp(scores - jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
    # Dividing by the sum after the product with the values spares a pass over the scores; in the
    # backward pass it turns a sum over keys into one over channels.
    total = jnp.sum(weights, axis=-1, keepdims=True)
    summed = jnp.einsum(
        "bnqk,bnkd->bnqd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32
    )
    return jnp.swapaxes(summed / total, 1, 2).astype(v.dtype)
