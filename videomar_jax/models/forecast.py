"""What the first frame and the text let one expect of a whole clip: a linear forecast, ours.

    f_t,i = x_0,i A + c_t,i,    c = phi U V                                                  (1)
    phi = [1; a; e; products of the leading a with all e]                                    (2)

x_0,i A is what usually follows at the place of token i of frame 0. The change c of all later frames
is a linear map of rank R = `CHANGES` from phi, in which a are principal components of frame 0 and e
those of the mean text feature: in footage where things keep their place, such as a face, they say
more than the frame before does. All of it is fitted in closed form (`training.forecast_fit`) and
never trained.

The change belongs to the grid and the frames that it was fitted on. On another grid there is none,
and frames beyond the last one are expected to look like that.
"""

import dataclasses
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from videomar_jax.models.config import ModelConfig
from videomar_jax.models.transformer import Context
from videomar_jax.types import Array, Float, TextFeatures, TextMask

if TYPE_CHECKING:
    from videomar_jax.models.videomar import VideoMAR

FRAME_PARTS, TEXT_PARTS = 256, 64
"""Principal components of frame 0 and of the text, at most."""
CROSSED = 16
"""Components of frame 0 whose products with those of the text are taken."""
CHANGES = 256
"""R, at most."""


class ForecastSizes(NamedTuple):
    """How many values each part of equations (1) and (2) has."""

    frame: int
    """Of the tokens of a frame."""
    later: int
    """Of the tokens of all later frames."""
    frame_parts: int
    text_parts: int
    crossed: int
    inputs: int
    """Of phi."""
    changes: int


def forecast_sizes(config: ModelConfig) -> ForecastSizes:
    """The sizes for `config.forecast`."""
    assert config.forecast is not None
    frames, rows, columns = config.forecast
    frame = rows * columns * config.token_dim
    frame_parts, text_parts = min(FRAME_PARTS, frame), min(TEXT_PARTS, config.text_width)
    crossed = min(CROSSED, frame_parts)
    return ForecastSizes(
        frame=frame,
        later=(frames - 1) * frame,
        frame_parts=frame_parts,
        text_parts=text_parts,
        crossed=crossed,
        inputs=1 + frame_parts + text_parts + crossed * text_parts,
        changes=min(CHANGES, (frames - 1) * frame),
    )


class Forecast(nnx.Module):
    """Equation (1)."""

    def __init__(self, config: ModelConfig):
        self.config = config
        sizes, width = forecast_sizes(config), config.token_dim

        def zeros(*shape: int) -> nnx.Param:
            return nnx.Param(jnp.zeros(shape))

        self.same_place = zeros(width + 1, width)
        self.frame_mean = zeros(sizes.frame)
        self.frame_parts = zeros(sizes.frame, sizes.frame_parts)
        self.text_mean = zeros(config.text_width)
        self.text_parts = zeros(config.text_width, sizes.text_parts)
        self.inputs = zeros(sizes.inputs, sizes.changes)
        self.changes = zeros(sizes.changes, sizes.later)

    def __call__(
        self,
        first: Float[Array, "B S P"],
        text: TextFeatures,
        text_mask: TextMask,
        grid: tuple[int, int],
    ) -> Float[Array, "B T S P"]:
        """What is expected of the frames 0..T-1; of frame 0 what usually follows it.

        Args:
            first: the tokens of frame 0.
        """
        fitted = jax.lax.stop_gradient(
            {name: param[...] for name, param in nnx.state(self).items()}
        )
        first = first.astype(jnp.float32)
        expected = first @ fitted["same_place"][:-1] + fitted["same_place"][-1]
        assert self.config.forecast is not None
        frames, *fitted_grid = self.config.forecast
        expected = jnp.repeat(expected[:, None], frames, axis=1)
        if tuple(grid) != tuple(fitted_grid):
            return expected
        rows = first.reshape(len(first), -1)
        parts = (rows - fitted["frame_mean"]) @ fitted["frame_parts"]
        words = (mean_feature(text, text_mask) - fitted["text_mean"]) @ fitted["text_parts"]
        inputs = forecast_inputs(parts, words, forecast_sizes(self.config).crossed)
        change = inputs @ fitted["inputs"] @ fitted["changes"]
        change = change.reshape(len(first), frames - 1, *first.shape[1:])
        return expected.at[:, 1:].add(change)


def mean_feature(text: TextFeatures, text_mask: TextMask) -> Float[Array, "B E"]:
    """The mean over the text's tokens."""
    weight = text_mask[..., None].astype(jnp.float32)
    return jnp.sum(text * weight, axis=1) / jnp.maximum(jnp.sum(weight, axis=1), 1.0)


def forecast_inputs(
    parts: Float[Array, "B a"], words: Float[Array, "B e"], crossed: int
) -> Float[Array, "B phi"]:
    """phi of equation (2)."""
    products = words[:, :, None] * parts[:, None, :crossed]
    constant = jnp.ones((len(parts), 1))
    return jnp.concatenate([constant, parts, words, products.reshape(len(parts), -1)], axis=1)


def with_forecast(
    model: "VideoMAR",
    context: Context,
    first: Float[Array, "B S P"],
    text: TextFeatures,
    text_mask: TextMask,
    grid: tuple[int, int],
) -> Context:
    """The context with the forecast of its clips; as it is for a model without one.

    Args:
        first: the tokens of frame 0, without noise.
        text, text_mask: of the captions, also where the context leaves them out.
    """
    if model.config.forecast is None:
        return context
    forecast = model.linear_prior.forecast(first, text, text_mask, grid)
    return dataclasses.replace(context, forecast=forecast)


def forecast_features(
    forecast: Float[Array, "B T S P"], number: np.ndarray | Array
) -> Float[Array, "B R S 2*P"]:
    """f_t and f_t - f_{t-1} of R frames; `number` as in `linear_prior.LinearPrior`."""
    last = forecast.shape[1] - 1
    number = jnp.broadcast_to(jnp.asarray(number), (len(forecast), np.shape(number)[-1]))

    def at(frame: Array) -> Array:
        frame = jnp.clip(frame, 0, last)[..., None, None]
        return jnp.take_along_axis(forecast, frame, axis=1)

    now = at(number)
    return jnp.concatenate([now, now - at(number - 1)], axis=-1)
