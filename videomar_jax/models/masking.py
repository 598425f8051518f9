"""Which tokens are hidden in training: the law of the mask rate, and random orders (paper, sec. 3).

Every frame has an order, a random permutation of its S tokens; the first entry is generated first.
The mask rate r follows a normal law with mean 1 and standard deviation 1/4, cut to [a, 1] with
a = 0.7 as published:

    r = 1 + 1/4 Phi^-1( Phi_a + u (1/2 - Phi_a) ),   Phi_a = Phi( (a - 1) / (1/4) ),  u uniform  (1)
    n = ceil(S r) tokens of the frame are hidden: the last n of its order                        (2)
"""

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtr, ndtri

from videomar_jax.types import Array, Float, Int, Key, Orders, TokenMask

RATE_STD = 0.25
"""Standard deviation of the mask rate before it is cut (MAR)."""


def mask_rate(u: Float[Array, "..."], minimum: float = 0.7) -> Float[Array, "..."]:
    """Equation (1) for uniform variates `u` in [0, 1); `minimum` is a."""
    lowest = ndtr((minimum - 1.0) / RATE_STD)
    # 1/2 is Phi(0), the other end: the inverse distribution function of a law that is cut there.
    return 1.0 + RATE_STD * ndtri(lowest + u * (0.5 - lowest))


def num_masked(num_tokens: int, rate: Float[Array, "..."]) -> Int[Array, "..."]:
    """n of equation (2), at least one token and at most all of them."""
    return jnp.clip(jnp.ceil(num_tokens * rate), 1, num_tokens).astype(jnp.int32)


def random_orders(key: Key, shape: tuple[int, int, int]) -> Orders:
    """A random permutation of 0..S-1 for each sample and frame; `shape` is (B, T, S)."""
    return jnp.argsort(jax.random.uniform(key, shape), axis=-1)


def ranks(orders: Int[Array, "*frames S"]) -> Int[Array, "*frames S"]:
    """The place of each token in its frame's order, 0 for the token that is generated first."""
    # Sorting a permutation gives its inverse.
    return jnp.argsort(orders, axis=-1)


def hide_last(orders: Orders, num_masked: Int[Array, "B T"]) -> TokenMask:
    """True at the last `num_masked` tokens of each frame's order."""
    # Comparing ranks needs no gather or scatter, and counts may differ from frame to frame.
    num_tokens = orders.shape[-1]
    return ranks(orders) >= num_tokens - num_masked[..., None]


def one_frame_counts(
    current: Int[Array, "B"], in_current: Int[Array, "B"], frames: int, tokens: int
) -> Int[Array, "B T"]:
    """Hidden tokens of each frame when frame `current` is generated: none before it, all after."""
    frame = jnp.arange(frames)[None, :]
    counts = jnp.where(frame == current[:, None], in_current[:, None], 0)
    return jnp.where(frame > current[:, None], tokens, counts)
