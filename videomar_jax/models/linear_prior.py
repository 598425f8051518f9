"""A linear predictor of each token from the frame before it, and what the model builds on it.

Ours, for small data: each part is a field of `ModelConfig` and off by default.

`linear_prior`. For token i of frame t, with N(i) the 3x3 tokens around i,

    b = [x_{t-1,j} for j in N(i); f; 1] W_k,    k = 0 for t = 1 and k = 1 later                (1)

f is empty, or with `forecast` what frame 0 and the text let one expect of the token (f_t,i) and of
its change since the frame before (f_t,i - f_{t-1,i}), see `models.forecast`.

The frame before frame 1 is an image, whose tokens follow another law, hence the two maps. W, and
the spread s of what they leave over, are found by ridge regression before training and stay as they
are (`training.prior`); the model learns (x - b) / s in place of x. Frame 0 has b = 0 and s = 1.

`residual`. The readout of z predicts the mean r of (x - b) / s by squared error, and the head
learns the distribution of the rest, (x - b) / s - r, as in CorrDiff (Mardani et al. 2023).

`bilinear_units`. What moves is a copy of what was there, and z says where it goes. A readout that
is linear in z must carry the whole picture through z; this one also multiplies:

    r = R [z; 1] + V (G [z; 1] * U_k [x_{t-1,j} for j in N(i); f; 1])                          (2)

with that many products, * element by element: each unit filters what stood around the token in the
frame before, and z weighs it (the factored bilinear model of Memisevic and Hinton 2010).

`previous_frame`. A learned projection of the same neighbourhood is added to the mask token, so that
hidden places know what was there.

All of it depends on frame t - 1 as the sampler has it, and with `forecast` on frame 0: causality,
caching and windows hold.
"""

import math
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from videomar_jax.models.config import ModelConfig
from videomar_jax.models.forecast import Forecast, forecast_features
from videomar_jax.models.layers import Linear, linear
from videomar_jax.models.transformer import Context
from videomar_jax.types import Array, Bool, Float

if TYPE_CHECKING:
    from videomar_jax.models.videomar import VideoMAR

Grid = tuple[int, int]
NEIGHBOURS = 9
"""Tokens of a neighbourhood."""
KINDS = 2
"""Maps: one for frame 1, one for all later frames."""

FrameNumbers = np.ndarray | jax.Array
"""The number of each of R frames in its clip: [R], or [B, R] where clips differ."""


class Standardised(NamedTuple):
    """An affine change of tokens: what is left over of them in units of its spread. With it goes
    what the readout of the mean multiplies."""

    mean: Float[Array, "*frames S P"]
    """b of equation (1)."""
    spread: Float[Array, "*#frames 1 P"]
    """s."""
    units: Float[Array, "*frames S H"] | None = None
    """U_k [...] of equation (2); None: there are no such units."""

    def encode(self, tokens: Float[Array, "*frames S P"]) -> Float[Array, "*frames S P"]:
        """(x - b) / s."""
        return (tokens - self.mean) / self.spread

    def decode(self, rest: Float[Array, "*frames S P"]) -> Float[Array, "*frames S P"]:
        """The tokens of which `rest` is left over."""
        return self.mean + self.spread * rest


class LinearPrior(nnx.Module):
    """Equation (1). Its parameters are fitted in closed form (`training.prior`), never trained."""

    def __init__(self, config: ModelConfig):
        width = config.token_dim
        self.weight = nnx.Param(jnp.zeros((KINDS, known_values(config) + 1, width)))
        self.spread = nnx.Param(jnp.ones(width))
        if config.forecast is not None:
            self.forecast = Forecast(config)

    def __call__(
        self,
        previous: Float[Array, "B R S P"],
        number: FrameNumbers,
        grid: Grid,
        forecast: Float[Array, "B T S P"] | None = None,
    ) -> Standardised:
        """The prior of R frames.

        Args:
            previous: the tokens of the frame before each of them; of no matter for frame 0.
            number: the frames' numbers.
            forecast: of their clips, for a prior that takes one.
        """
        weight = jax.lax.stop_gradient(self.weight[...])
        spread = jax.lax.stop_gradient(self.spread[...])
        features = known(previous.astype(jnp.float32), number, grid, forecast)
        mean = by_kind(features, weight[:, :-1], weight[:, -1], number)
        predicted = _per_frame(number > 0)
        return Standardised(
            jnp.where(predicted, mean, 0.0), jnp.where(predicted, spread, jnp.ones_like(spread))
        )


