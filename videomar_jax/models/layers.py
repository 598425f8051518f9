"""Linear and norm layers, with the initialisation and the precision that the whole model shares.

Linear layers multiply in the compute dtype. Norms work in float32: their statistics are sums over
all channels, in which bfloat16 would lose the small ones.
"""

import jax.numpy as jnp
from flax import nnx

from videomar_jax.models.config import ModelConfig
from videomar_jax.platforms import platform
from videomar_jax.types import Array


class Linear(nnx.Linear):
    """`nnx.Linear`, with the leading axes joined on the CPU.

    XLA's CPU backend copies and transposes its operands around a product that contracts several
    axes, which took a quarter of the quick start's step. On other backends the axes stay apart, so
    that each of them may be sharded.
    """

    def __call__(self, x: Array, out_sharding=None) -> Array:
        if platform() != "cpu":
            return super().__call__(x, out_sharding)
        rows = x.reshape(-1, x.shape[-1])
        return super().__call__(rows).reshape(*x.shape[:-1], -1)


def linear(
    inputs: int,
    outputs: int,
    config: ModelConfig,
    rngs: nnx.Rngs,
    *,
    use_bias: bool = False,
    std: float | None = None,
) -> Linear:
    """A linear layer in the compute dtype.

    Args:
        std: standard deviation of a normal initialisation, 0 for zeros; None: Xavier uniform.
    """
    init = nnx.initializers.xavier_uniform() if std is None else nnx.initializers.normal(std)
    return Linear(
        inputs, outputs, use_bias=use_bias, dtype=config.dtype, kernel_init=init, rngs=rngs
    )


def layer_norm(width: int, epsilon: float, rngs: nnx.Rngs, *, affine: bool = True) -> nnx.LayerNorm:
    """Layer norm in float32, with the exact two-pass variance of the published code."""
    return nnx.LayerNorm(
        width,
        epsilon=epsilon,
        dtype=jnp.float32,
        use_bias=affine,
        use_scale=affine,
        use_fast_variance=False,
        rngs=rngs,
    )
