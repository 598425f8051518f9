"""A tiny model whose every parameter is away from its initial value, and inputs for it.

A fresh model hides mistakes: its gates are near zero, its head answers zero, and its mask token and
null context hardly differ.
"""

import contextlib
import functools

import jax
import jax.numpy as jnp
import jaxtyping
from flax import nnx

from videomar_jax.models.config import ModelConfig
from videomar_jax.models.videomar import VideoMAR

GRID = (2, 3)
FROM_FRAME_BEFORE = dict(
    linear_prior=True, previous_frame=True, residual=True, regression=True, bilinear_units=5
)
"""Everything that a model of ours takes from the frame before."""
FROM_FIRST_FRAME = FROM_FRAME_BEFORE | dict(forecast=(3, *GRID))
"""And from the first frame and the text."""
SIZES = dict(
    latent_channels=3,
    width=32,
    depth=2,
    num_heads=2,
    text_tokens=5,
    text_width=8,
    head="flow",
    head_width=32,
    head_depth=2,
)


def tiny_config(**changes) -> ModelConfig:
    return ModelConfig(**SIZES | changes)


@functools.cache
def tiny_model(seed: int = 0, **changes) -> VideoMAR:
    """The same parameters for the same seed, whatever the computation fields (dtype, remat, unroll)
    are."""

    @jax.jit
    def build(key):
        model = VideoMAR(tiny_config(**changes), rngs=nnx.Rngs(params=key))
        leaves, tree = jax.tree.flatten(model)
        keys = jax.random.split(jax.random.fold_in(key, 1), len(leaves))
        return tree.unflatten(
            [p + 0.15 * jax.random.normal(k, p.shape) for p, k in zip(leaves, keys, strict=True)]
        )

    return build(jax.random.key(seed))


def tiny_tokens(frames: int = 3, batch: int = 2, count: int = 6, width: int = 3, seed: int = 1):
    """Random tokens [B, T, S, P], and a mask [B, T, S] that hides some tokens of each frame but
    never all."""
    tokens = jax.random.normal(jax.random.key(seed), (batch, frames, count, width))
    ranks = jnp.argsort(
        jax.random.uniform(jax.random.key(seed + 1), (batch, frames, count)), axis=-1
    )
    return tokens, ranks < 2 + jnp.arange(frames)[None, :, None] % 3


def tiny_text(batch: int = 2, seed: int = 3):
    """Text features [B, 5, 8], and a mask [B, 5] with more or less padding in each sample."""
    text = jax.random.normal(
        jax.random.key(seed), (batch, SIZES["text_tokens"], SIZES["text_width"])
    )
    return text, jnp.arange(SIZES["text_tokens"])[None] < 3 + jnp.arange(batch)[:, None] % 3


@contextlib.contextmanager
def annotations_off():
    """Lets a value of a wrong type through to the code's own checks, as outside of the tests."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)
