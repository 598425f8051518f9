"""Fits the linear prior of a model (`models.linear_prior`) on windows of the training clips.

For each map k, over all tokens x of the windows and what is known of them, f (`known`),

    W_k = argmin  sum |x - f W|^2 + ridge |W|^2                                             (1)

The ridge is the one that predicts best what the fit left out, clip by clip: few clips give a
cautious map. s is the spread of what is left over there,

    s_c = sqrt(d_c rms(d)),    d_c the root mean square of x - f W in value c of a token       (2)

half-way in logarithms between a spread for each value and one for all.

A model with a forecast has that fitted first (`training.forecast_fit`). What it says of a clip
enters f as it was without that clip: else the map would trust it too much.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from videomar_jax.checks import UserError
from videomar_jax.data.loader import fixed_clips
from videomar_jax.data.sources import ClipShape, clips_for
from videomar_jax.evaluation.least_squares import ridge_regression
from videomar_jax.io.log import log
from videomar_jax.models.config import ModelConfig
from videomar_jax.models.forecast import mean_feature
from videomar_jax.models.linear_prior import KINDS, known
from videomar_jax.models.params import Params
from videomar_jax.models.patchify import patchify
from videomar_jax.tokenizers import latent_shape
from videomar_jax.training.batches import TrainingInputs, clip_shape, to_latents, to_text
from videomar_jax.training.forecast_fit import ForecastFit, fit_forecast
from videomar_jax.training.recipe import Recipe
from videomar_jax.types import Array, Float

FOLDS = 4
"""Parts of the clips; each is predicted by a fit on the others."""
RIDGES = (0.001, 0.01, 0.1, 1.0, 10.0)
"""Penalties to choose from, as multiples of the mean square of a feature."""
LEAST_SPREAD = 1e-3
MUCH_LEFT_OVER = 0.9
MOST_WINDOWS = 5000
WINDOWS_PER_CLIP = 100
"""Random windows of one clip overlap: more of them say little new."""
ENOUGH_TOKENS = 150_000
"""Predicted tokens beyond which more windows would change nothing."""
LEAST_WINDOWS = 32
MOST_BYTES = 2**28
"""Of the tokens of the windows that are held in memory."""
READ_AT_ONCE = 16
ROWS_AT_ONCE = 1024


class Window(NamedTuple):
    """A window of a training clip."""

    clip: int
    """The number of its clip."""
    tokens: Float[np.ndarray, "T S P"]
    text: Float[np.ndarray, "E"] | None = None
    """The mean feature of its caption, for a forecast."""
    forecast: Float[np.ndarray, "T S P"] | None = None


class PriorFit(NamedTuple):
    """A fitted prior, and how much it leaves over of tokens that the fit left out."""

    params: Params
    """As `models.linear_prior.LinearPrior` has them, float32."""
    windows: int
    clips: int
    left_over: tuple[float, ...]
    """The share of the tokens' variance that map k does not predict; 1: it predicts their mean."""


class _Sums:
    """What equation (1) needs of some tokens, in float64."""

    def __init__(self, inputs: int, outputs: int):
        self.inputs = np.zeros((inputs, inputs))
        self.products = np.zeros((inputs, outputs))
        self.squares = np.zeros(outputs)
        self.count = 0
        self._waiting: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, features: Float[np.ndarray, "n F"], targets: Float[np.ndarray, "n P"]) -> None:
        """Adds tokens; they count after the next `flush` at the latest."""
        self.count += len(features)
        self._waiting.append((features, targets))
        # Products of a few rows would only write the large matrix over and over.
        if sum(len(rows) for rows, _ in self._waiting) >= ROWS_AT_ONCE:
            self.flush()

    def flush(self) -> None:
        if not self._waiting:
            return
        features, targets = (np.concatenate(rows) for rows in zip(*self._waiting, strict=True))
        self._waiting.clear()
        self.inputs += features.T @ features
        self.products += features.T @ targets
        self.squares += np.sum(targets**2, axis=0)

    def __add__(self, other: "_Sums") -> "_Sums":
        total = _Sums(*self.products.shape)
        total.inputs = self.inputs + other.inputs
        total.products = self.products + other.products
        total.squares = self.squares + other.squares
        total.count = self.count + other.count
        return total

    def solve(self, ridge: float) -> Float[np.ndarray, "F P"]:
        """W of equation (1)."""
        return ridge_regression(self.inputs, self.products, ridge, free_constant=True)

    def errors(self, weight: Float[np.ndarray, "F P"]) -> Float[np.ndarray, "P"]:
        """The sum of |x - f W|^2 for each value of a token."""
        explained = np.sum(weight * (2 * self.products - self.inputs @ weight), axis=0)
        return np.maximum(self.squares - explained, 0.0)

    def spread(self) -> float:
        """The sum of |x - mean|^2."""
        mean = self.products[-1] / self.count
        return float(np.sum(self.squares - self.count * mean**2))


