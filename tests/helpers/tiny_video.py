"""Small requests for videos of the tiny model: conditioning latents, keys, and both samplers."""

import jax

from tests.helpers.tiny_model import GRID, tiny_model, tiny_text
from videomar_jax.sampling.config import SamplingConfig
from videomar_jax.sampling.generate import generate
from videomar_jax.sampling.reference import reference


def given_latents(frames: int = 1, patch: int = 1, batch: int = 2) -> jax.Array:
    """Random latents of the first frames of `batch` videos."""
    shape = (batch, frames, GRID[0] * patch, GRID[1] * patch, 3)
    return jax.random.normal(jax.random.key(7), shape)


def sample_keys(batch: int = 2) -> jax.Array:
    """A random key for each sample."""
    return jax.random.split(jax.random.key(8), batch)


def generated(config: SamplingConfig, *, num_frames: int, model=None, given=None, **options):
    """`generate` for a tiny request; options go to it."""
    given = given_latents() if given is None else given
    options = {"keys": sample_keys(len(given))} | options
    return generate(
        model or tiny_model(),
        given,
        *tiny_text(len(given)),
        num_frames=num_frames,
        config=config,
        **options,
    )


def by_reference(config: SamplingConfig, *, num_frames: int, model=None, given=None, scale=None):
    """The same request, drawn by the direct implementation."""
    given = given_latents() if given is None else given
    return reference(
        model or tiny_model(),
        given,
        *tiny_text(len(given)),
        sample_keys(len(given)),
        num_frames=num_frames,
        config=config,
        scale=scale,
    )
