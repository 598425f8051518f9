"""Which tokens are hidden in training: the mask-rate law and the random orders (paper, section 3).

1. Every frame has an order: a random permutation of its tokens. The first entry is generated first.
2. The mask rate r follows a normal law with mean 1 and standard deviation 0.25 cut to [0.7, 1]:
   r = 1 + 0.25 Phi^-1( Phi(a) + u (1/2 - Phi(a)) ),  a = (0.7 - 1) / 0.25,  u uniform.
3. ceil(S r) tokens of a frame are hidden: the last of its order.
"""

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtr, ndtri

from videomar_jax.types import Array, Bool, Float, Int, Key, Orders, TokenMask

RATE_STD = 0.25
"""Standard deviation of the mask rate before it is cut (MAR)."""


def mask_rate(u: Float[Array, "..."], minimum: float = 0.7) -> Float[Array, "..."]:
    """The mask rate at the uniform variates `u` in [0, 1): inverse distribution function of the cut
    normal law."""
    lowest = ndtr((minimum - 1.0) / RATE_STD)
    return 1.0 + RATE_STD * ndtri(lowest + u * (0.5 - lowest))


def random_orders(key: Key, shape: tuple[int, int, int]) -> Orders:
    """A random permutation of 0..S-1 for each sample and frame; `shape` is (B, T, S)."""
    return jnp.argsort(jax.random.uniform(key, shape), axis=-1)


def ranks(orders: Int[Array, "*frames S"]) -> Int[Array, "*frames S"]:
    """The place of each token in its frame's order, 0 for the token that is generated first."""
    return jnp.argsort(orders, axis=-1)


def hide_last(orders: Orders, num_masked: Int[Array, "B T"]) -> TokenMask:
    """True at the last `num_masked` tokens of each frame's order."""
    num_tokens = orders.shape[-1]
    return ranks(orders) >= num_tokens - num_masked[..., None]


def num_masked(num_tokens: int, rate: Float[Array, "..."]) -> Int[Array, "..."]:
    """ceil(S r), at least one token and at most all of them."""
    return jnp.clip(jnp.ceil(num_tokens * rate), 1, num_tokens).astype(jnp.int32)


def one_frame_counts(
    current: Int[Array, "B"], in_current: Int[Array, "B"], frames: int, tokens: int
):
    """Hidden tokens of each frame when frame `current` is generated: none before it, all after it;
    [B, T]."""
    frame = jnp.arange(frames)[None, :]
    counts = jnp.where(frame == current[:, None], in_current[:, None], 0)
    return jnp.where(frame > current[:, None], tokens, counts)


def count(mask: Bool[Array, "..."]) -> Float[Array, ""]:
    """Hidden tokens in all."""
    return jnp.sum(mask, dtype=jnp.float32)