class _Map(NamedTuple):
    """One fitted map, with its errors on tokens that were left out."""

    weight: Float[np.ndarray, "F P"]
    errors: Float[np.ndarray, "P"]
    count: int
    left_over: float


def fit_prior(windows: Iterable[Window], grid: tuple[int, int]) -> PriorFit:
    """Fits W and s in one pass over `windows`, in memory that does not grow with their number.

    Args:
        windows: of at least two latent frames each; those of one clip are left out together.
        grid: (H, W), token rows and columns.
    Raises:
        UserError: there is no window, or what is read is not finite.
    """
    folds: list[list[_Sums]] = []
    clips, count = set(), 0
    for window in windows:
        features = _window_features(window, grid)
        if not folds:
            sizes = (features.shape[-1], window.tokens.shape[-1])
            folds = [[_Sums(*sizes) for _ in range(FOLDS)] for _ in range(KINDS)]
        _add_window(folds, window, features)
        clips.add(window.clip)
        count += 1
    if not count:
        raise UserError("The linear prior cannot be fitted: no clip has two latent frames.")
    for sums in (*folds[0], *folds[1]):
        sums.flush()
    has_later = any(part.count for part in folds[1])
    early = _fit_map(folds[0])
    # Clips of two latent frames never show the second map: the first one serves.
    later = _fit_map(folds[1]) if has_later else early
    deviation = np.sqrt((early.errors + later.errors) / (early.count + later.count))
    spread = np.sqrt(deviation * np.sqrt(np.mean(deviation**2)))
    params = {
        "weight": np.stack([early.weight, later.weight]).astype(np.float32),
        "spread": np.maximum(spread, LEAST_SPREAD).astype(np.float32),
    }
    return PriorFit(params, count, len(clips), (early.left_over, later.left_over))


def _window_features(window: Window, grid: tuple[int, int]) -> Float[np.ndarray, "n S F"]:
    """f of the frames 1..T-1, a constant behind it."""
    if not np.isfinite(window.tokens).all():
        raise UserError(
            f"The linear prior cannot be fitted: latents of clip {window.clip} are not finite."
        )
    forecast = None if window.forecast is None else window.forecast[None]
    frames = tuple(range(1, len(window.tokens)))
    features = np.asarray(_known(window.tokens[None, :-1], frames, grid, forecast)[0], np.float64)
    return np.concatenate([features, np.ones((*features.shape[:2], 1))], axis=-1)


def _add_window(
    folds: list[list[_Sums]], window: Window, features: Float[np.ndarray, "n S F"]
) -> None:
    targets = np.asarray(window.tokens[1:], np.float64)
    for sums, frames in zip(folds, (slice(0, 1), slice(1, None)), strict=True):
        rows = features[frames].reshape(-1, features.shape[-1])
        if len(rows):
            sums[window.clip % FOLDS].add(rows, targets[frames].reshape(-1, targets.shape[-1]))


@functools.partial(jax.jit, static_argnames=("frames", "grid"))
def _known(previous: Array, frames: tuple[int, ...], grid: tuple[int, int], forecast: Any) -> Array:
    return known(previous, np.asarray(frames), grid, forecast)


