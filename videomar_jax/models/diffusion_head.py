"""The head: a small residual MLP that denoises one token (MAR, Li et al. 2024, section 3).

The time t and the transformer's output z act through AdaLN:

    y = SiLU( time_mlp(t) + cond_embed(z) ),   u = input_proj(x_t)                          (1)
    u = u + gate * linear2( SiLU( linear1( LN(u) * (1 + scale) + shift ) ) )                (2)
    output = linear( LN(u) * (1 + scale) + shift )                                          (3)

Each residual block (2) has a (shift, scale, gate) = linear(y) of its own, the output (3) a
(shift, scale) = linear(y). Tokens do not see each other here: all tokens of all samples are rows.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from videomar_jax.models.config import ModelConfig
from videomar_jax.models.layers import layer_norm, linear
from videomar_jax.types import Array, Float

TIME_FEATURES = 256
"""Width of the sinusoidal time features."""


def time_features(t: Array, steps: int = 1000) -> Float[Array, "... 256"]:
    """[cos(t f), sin(t f)] with the frequencies f_i = 10000^(-i/128), i = 0..127.

    Args:
        t: whole steps 0..steps-1 (others give NaN), or t in [0, 1], which stands for t * steps.
    """
    half = TIME_FEATURES // 2
    frequency = np.exp(-math.log(10000) * np.arange(half) / half)
    if jnp.issubdtype(t.dtype, jnp.integer):
        # A float64 table: float32 powers of a frequency, times 999, would be off by 1e-4.
        angle = np.arange(steps)[:, None] * frequency
        table = np.concatenate([np.cos(angle), np.sin(angle)], axis=-1)
        # Indexing would silently clamp a step outside of the table.
        return jnp.take(jnp.asarray(table, jnp.float32), t, axis=0, mode="fill", fill_value=jnp.nan)
    angle = steps * t[..., None] * jnp.asarray(frequency, jnp.float32)
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


# Unlike those of the transformer, the head's linear layers have a bias (as published).
dense = functools.partial(linear, use_bias=True)


def modulation_std(config: ModelConfig) -> float:
    """Zero as published, or small so that gradients reach everything from the first step."""
    return 0.0 if config.head_zero_init else 0.3 / math.sqrt(config.head_width)


class ResidualBlock(nnx.Module):
    """Equation (2)."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        width = config.head_width
        self.norm = layer_norm(width, 1e-6, rngs)
        self.linear1 = dense(width, width, config, rngs)
        self.linear2 = dense(width, width, config, rngs)
        self.modulation = dense(width, 3 * width, config, rngs, std=modulation_std(config))

    def __call__(self, u: Array, y: Array) -> Array:
        shift, scale, gate = jnp.split(self.modulation(y), 3, axis=-1)
        h = self.linear1(self.norm(u) * (1 + scale) + shift)
        return u + gate * self.linear2(jax.nn.silu(h))


class DiffusionHead(nnx.Module):
    """Noisy token, time and z to the process's output for that token."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        width = config.head_width
        # The range of whole times that `time_features` has a table for.
        self.steps = config.process.steps
        self.unroll = min(config.unroll, config.head_depth)
        self.time1 = dense(TIME_FEATURES, width, config, rngs, std=0.02)
        self.time2 = dense(width, width, config, rngs, std=0.02)
        self.cond_embed = dense(config.width, width, config, rngs)
        self.input_proj = dense(config.token_dim, width, config, rngs)
        # Stacked, and applied with a scan, as in the transformer.
        self.blocks = jax.vmap(lambda keys: ResidualBlock(config, rngs=keys))(
            rngs.split(config.head_depth)
        )
        self.final_norm = layer_norm(width, 1e-6, rngs, affine=False)
        self.final_modulation = dense(width, 2 * width, config, rngs, std=modulation_std(config))
        # As published the output starts at zero: the first loss is that of answering "no noise".
        outputs = config.process.output_channels(config.token_dim)
        final_std = 0.0 if config.head_zero_init else 0.02
        self.final = dense(width, outputs, config, rngs, std=final_std)

    def condition(self, z: Float[Array, "... D"]) -> Float[Array, "... W"]:
        """cond_embed(z), which stays the same over the sampling steps."""
        return self.cond_embed(z)

    def time_embedding(self, t: Array) -> Float[Array, "... W"]:
        """time_mlp(t)."""
        features = time_features(t, self.steps)
        return self.time2(jax.nn.silu(self.time1(features)))

    def denoise(
        self, x: Float[Array, "... P"], t: Array, condition: Float[Array, "... W"]
    ) -> Float[Array, "... O"]:
        """The output for noisy rows x_t at times t (as `time_features` takes them)."""
        y = jax.nn.silu(self.time_embedding(t) + condition)
        u = self.input_proj(x)
        u, _ = jax.lax.scan(
            lambda u, block: (block(u, y), None), u, self.blocks, unroll=self.unroll
        )
        shift, scale = jnp.split(self.final_modulation(y), 2, axis=-1)
        return self.final(self.final_norm(u) * (1 + scale) + shift)

    def __call__(
        self, x: Float[Array, "... P"], t: Array, z: Float[Array, "... D"]
    ) -> Float[Array, "... O"]:
        return self.denoise(x, t, self.condition(z))
