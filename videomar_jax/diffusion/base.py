"""The per-token diffusion processes: schedules, noising, losses and one sampling step. No network
is in here.

DDPM (Nichol & Dhariwal 2021, as MAR uses it), 1000 steps t = 0..999:

    abar(s) = cos^2( (s + 0.008)/1.008 * pi/2 ),  beta_t = min(1 - abar((t+1)/1000)/abar(t/1000),
    0.999) alpha_bar_t = prod_{i<=t} (1 - beta_i)
    x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps
    (1)
    posterior of x_{t-1}: mean c1_t x_0 + c2_t x_t, variance var_t
    (2)
    logvar = f ln beta_t + (1 - f) ln var_t,  f = (v + 1)/2     ("learned range", v from the
    network)         (3) loss = |eps - e|^2 + VB / ln 2, both averaged over the values of a token;
    VB is the KL of (2) and (3),
           for t = 0 the discretised negative log-likelihood; e is detached inside VB
           (4)

Flow (rectified flow, Liu et al. 2023), t in [0, 1]:

    x_t = (1 - t) x_0 + t eps,  target velocity x_0 - eps
    (5)
    x <- x + v/N  for t = 1, 1 - 1/N, ..., 1/N, from x = temperature * eps
    (6)

Guidance combines the outputs with and without text, e = e_null + g (e_cond - e_null); the variance
stays the conditional one. Schedules are float64 tables cast to float32; everything here is float32
whatever the network's dtype.
"""

import dataclasses
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from videomar_jax.models.config import ModelConfig
from videomar_jax.types import Array, Float, Key

Rows = Float[Array, "... P"]
Plan = dict[str, Array]
"""One array [N] for each quantity that changes over the N sampling steps, in the order they are
taken."""


@runtime_checkable
class Process(Protocol):
    """What the loss and the sampler need of a diffusion process; rows are tokens [..., P]."""

    def draw_times(self, key: Key, shape: tuple[int, ...]) -> Array: ...

    def level(self, t: Array) -> Float[Array, "..."]: ...

    def noised(self, x_0: Rows, t: Array, eps: Rows) -> Rows: ...

    def loss(
        self, output: Array, x_0: Rows, x_t: Rows, t: Array, eps: Rows
    ) -> Float[Array, "..."]: ...

    def plan(self, steps: str | int) -> Plan: ...

    def start(self, noise: Rows, temperature: Array) -> Rows: ...

    def advance(
        self,
        x: Rows,
        cond: Array,
        null: Array | None,
        step: Plan,
        noise: Rows | None,
        guidance: Array,
        temperature: Array,
    ) -> Rows: ...


def make_process(config: ModelConfig) -> Process:
    """The process of the model's head."""
    return DDPM() if config.head == "ddpm" else Flow(time=config.flow_time)


def guide(cond: Array, null: Array | None, guidance: Array) -> Array:
    """Classifier-free guidance; without the null output there is nothing to guide."""
    return cond if null is None else null + guidance * (cond - null)


# ---------------------------------------------------------------- DDPM