class FrameBeforeMap(nnx.Module):
    """A learned map of what is known of a token: one for frame 1 and one for later frames."""

    def __init__(self, outputs: int, config: ModelConfig, *, rngs: nnx.Rngs):
        inputs = known_values(config)
        init = nnx.initializers.xavier_uniform()
        self.kernel = nnx.Param(init(rngs.params(), (KINDS, inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros((KINDS, outputs)))
        self.dtype = config.dtype

    def __call__(
        self,
        previous: Float[Array, "B R S P"],
        number: FrameNumbers,
        grid: Grid,
        forecast: Float[Array, "B T S P"] | None = None,
    ) -> Float[Array, "B R S N"]:
        """Zero for frame 0; arguments as those of `LinearPrior`."""
        features = known(previous, number, grid, forecast).astype(self.dtype)
        kernel, bias = self.kernel[...].astype(self.dtype), self.bias[...]
        mapped = by_kind(features, kernel, bias, number).astype(jnp.float32)
        return jnp.where(_per_frame(number > 0), mapped, 0.0)


class MeanReadout(Linear):
    """Equation (2), without its products for a model without `bilinear_units`."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        # A residual starts at zero: training then begins at the prior.
        zeros, xavier = nnx.initializers.zeros, nnx.initializers.xavier_uniform()
        super().__init__(
            config.width,
            config.token_dim,
            use_bias=True,
            dtype=config.dtype,
            kernel_init=zeros if config.residual else xavier,
            rngs=rngs,
        )
        self.bilinear = BilinearUnits(config, rngs=rngs) if config.bilinear_units else None

    def __call__(
        self, z: Float[Array, "*frames D"], units: Float[Array, "*frames H"] | None = None
    ) -> Float[Array, "*frames P"]:
        """r, float32.

        Args:
            units: what `bilinear.filters` gives, for a model with them.
        """
        mean = super().__call__(z).astype(jnp.float32)
        if self.bilinear is None:
            return mean
        assert units is not None, "the readout multiplies"
        return mean + self.bilinear(z, units)


class BilinearUnits(nnx.Module):
    """U, G and V of equation (2); V starts at zero."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        units = config.bilinear_units
        self.filters = FrameBeforeMap(units, config, rngs=rngs)
        self.gate = linear(config.width, units, config, rngs, use_bias=True)
        self.mix = linear(units, config.token_dim, config, rngs, std=0.0)

    def __call__(
        self, z: Float[Array, "*frames D"], units: Float[Array, "*frames H"]
    ) -> Float[Array, "*frames P"]:
        """V (G [z; 1] * units), float32."""
        return self.mix(self.gate(z) * units).astype(jnp.float32)


# How training and sampling use them


def mean_of_rest(
    model: "VideoMAR",
    z: Float[Array, "B R S D"],
    previous: Float[Array, "B R S P"],
    number: FrameNumbers,
    grid: Grid,
    context: Context,
) -> Float[Array, "B R S P"]:
    """r of equation (2), of R frames; arguments as those of `LinearPrior`."""
    bilinear = model.regression.bilinear
    units = None
    if bilinear is not None:
        units = bilinear.filters(previous, number, grid, context.forecast)
    return model.regression(z, units)


def previous_frames(
    history: Float[Array, "B n S P"], count: int
) -> tuple[Float[Array, "B R S P"], np.ndarray]:
    """The frame before each of `count` frames, and their numbers.

    Args:
        history: the frames 0..n-1 as later frames see them.
        count: n for the frames 1..n, n + 1 for the frames 0..n.
    """
    first = history.shape[1] + 1 - count
    previous = jnp.pad(history, ((0, 0), (1 - first, 0), (0, 0), (0, 0)))
    return previous, np.arange(first, first + count)


def add_hint(
    model: "VideoMAR",
    x: Float[Array, "B N S D"],
    mask: Bool[Array, "B R S"],
    history: Float[Array, "B n S P"],
    grid: Grid,
    context: Context,
) -> Float[Array, "B N S D"]:
    """Adds the embedding of the frame before to hidden tokens of the last R frames of `x`; for a
    model without it `x` as it is. Other arguments as in `previous_frames`."""
    if not model.config.previous_frame:
        return x
    count = mask.shape[1]
    hint = model.previous_embed(*previous_frames(history, count), grid, context.forecast)
    hint = jnp.where(mask[..., None], hint, 0.0)
    return x + jnp.pad(hint, ((0, 0), (x.shape[1] - count, 0), (0, 0), (0, 0)))


def frame_prior(
    model: "VideoMAR", previous: Float[Array, "B S P"], number: Array, grid: Grid, context: Context
) -> Standardised | None:
    """The prior of one frame, [B, S, P]; None for a model without one.

    Args:
        previous: the finished frame before it.
        number: of the frame in the video, a scalar.
        context: with the forecast, for a model that has one.
    """
    if not model.config.linear_prior:
        return None
    place = (previous[:, None], number[None], grid, context.forecast)
    prior = model.linear_prior(*place)
    bilinear = model.regression.bilinear if model.config.residual else None
    units = None if bilinear is None else bilinear.filters(*place)[:, 0]
    return Standardised(prior.mean[:, 0], prior.spread[0], units)


def frame_hint(
    model: "VideoMAR", previous: Float[Array, "B S P"], number: Array, grid: Grid, context: Context
) -> Float[Array, "B S D"] | None:
    """The embedding of the frame before; None for a model without it. Arguments as there."""
    if not model.config.previous_frame:
        return None
    return model.previous_embed(previous[:, None], number[None], grid, context.forecast)[:, 0]


def complete(
    model: "VideoMAR",
    drawn: Float[Array, "B k P"],
    z: Float[Array, "G k D"],
    guidance: Array,
    prior: Standardised | None,
) -> Float[Array, "B k P"]:
    """Tokens of what the head has drawn: with the mean that the readout of z gives, guided as the
    head's output is, and behind the prior.

    Args:
        z: as in `sampling.reference.draw_tokens`.
        prior: that of these tokens.
    """
    if model.config.residual:
        units = None
        if prior is not None and prior.units is not None:
            units = jnp.tile(prior.units, (len(z) // len(drawn), 1, 1))
        mean = model.regression(z, units)
        if len(mean) > len(drawn):
            with_text, without = jnp.split(mean, 2)
            mean = without + guidance * (with_text - without)
        drawn = drawn + mean
    return drawn if prior is None else prior.decode(drawn)


# What is known of a token


def known_values(config: ModelConfig) -> int:
    """How many values `known` gives."""
    return (NEIGHBOURS + (0 if config.forecast is None else 2)) * config.token_dim


def known(
    previous: Float[Array, "B R S P"],
    number: FrameNumbers,
    grid: Grid,
    forecast: Float[Array, "B T S P"] | None,
) -> Float[Array, "B R S F"]:
    """The values of equation (1) but the last: the neighbourhood, and f where there is one."""
    around = neighbourhoods(previous, grid)
    if forecast is None:
        return around
    expected = forecast_features(forecast, number).astype(around.dtype)
    return jnp.concatenate([around, expected], axis=-1)


def neighbourhoods(tokens: Float[Array, "B R S P"], grid: Grid) -> Float[Array, "B R S 9*P"]:
    """The 3x3 tokens around each token, row by row; past the border stands the border's token."""
    height, width = grid
    image = tokens.reshape(*tokens.shape[:2], height, width, -1)
    padded = jnp.pad(image, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    shifted = []
    for row in range(3):
        for column in range(3):
            shifted.append(padded[:, :, row : row + height, column : column + width])
    return jnp.concatenate(shifted, axis=-1).reshape(*tokens.shape[:3], -1)


def by_kind(
    features: Float[Array, "B R S F"],
    kernel: Float[Array, "2 F N"],
    bias: Float[Array, "2 N"],
    number: FrameNumbers,
) -> Float[Array, "B R S N"]:
    """Each frame through the map of its kind."""

    def through(kind: int, rows: Array) -> Array:
        # Flat rows are what XLA multiplies fast on a CPU.
        flat = rows.reshape(math.prod(rows.shape[:-1]), rows.shape[-1])
        product = jnp.matmul(flat, kernel[kind], precision="highest")
        return product.reshape(*rows.shape[:-1], kernel.shape[-1]) + bias[kind]

    if isinstance(number, np.ndarray):
        # Known before compilation: frame 1, if it is among them, comes before all later ones.
        early = int(np.sum(number <= 1))
        parts = [through(0, features[:, :early]), through(1, features[:, early:])]
        return jnp.concatenate(parts, axis=1)
    later = _per_frame(number > 1)
    return jnp.where(later, through(1, features), through(0, features))


def _per_frame(flags: Array | np.ndarray) -> Array:
    """[R] or [B, R] → [..., R, 1, 1]."""
    return jnp.asarray(flags)[..., None, None]
