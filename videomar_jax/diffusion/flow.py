"""Rectified flow (Liu et al. 2023): a straight line from data at t = 0 to noise at t = 1.

    x_t = (1 - t) x_0 + t eps                                                               (1)

The network gives the velocity v, P values a token, trained on

    loss = |v - (x_0 - eps)|^2, averaged over the values of a token                         (2)

Sampling follows it from x = temperature * eps in N steps of length h = 1/N:

    x <- x + h v    at t = 1, 1 - 1/N, ..., 1/N                                             (3)
"""

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from videomar_jax.checks import UserError
from videomar_jax.diffusion.base import Timesteps, TokenValues, guide, register
from videomar_jax.types import Array, Float, Key


@register
@dataclasses.dataclass(frozen=True)
class Flow:
    """Equations (1) to (3)."""

    kind: ClassVar[str] = "flow"
    stochastic: ClassVar[bool] = False
    # The time features of the head are made for DDPM's 1000 steps; t stands for the step 1000 t.
    steps: ClassVar[int] = 1000

    time_distribution: Literal["uniform", "logit_normal"] = "uniform"

    def output_channels(self, token_dim: int) -> int:
        """The velocity of every value."""
        return token_dim

    def draw_times(self, key: Key, shape: tuple[int, ...]) -> Array:
        """Uniform in [0, 1), or the sigmoid of a standard normal (Esser et al. 2024)."""
        # The logit-normal law has more draws in the middle, where the velocity is hardest to tell.
        if self.time_distribution == "logit_normal":
            return jax.nn.sigmoid(jax.random.normal(key, shape))
        return jax.random.uniform(key, shape)

    def noise_level(self, t: Array) -> Float[Array, "..."]:
        """The time itself."""
        return t

    def add_noise(self, x_0: TokenValues, t: Array, eps: TokenValues) -> TokenValues:
        """Equation (1)."""
        return (1 - t[..., None]) * x_0 + t[..., None] * eps

    def loss(
        self, output: Array, x_0: TokenValues, x_t: TokenValues, t: Array, eps: TokenValues
    ) -> Float[Array, "..."]:
        """Equation (2) of every row."""
        return jnp.mean((output.astype(jnp.float32) - (x_0 - eps)) ** 2, axis=-1)

    def timesteps(self, steps: str | int) -> Timesteps:
        """N equal steps from t = 1 to 0."""
        if not str(steps).isdecimal() or int(steps) < 1:
            raise UserError(
                f"The flow head takes a whole number of steps, at least 1, not {steps!r}."
            )
        count = int(steps)
        # In float64, so that N steps end at 1/N to float32's last digit.
        time = np.arange(count, 0, -1) / count
        return Timesteps(
            time=jnp.asarray(time, jnp.float32), size=jnp.full(count, 1 / count, jnp.float32)
        )

    def init_noise(self, noise: TokenValues, temperature: Array) -> TokenValues:
        """The temperature scales this noise, the only one there is."""
        return temperature * noise

    def step(
        self,
        x: TokenValues,
        cond: Array,
        null: Array | None,
        now: Timesteps,
        noise: TokenValues | None,
        guidance: Array,
        temperature: Array,
    ) -> TokenValues:
        """Equation (3) with the guided velocity."""
        return x + now.size * guide(cond, null, guidance)