def _fit_map(folds: list[_Sums]) -> _Map:
    """The map with the best ridge; a single fold that holds tokens is judged on itself."""
    used = [fold for fold in folds if fold.count]
    whole = used[0]
    for fold in used[1:]:
        whole = whole + fold
    best = None
    for ridge in RIDGES:
        errors = np.zeros(whole.products.shape[1])
        for number, fold in enumerate(used):
            others = [other for i, other in enumerate(used) if i != number] or [fold]
            rest = others[0]
            for other in others[1:]:
                rest = rest + other
            errors += fold.errors(rest.solve(ridge))
        if best is None or errors.sum() < best[1].sum():
            best = ridge, errors
    assert best is not None
    ridge, errors = best
    share = float(errors.sum() / max(whole.spread(), 1e-12))
    return _Map(whole.solve(ridge), errors, whole.count, share)


def training_windows(
    inputs: TrainingInputs, shape: ClipShape, config: ModelConfig, seed: int
) -> Iterator[Window]:
    """Random windows of the training clips as tokens, the clips in turn; with their texts for a
    model with a forecast.

    Raises:
        UserError: no clip is long enough for `shape`.
    """
    indices = clips_for(inputs.source, shape, ((shape.height, shape.width),)).tolist()
    if not indices:
        raise UserError(
            f"The linear prior cannot be fitted: no clip has {shape.num_frames} frames of "
            f"{shape.height}x{shape.width}."
        )
    left = min(MOST_WINDOWS, WINDOWS_PER_CLIP * len(indices))
    for repeat in range(WINDOWS_PER_CLIP):
        for start in range(0, len(indices), READ_AT_ONCE):
            chosen = indices[start : start + READ_AT_ONCE][:left]
            if not chosen:
                return
            left -= len(chosen)
            clips = fixed_clips(inputs.source, chosen, shape=shape, seed=seed + repeat)
            latents = jnp.asarray(to_latents(clips, inputs))
            tokens = np.asarray(patchify(latents, config.patch_size))
            texts: Iterable[Any] = itertools.repeat(None)
            if config.forecast is not None:
                texts = np.asarray(mean_feature(*to_text(clips, inputs)))
            yield from map(Window, chosen, tokens, texts)


def fit_on_clips(recipe: Recipe, inputs: TrainingInputs) -> Params:
    """The prior of a run, fitted on windows of its last stage's shape; the log says how well."""
    shape, patch = clip_shape(recipe.curriculum.stages[-1]), recipe.model.patch_size
    _, rows, columns = latent_shape(inputs.tokenizer, shape.num_frames, shape.height, shape.width)
    windows = training_windows(inputs, shape, recipe.model, recipe.seed)
    windows = _first(windows, MOST_BYTES, lambda window: window.tokens.nbytes)
    forecast = None
    if recipe.model.forecast is not None:
        windows = list(windows)
        forecast = _fit_forecast(windows, recipe.model)
        windows = [
            window._replace(forecast=expected)
            for window, expected in zip(windows, forecast.expected, strict=True)
        ]
    enough = _first(windows, ENOUGH_TOKENS, lambda window: window.tokens[1:, :, 0].size)
    fitted = fit_prior(enough, (rows // patch, columns // patch))
    first, later = fitted.left_over
    log.info(
        "linear prior: fitted on %d windows of %d clips; in clips left out it leaves over %.1f %% "
        "of the variance of latent frame 1 and %.1f %% of that of later ones",
        fitted.windows,
        fitted.clips,
        100 * first,
        100 * later,
    )
    if min(first, later) > MUCH_LEFT_OVER:
        log.warning(
            "linear prior: in these clips the frame before says little about the next one: they "
            "are too few, or move too far from frame to frame (see data.fps)"
        )
    if forecast is None:
        return fitted.params
    return {**fitted.params, "forecast": forecast.params}


def _first(windows: Iterable[Window], most: int, size: Callable[[Window], int]) -> Iterator[Window]:
    """The first windows, until they are of the size `most` together."""
    total = 0
    for number, window in enumerate(windows):
        if total >= most and number >= LEAST_WINDOWS:
            return
        total += size(window)
        yield window


def _fit_forecast(windows: Sequence[Window], config: ModelConfig) -> ForecastFit:
    tokens = np.stack([window.tokens for window in windows])
    text = np.stack([window.text for window in windows])
    fitted = fit_forecast(tokens, text, [window.clip for window in windows], config)
    log.info(
        "linear forecast: fitted on %d windows; in clips left out it leaves over %.1f %% of the "
        "change after the first frame",
        len(windows),
        100 * fitted.left_over,
    )
    return fitted