def cosine_betas(steps: int = 1000) -> np.ndarray:
    """beta_t of the cosine schedule in float64, capped at 0.999."""
    s = np.arange(steps + 1, dtype=np.float64) / steps
    alpha_bar = np.cos((s + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999)


def kept_steps(respacing: str | int, steps: int = 1000) -> list[int]:
    """Which base steps a respacing keeps, ascending.

    "ddimN": a whole stride that gives exactly N; "N" or "N1,N2,...": as many equal sections as
    numbers, the steps spread evenly over each section, end points included, and rounded half to
    even; "": all of them.

    Raises:
        ValueError: the respacing cannot be met, or keeps fewer than two steps.
    """
    text = str(respacing).strip()
    if not text:
        return list(range(steps))
    if not all(part.isdecimal() for part in text.removeprefix("ddim").split(",")):
        raise ValueError(
            f"Head steps {text!r} are not understood: use a number, numbers with commas, or 'ddimN'."
        )
    if text.startswith("ddim"):
        wanted = int(text.removeprefix("ddim"))
        strides = [s for s in range(1, steps) if len(range(0, steps, s)) == wanted]
        if not strides or wanted < 2:
            raise ValueError(
                f"No whole stride over {steps} steps keeps exactly {wanted}; try plain {wanted!r}."
            )
        return list(range(0, steps, strides[0]))
    counts = [int(part) for part in text.split(",")]
    kept, start = set(), 0
    for i, count in enumerate(counts):
        size = steps // len(counts) + (i < steps % len(counts))
        if not 1 <= count <= size:
            raise ValueError(
                f"Head steps {text!r} ask for {count} of the {size} steps of section {i + 1}."
            )
        stride, place = ((size - 1) / (count - 1) if count > 1 else 1.0), 0.0
        for _ in range(count):
            kept.add(start + round(place))
            place += stride
        start += size
    if len(kept) < 2:
        raise ValueError(
            f"Head steps {text!r} keep a single step; the learned variance needs at least two."
        )
    return sorted(kept)


def ddpm_tables(kept: list[int], base_betas: np.ndarray) -> dict[str, np.ndarray]:
    """All float64 tables of the process that visits only the `kept` base steps."""
    base = np.cumprod(1 - base_betas)[kept]
    betas = 1 - base / np.append(1.0, base[:-1])
    alpha_bar = np.cumprod(1 - betas)
    previous = np.append(1.0, alpha_bar[:-1])
    variance = betas * (1 - previous) / (1 - alpha_bar)
    return {
        "timestep_map": np.array(kept, np.int32),
        "betas": betas,
        "log_betas": np.log(betas),
        "alphas_cumprod": alpha_bar,
        "alphas_cumprod_prev": previous,
        "sqrt_alphas_cumprod": np.sqrt(alpha_bar),
        "sqrt_one_minus_alphas_cumprod": np.sqrt(1 - alpha_bar),
        "sqrt_recip_alphas_cumprod": np.sqrt(1 / alpha_bar),
        "sqrt_recipm1_alphas_cumprod": np.sqrt(1 / alpha_bar - 1),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": np.log(np.append(variance[1], variance[1:])),
        "posterior_mean_coef1": betas * np.sqrt(previous) / (1 - alpha_bar),
        "posterior_mean_coef2": (1 - previous) * np.sqrt(1 - betas) / (1 - alpha_bar),
    }


def log_clamped(x: Array) -> Array:
    """ln x with the argument floored at 1e-12."""
    return jnp.log(jnp.maximum(x, 1e-12))


def discretised_nll(x: Array, mean: Array, logvar: Array) -> Array:
    """Negative log-likelihood (nats) of values in bins 2/255 wide under a Gaussian, with open outer
    bins."""

    def normal_cdf(q):
        return 0.5 * (1 + jnp.tanh(np.sqrt(2 / np.pi) * (q + 0.044715 * q**3)))

    scale = jnp.exp(-logvar / 2)
    up, low = (normal_cdf(scale * (x - mean + offset)) for offset in (1 / 255, -1 / 255))
    inner = jnp.where(x > 0.999, log_clamped(1 - low), log_clamped(up - low))
    return -jnp.where(x < -0.999, log_clamped(up), inner)


@dataclasses.dataclass(frozen=True)
class DDPM:
    """Equations (1) to (4); the network gives 2P values a token: noise, then variance."""

    steps: int = 1000

    def draw_times(self, key: Key, shape: tuple[int, ...]) -> Array:
        """Uniform integers 0..steps-1."""
        return jax.random.randint(key, shape, 0, self.steps)

    def level(self, t: Array) -> Float[Array, "..."]:
        """How far towards pure noise a step is, in [0, 1)."""
        return t / self.steps

    def tables(self, respacing: str | int = "") -> Plan:
        """The float64 tables cast to float32 (and the integer `timestep_map`)."""
        tables = ddpm_tables(kept_steps(respacing, self.steps), cosine_betas(self.steps))
        return {
            k: jnp.asarray(v if v.dtype == np.int32 else v.astype(np.float32))
            for k, v in tables.items()
        }

    def noised(self, x_0: Rows, t: Array, eps: Rows) -> Rows:
        """Equation (1)."""
        at = {k: v[t][..., None] for k, v in self.tables().items()}
        return at["sqrt_alphas_cumprod"] * x_0 + at["sqrt_one_minus_alphas_cumprod"] * eps

    def loss(self, output: Array, x_0: Rows, x_t: Rows, t: Array, eps: Rows) -> Float[Array, "..."]:
        """Equation (4) of every row."""
        mse, vb = self.loss_terms(output, x_0, x_t, t, eps)
        return mse + vb

    def loss_terms(
        self, output: Array, x_0: Rows, x_t: Rows, t: Array, eps: Rows
    ) -> tuple[Array, Array]:
        """The squared error of the noise and the variational term in bits, each averaged over a
        token's values."""
        at = {k: v[t][..., None] for k, v in self.tables().items()}
        e, v = jnp.split(output.astype(jnp.float32), 2, axis=-1)
        mse = jnp.mean((eps - e) ** 2, axis=-1)
        mean, logvar, _ = self.posterior(jax.lax.stop_gradient(e), v, x_t, at)
        true_mean = at["posterior_mean_coef1"] * x_0 + at["posterior_mean_coef2"] * x_t
        true_logvar = at["posterior_log_variance_clipped"]
        ratio = jnp.exp(true_logvar - logvar) + (true_mean - mean) ** 2 * jnp.exp(-logvar)
        kl = 0.5 * (-1 + logvar - true_logvar + ratio)
        vb = jnp.where(t[..., None] == 0, discretised_nll(x_0, mean, logvar), kl)
        return mse, jnp.mean(vb, axis=-1) / np.log(2)

    @staticmethod
    def posterior(e: Array, v: Array, x_t: Array, at: Plan) -> tuple[Array, Array, Array]:
        """Mean and log-variance (3) of x_{t-1}, and the clean token that the noise `e` implies."""
        x_0 = at["sqrt_recip_alphas_cumprod"] * x_t - at["sqrt_recipm1_alphas_cumprod"] * e
        fraction = (v + 1) / 2
        logvar = fraction * at["log_betas"] + (1 - fraction) * at["posterior_log_variance_clipped"]
        return at["posterior_mean_coef1"] * x_0 + at["posterior_mean_coef2"] * x_t, logvar, x_0

    def plan(self, steps: str | int) -> Plan:
        """The respaced tables, last step first; `time` is what the network is told."""
        tables = self.tables(steps)
        plan = {k: v[::-1] for k, v in tables.items()}
        return plan | {
            "time": plan["timestep_map"],
            "noisy": jnp.arange(len(plan["betas"]))[::-1] > 0,
        }

    def start(self, noise: Rows, temperature: Array) -> Rows:
        """Pure noise; the temperature only scales what is added on the way."""
        return noise

    def advance(
        self,
        x: Rows,
        cond: Array,
        null: Array | None,
        step: Plan,
        noise: Rows | None,
        guidance: Array,
        temperature: Array,
    ) -> Rows:
        """One ancestral step: the posterior mean plus temperature * standard deviation * noise
        (none at the end)."""
        e, v = jnp.split(cond.astype(jnp.float32), 2, axis=-1)
        if null is not None:
            e = guide(e, jnp.split(null.astype(jnp.float32), 2, axis=-1)[0], guidance)
        mean, logvar, _ = self.posterior(e, v, x, step)
        return mean + step["noisy"] * temperature * jnp.exp(logvar / 2) * noise


# ---------------------------------------------------------------- rectified flow


@dataclasses.dataclass(frozen=True)
class Flow:
    """Equations (5) and (6); the network gives P values a token, the velocity."""

    time: str = "uniform"

    def draw_times(self, key: Key, shape: tuple[int, ...]) -> Array:
        """Uniform in [0, 1), or the sigmoid of a standard normal (Esser et al. 2024)."""
        if self.time == "logit_normal":
            return jax.nn.sigmoid(jax.random.normal(key, shape))
        return jax.random.uniform(key, shape)

    def level(self, t: Array) -> Float[Array, "..."]:
        """The time itself."""
        return t

    def noised(self, x_0: Rows, t: Array, eps: Rows) -> Rows:
        """Equation (5)."""
        return (1 - t[..., None]) * x_0 + t[..., None] * eps

    def loss(self, output: Array, x_0: Rows, x_t: Rows, t: Array, eps: Rows) -> Float[Array, "..."]:
        """Squared error of the velocity, averaged over a token's values."""
        return jnp.mean((output.astype(jnp.float32) - (x_0 - eps)) ** 2, axis=-1)

    def plan(self, steps: str | int) -> Plan:
        """N equal Euler steps from t = 1 to 0."""
        if not str(steps).isdecimal() or int(steps) < 1:
            raise ValueError(
                f"The flow head takes a whole number of steps, at least 1, not {steps!r}."
            )
        count = int(steps)
        time = np.arange(count, 0, -1) / count
        return {
            "time": jnp.asarray(time, jnp.float32),
            "size": jnp.full(count, 1 / count, jnp.float32),
        }

    def start(self, noise: Rows, temperature: Array) -> Rows:
        """The temperature scales the starting noise, the only noise there is."""
        return temperature * noise

    def advance(
        self,
        x: Rows,
        cond: Array,
        null: Array | None,
        step: Plan,
        noise: Rows | None,
        guidance: Array,
        temperature: Array,
    ) -> Rows:
        """Equation (6)."""
        null = None if null is None else null.astype(jnp.float32)
        return x + step["size"] * guide(cond.astype(jnp.float32), null, guidance)


def needs_step_noise(process: Process) -> bool:
    """Whether sampling injects noise at every step."""
    return isinstance(process, DDPM)


def output_values(config: ModelConfig) -> int:
    """Values that the head gives for each token: noise and variance, or the velocity."""
    return config.token_dim * (2 if config.head == "ddpm" else 1)
