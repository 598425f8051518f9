"""Fits the linear forecast of a model (`models.forecast`) on windows of the training clips.

Ridge regression from phi, equation (2) there, to the change of all later frames gives a map of full
rank; its R leading directions, by what it predicts on the windows, are kept (reduced-rank
regression). The ridge is the one that predicts best what was left out, clip by clip.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from videomar_jax.evaluation.least_squares import principal_components, ridge_regression
from videomar_jax.models.config import ModelConfig
from videomar_jax.models.forecast import forecast_inputs, forecast_sizes
from videomar_jax.models.params import Params
from videomar_jax.types import Float

FOLDS = 4
"""Parts of the clips; each is predicted by a fit on the others."""
RIDGES = (0.03, 0.1, 0.3, 1.0, 10.0, 1000.0)
"""Penalties to choose from, as multiples of the mean square of an input. The largest leaves little
but the mean change."""
SAME_PLACE_RIDGE = 1e-5
MOST_ROWS = 2000
"""Windows that principal components are taken of; more would change nothing."""
CHANGE_PARTS = 512
"""Principal components of the change that are regressed on."""


class ForecastFit(NamedTuple):
    """A fitted forecast, and what it says of the windows without having seen their clips."""

    params: Params
    """As `models.forecast.Forecast` has them, float32."""
    expected: Float[np.ndarray, "N T S P"]
    ridge: float
    left_over: float
    """The share of the change of clips left out that it does not predict; 1: it says nothing."""


def fit_forecast(
    tokens: Float[np.ndarray, "N T S P"],
    text: Float[np.ndarray, "N E"],
    clips: Sequence[int],
    config: ModelConfig,
) -> ForecastFit:
    """Fits equation (1).

    Args:
        tokens: of N windows of the frames and the grid of `config.forecast`.
        text: the mean text feature of each.
        clips: the number of each window's clip; those of one clip are left out together.
    """
    sizes, count = forecast_sizes(config), len(tokens)
    same_place = _same_place(tokens)
    still = tokens[:, 0] @ same_place[:-1] + same_place[-1]
    change = (tokens[:, 1:] - still[:, None]).reshape(count, -1)

    first = tokens[:, 0].reshape(count, -1)
    # A tokenizer that whitens takes half of their scale from its components; the other half, given
    # back, says how visible they are.
    visible = np.tile(tokens[:, 0].std(axis=(0, 1)), tokens.shape[2])
    visible_later = np.tile(tokens[:, 1:].std(axis=(0, 1, 2)), sizes.later // tokens.shape[-1])
    visible_later = np.maximum(visible_later, 1e-6)
    frame_mean = first.mean(axis=0)
    directions, deviations = _principal((first - frame_mean) * visible, sizes.frame_parts)
    # Between unit variance, where faint components count as much as strong ones, and none.
    deviations = np.sqrt(np.maximum(deviations, 1e-6))
    scale = 1.0 / max(float(np.sqrt(np.sum(deviations**2))), 1e-6)
    frame_parts = visible[:, None] * directions / deviations * scale
    text_mean = text.mean(axis=0)
    directions, deviations = _principal(text - text_mean, sizes.text_parts)
    # All of them as wide together as a single one of the frame: a word is a rare thing.
    scale = 1.0 / max(float(np.sqrt(np.sum(deviations**2))), 1e-6)
    text_parts = directions * scale
    parts, words = (first - frame_mean) @ frame_parts, (text - text_mean) @ text_parts
    inputs = np.asarray(forecast_inputs(jnp.asarray(parts), jnp.asarray(words), sizes.crossed))

    basis = _principal(change * visible_later, min(CHANGE_PARTS, sizes.later))[0]
    targets = (change * visible_later) @ basis
    ridge, predicted = _left_out(inputs, targets, np.asarray(clips) % FOLDS)
    predicted = predicted @ basis.T / visible_later
    weight = _ridge(inputs.T @ inputs, inputs.T @ targets, ridge)
    reduced, changes = _reduced_rank(inputs, weight @ basis.T, sizes.changes)
    expected = np.repeat(still[:, None], tokens.shape[1], axis=1)
    expected[:, 1:] += predicted.reshape(tokens[:, 1:].shape)
    params = {
        "same_place": same_place,
        "frame_mean": frame_mean,
        "frame_parts": frame_parts,
        "text_mean": text_mean,
        "text_parts": text_parts,
        "inputs": reduced,
        "changes": changes / visible_later,
    }
    params = {name: np.asarray(value, np.float32) for name, value in params.items()}
    centred = (change - change.mean(axis=0)) * visible_later
    missed = (change - predicted) * visible_later
    share = float(np.sum(missed**2)) / max(float(np.sum(centred**2)), 1e-12)
    return ForecastFit(params, expected, ridge, share)


def _same_place(tokens: Float[np.ndarray, "N T S P"]) -> Float[np.ndarray, "P+1 P"]:
    """What follows at the place of a token of frame 0, by regression over later frames."""
    width = tokens.shape[-1]
    first = tokens[:, 0].reshape(-1, width).astype(np.float64)
    first = np.concatenate([first, np.ones((len(first), 1))], axis=1)
    later = tokens[:, 1:].mean(axis=1).reshape(-1, width)
    return _ridge(first.T @ first, first.T @ later, SAME_PLACE_RIDGE).astype(np.float32)


def _principal(
    rows: Float[np.ndarray, "N n"], most: int
) -> tuple[Float[np.ndarray, "n most"], Float[np.ndarray, "most"]]:
    """Principal components of centred rows; zeros where there are fewer."""
    found, deviations = principal_components(rows[:: -(-len(rows) // MOST_ROWS)], most)
    missing = most - len(deviations)
    return np.pad(found, ((0, 0), (0, missing))), np.pad(deviations, (0, missing))


def _left_out(
    inputs: Float[np.ndarray, "N F"], targets: Float[np.ndarray, "N C"], folds: np.ndarray
) -> tuple[float, Float[np.ndarray, "N C"]]:
    """The best ridge, and what it predicts of each fold from the others."""
    if len(np.unique(folds)) == 1:
        # A single clip leaves nothing to fit on: nothing is expected of it.
        return np.inf, np.zeros_like(targets)
    squares, products = inputs.T @ inputs, inputs.T @ targets
    best = None
    for ridge in RIDGES:
        predicted = np.empty_like(targets)
        for fold in np.unique(folds):
            own = folds == fold
            held, target = inputs[own], targets[own]
            weight = _ridge(squares - held.T @ held, products - held.T @ target, ridge)
            predicted[own] = held @ weight
        error = float(np.sum((predicted - targets) ** 2))
        if best is None or error < best[0]:
            best = error, ridge, predicted
    assert best is not None
    return best[1:]


def _ridge(squares: np.ndarray, products: np.ndarray, ridge: float) -> np.ndarray:
    if not np.isfinite(ridge):
        return np.zeros_like(products)
    return ridge_regression(squares, products, ridge).astype(np.float32)


def _reduced_rank(
    inputs: Float[np.ndarray, "N F"], weight: Float[np.ndarray, "F V"], rank: int
) -> tuple[Float[np.ndarray, "F R"], Float[np.ndarray, "R V"]]:
    """The map of rank R that is nearest to `weight` on the inputs."""
    directions, _ = _principal(inputs @ weight, rank)
    return weight @ directions, directions.T
