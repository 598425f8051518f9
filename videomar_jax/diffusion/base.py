"""What the loss and the sampler require of a diffusion process over single tokens.

    x_0   a clean token, P values         eps   standard normal noise
    t     the time, which grows with the noise
    x_t   the noisy token                 g     guidance scale

A network answers (x_t, t, condition) with `output_channels(P)` values, whose meaning is the
process's own. With guidance it answers with and without text (Ho & Salimans 2022):

    e = e_null + g (e_cond - e_null)                                                        (1)

Everything here is float32 whatever the dtype of the network: early steps multiply errors by up to
2e4 (`ddpm`), which bfloat16 would not survive.
"""

from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import jax.numpy as jnp

from videomar_jax.types import Array, Float, Key

TokenValues = Float[Array, "... P"]


class Timesteps(NamedTuple):
    """The N evaluations of the network that lead from noise to data, in the order they are made.

    Arrays have N as their leading axis (or one axis more in front, see `plans.SolverPlan`); inside
    a scan they are the values of one evaluation. None: not used.
    """

    time: Array  # t, as the network takes it
    size: Any = None  # h, the step length of a process that follows a velocity
    coefficients: Any = None  # whatever else the `step` of the process reads
    back: Any = None  # Heun: weight of the velocity before this one
    active: Any = None  # False at padding, which changes nothing
    embedding: Any = None  # the network's embedding of `time`, computed beforehand


# A protocol and no base class: a process is whatever has these methods.
@runtime_checkable
class Process(Protocol):
    """A diffusion process: a frozen dataclass of its settings. All methods work on any rows."""

    kind: str
    """Its name in the registry and in `ModelConfig.head`."""
    steps: int
    """The network sees whole times 0..steps-1, or t in [0, 1] as the step t * steps."""
    stochastic: bool
    """Whether `step` adds noise; if not, all randomness is in the initial noise."""

    def output_channels(self, token_dim: int) -> int:
        """Values that the network gives for a token of `token_dim` values."""
        ...

    def draw_times(self, key: Key, shape: tuple[int, ...]) -> Array:
        """Random training times."""
        ...

    def noise_level(self, t: Array) -> Float[Array, "..."]:
        """How far the time is towards pure noise, in [0, 1]."""
        ...

    def add_noise(self, x_0: TokenValues, t: Array, eps: TokenValues) -> TokenValues:
        """x_t."""
        ...

    def loss(
        self, output: Array, x_0: TokenValues, x_t: TokenValues, t: Array, eps: TokenValues
    ) -> Float[Array, "..."]:
        """The training loss of every row, a mean over the values of a token."""
        ...

    def timesteps(self, steps: str | int) -> Timesteps:
        """The evaluations of a sampler with so many steps. Raises: UserError."""
        ...

    def init_noise(self, noise: TokenValues, temperature: Array) -> TokenValues:
        """The x that sampling starts from, given standard normal noise."""
        ...

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
        """x after one evaluation, given the network's output with and (or None) without text."""
        ...


_Class = TypeVar("_Class", bound=type)
PROCESSES: dict[str, type] = {}
"""The processes by kind; filled by `register`."""


def register(process: _Class) -> _Class:
    """Class decorator: makes a process known under its `kind`."""
    PROCESSES[process.kind] = process
    return process


def guide(cond: Array, null: Array | None, guidance: Array) -> Array:
    """Equation (1) in float32; without an output for no text, `cond` as it is."""
    cond = cond.astype(jnp.float32)
    if null is None:
        return cond
    # The difference is small against its terms, and the scale multiplies its rounding errors.
    null = null.astype(jnp.float32)
    return null + guidance * (cond - null)
