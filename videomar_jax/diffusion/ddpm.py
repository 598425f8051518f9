"""DDPM with a learned variance (Nichol & Dhariwal 2021), as MAR uses it for its head.

With t = 0..999, the cosine schedule, and alpha_bar_{-1} = 1:

    abar(s) = cos^2( (s + 0.008)/1.008 * pi/2 )
    beta_t = min(1 - abar((t+1)/1000) / abar(t/1000), 0.999)
    alpha_bar_t = prod_{i<=t} (1 - beta_i)

    x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps                                 (1)

    posterior of x_{t-1}: mean c1_t x_0 + c2_t x_t, variance var_t                          (2)
      c1_t  = beta_t sqrt(alpha_bar_{t-1}) / (1 - alpha_bar_t)
      c2_t  = (1 - alpha_bar_{t-1}) sqrt(1 - beta_t) / (1 - alpha_bar_t)
      var_t = beta_t (1 - alpha_bar_{t-1}) / (1 - alpha_bar_t)

The network gives 2P values a token: the noise e and v, which places the log-variance between its
two bounds:

    x_0 = x_t / sqrt(alpha_bar_t) - sqrt(1/alpha_bar_t - 1) e                               (3)
    logvar = f ln beta_t + (1 - f) ln var_t,   f = (v + 1)/2                                (4)

    loss = |eps - e|^2 + VB / ln 2, both averaged over the values of a token                (5)

VB is the KL divergence between (2) and the Gaussian of (3) and (4), and for t = 0 the negative
log-likelihood of x_0 in bins of 2/255. Inside VB, e is detached: VB trains the variance only.

Sampling visits a few kept steps ("respacing"), last first, each time with

    x <- c1 x_0 + c2 x + temperature * exp(logvar/2) * noise,  without noise at the end     (6)

where e is guided and v is that of the output with text.
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from videomar_jax.diffusion.base import Timesteps, TokenValues, guide, register
from videomar_jax.diffusion.respacing import kept_steps
from videomar_jax.types import Array, Float, Key

Table = Any
"""A float64 NumPy array where it is computed, a float32 JAX array where it is used."""


class Tables(NamedTuple):
    """The schedule by kept step, under the names of the published code."""

    timestep_map: Table  # the step of the full schedule, which the network is given
    betas: Table
    log_betas: Table
    alphas_cumprod: Table  # alpha_bar_t
    alphas_cumprod_prev: Table  # alpha_bar_{t-1}
    sqrt_alphas_cumprod: Table
    sqrt_one_minus_alphas_cumprod: Table
    sqrt_recip_alphas_cumprod: Table
    sqrt_recipm1_alphas_cumprod: Table
    posterior_variance: Table  # var_t
    posterior_log_variance_clipped: Table
    posterior_mean_coef1: Table  # c1_t
    posterior_mean_coef2: Table  # c2_t
    noisy: Table  # False at t = 0, where sampling adds no noise


def cosine_betas(steps: int = 1000) -> np.ndarray:
    """beta_t of the cosine schedule, float64 [steps]."""
    # Float64: near t = 999 alpha_bar is 2e-9, a product of a thousand factors.
    s = np.arange(steps + 1, dtype=np.float64) / steps
    alpha_bar = np.cos((s + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999)


def ddpm_tables(kept: list[int], base_betas: np.ndarray) -> Tables:
    """The float64 tables of the process that visits only the `kept` steps of the full schedule."""
    base = np.cumprod(1 - base_betas)[kept]
    # The betas that reach from one kept step to the next, so that the marginals stay the same.
    betas = 1 - base / np.append(1.0, base[:-1])
    alpha_bar = np.cumprod(1 - betas)
    previous = np.append(1.0, alpha_bar[:-1])
    variance = betas * (1 - previous) / (1 - alpha_bar)
    return Tables(
        timestep_map=np.array(kept, np.int32),
        betas=betas,
        log_betas=np.log(betas),
        alphas_cumprod=alpha_bar,
        alphas_cumprod_prev=previous,
        sqrt_alphas_cumprod=np.sqrt(alpha_bar),
        sqrt_one_minus_alphas_cumprod=np.sqrt(1 - alpha_bar),
        sqrt_recip_alphas_cumprod=np.sqrt(1 / alpha_bar),
        sqrt_recipm1_alphas_cumprod=np.sqrt(1 / alpha_bar - 1),
        posterior_variance=variance,
        # var_0 is 0, whose logarithm var_1 replaces (Nichol & Dhariwal).
        posterior_log_variance_clipped=np.log(np.append(variance[1], variance[1:])),
        posterior_mean_coef1=betas * np.sqrt(previous) / (1 - alpha_bar),
        posterior_mean_coef2=(1 - previous) * np.sqrt(1 - betas) / (1 - alpha_bar),
        noisy=np.arange(len(kept)) > 0,
    )


def log_clamped(x: Array) -> Array:
    """ln x with x at least 1e-12."""
    return jnp.log(jnp.maximum(x, 1e-12))


def discretised_nll(x: Array, mean: Array, logvar: Array) -> Array:
    """Negative log-likelihood (nats) of x in bins 2/255 wide under a Gaussian; outer bins are open.

    The distribution function is the tanh approximation of the published code.
    """

    def normal_cdf(q):
        return 0.5 * (1 + jnp.tanh(np.sqrt(2 / np.pi) * (q + 0.044715 * q**3)))

    # The bins are those of 8-bit images, for which this loss was made; MAR kept them for latents.
    scale = jnp.exp(-logvar / 2)
    up = normal_cdf(scale * (x - mean + 1 / 255))
    low = normal_cdf(scale * (x - mean - 1 / 255))
    inner = jnp.where(x > 0.999, log_clamped(1 - low), log_clamped(up - low))
    return -jnp.where(x < -0.999, log_clamped(up), inner)


@register
@dataclasses.dataclass(frozen=True)
class DDPM:
    """Equations (1) to (6)."""

    kind: ClassVar[str] = "ddpm"
    stochastic: ClassVar[bool] = True

    steps: int = 1000

    def output_channels(self, token_dim: int) -> int:
        """Noise and variance of every value."""
        return 2 * token_dim

    def draw_times(self, key: Key, shape: tuple[int, ...]) -> Array:
        """Uniform whole steps 0..steps-1."""
        return jax.random.randint(key, shape, 0, self.steps)

    def noise_level(self, t: Array) -> Float[Array, "..."]:
        """t as a fraction of all steps, in [0, 1)."""
        return t / self.steps

    def tables(self, respacing: str | int = "") -> Tables:
        """The tables of the kept steps, float64 cast to float32."""
        # NumPy at trace time: the tables are constants of the compiled program.
        tables = ddpm_tables(kept_steps(respacing, self.steps), cosine_betas(self.steps))

        def cast(table):
            return jnp.asarray(table, jnp.float32 if table.dtype == np.float64 else table.dtype)

        return jax.tree.map(cast, tables)

    def _tables_at(self, t: Array) -> Tables:
        return jax.tree.map(lambda table: table[t][..., None], self.tables())

    def add_noise(self, x_0: TokenValues, t: Array, eps: TokenValues) -> TokenValues:
        """Equation (1)."""
        at = self._tables_at(t)
        return at.sqrt_alphas_cumprod * x_0 + at.sqrt_one_minus_alphas_cumprod * eps

    def loss(
        self, output: Array, x_0: TokenValues, x_t: TokenValues, t: Array, eps: TokenValues
    ) -> Float[Array, "..."]:
        """Equation (5) of every row."""
        mse, vb = self.loss_terms(output, x_0, x_t, t, eps)
        return mse + vb

    def loss_terms(
        self, output: Array, x_0: TokenValues, x_t: TokenValues, t: Array, eps: TokenValues
    ) -> tuple[Array, Array]:
        """The two terms of (5): squared error of the noise, and VB in bits."""
        at = self._tables_at(t)
        e, v = jnp.split(output.astype(jnp.float32), 2, axis=-1)
        mse = jnp.mean((eps - e) ** 2, axis=-1)
        # Detached: the noise learns from its squared error alone (Nichol & Dhariwal, section 3.1).
        mean, logvar, _ = self.posterior(jax.lax.stop_gradient(e), v, x_t, at)
        true_mean = at.posterior_mean_coef1 * x_0 + at.posterior_mean_coef2 * x_t
        true_logvar = at.posterior_log_variance_clipped
        ratio = jnp.exp(true_logvar - logvar) + (true_mean - mean) ** 2 * jnp.exp(-logvar)
        kl = 0.5 * (-1 + logvar - true_logvar + ratio)
        # The last step leads to the data itself: there is no posterior to compare with.
        vb = jnp.where(t[..., None] == 0, discretised_nll(x_0, mean, logvar), kl)
        return mse, jnp.mean(vb, axis=-1) / np.log(2)

    @staticmethod
    def posterior(e: Array, v: Array, x_t: Array, at: Tables) -> tuple[Array, Array, Array]:
        """Mean (2) and log-variance (4) of x_{t-1}, and x_0 of (3)."""
        # Not clipped: latents have no hard range.
        x_0 = at.sqrt_recip_alphas_cumprod * x_t - at.sqrt_recipm1_alphas_cumprod * e
        f = (v + 1) / 2
        logvar = f * at.log_betas + (1 - f) * at.posterior_log_variance_clipped
        return at.posterior_mean_coef1 * x_0 + at.posterior_mean_coef2 * x_t, logvar, x_0

    def timesteps(self, steps: str | int) -> Timesteps:
        """The kept steps (`kept_steps`), last one first."""
        tables = jax.tree.map(lambda table: table[::-1], self.tables(steps))
        return Timesteps(time=tables.timestep_map, coefficients=tables)

    def init_noise(self, noise: TokenValues, temperature: Array) -> TokenValues:
        """The noise as it is; the temperature scales only what is added on the way."""
        return noise

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
        """Equation (6)."""
        e, v = jnp.split(cond.astype(jnp.float32), 2, axis=-1)
        if null is not None:
            # Only the noise is guided: v stays inside its bounds as it is.
            e = guide(e, jnp.split(null, 2, axis=-1)[0], guidance)
        at = now.coefficients
        mean, logvar, _ = self.posterior(e, v, x, at)
        return mean + at.noisy * temperature * jnp.exp(logvar / 2) * noise
