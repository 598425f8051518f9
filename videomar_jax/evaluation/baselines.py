"""What a trained model has to beat: repeating the last given frame, and ridge regression.

The linear predictor comes in two kinds, both fitted in closed form on windows of the training
clips. Y is the change of the coming frames against the last given one, X what is known:

    appearance   for footage in which things keep their place, such as a face.
                 X: leading principal components of the last given frame, the words of the caption,
                 and the products of both. Y: the change of the whole picture, in its own leading
                 principal components.
    local        for footage in which things move through the picture.
                 X: a region of 16 x 16 pixels in the last three given frames, less its mean.
                 Y: the change of the 4 x 4 pixels in its middle. Colours are treated alike.

    W = (X'X + strength tr(X'X)/n I)^-1 X'Y,   n the columns of X                             (1)

Only X'X and X'Y are kept of the windows, so memory does not grow with their number. Of both kinds
(and some strengths), the one that predicts windows of training clips left out of (1) best, in PSNR,
is the linear predictor; its weights are then fitted on these too.

A model that does not beat it has not learnt the footage. It predicts a mean: where the future is
open, a perfect sample has about 3 dB less PSNR than the mean of all futures, so compare at
temperature 0.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from videomar_jax.checks import UserError
from videomar_jax.evaluation.least_squares import principal_components, ridge_regression
from videomar_jax.evaluation.metrics import Clips, psnr
from videomar_jax.types import Float, UInt8

KINDS = ("appearance", "local")

# Of the appearance predictor. More components no longer help on the speaker footage it was made
# for; its frames are reduced to about 64 x 64 pixels, which holds what a linear map can foresee.
_PARTS, _CROSSED, _CHANGES = 128, 32, 256
_WORDS = 64
_PIXELS = 64 * 64
_SAMPLE_BYTES, _SAMPLE = 2**25, 1000

# Of the local predictor.
_BLOCK, _MARGIN, _FRAMES = 4, 6, 3
_ROWS = 100_000
"""Blocks that the local predictor is fitted on, about 130 for each of its inputs."""
_ROWS_AT_A_TIME = 8192

_CANDIDATES = (("local", 1e-4), ("appearance", 0.05), ("appearance", 0.2), ("appearance", 1.0))
"""(kind, strength); without windows to choose by, the first. The weak one suits some 5000 windows
of 1800 inputs, the strong one a few hundred; the local kind always has many more blocks than
inputs, and its strength hardly matters."""


class Windows(NamedTuple):
    """Clips of one shape with their captions."""

    video: UInt8[np.ndarray, "N F Hp Wp 3"]
    captions: Sequence[str]


def repeat_last(
    given: UInt8[np.ndarray, "N G Hp Wp 3"],
    prompts: Sequence[str],
    num_frames: int,
    seeds: Sequence[int] | None = None,
) -> Clips:
    """Continues clips by repeating the last given frame, as a model is called."""
    new = np.repeat(given[:, -1:], num_frames - given.shape[1], axis=1)
    return np.concatenate([given, new], axis=1)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LinearPredictor:
    """Ridge regression fitted on training windows; called as a model is."""

    kind: str
    """Of `KINDS`."""
    given: int
    """Frames that it continues from."""
    windows: int
    """Training windows that it is fitted on."""
    left_out: dict[str, float]
    """PSNR of each kind, and of "copy", on the windows that decided; {} if none could be left
    out."""
    fitted: "_Appearance | _Local"

    def __call__(
        self,
        given: UInt8[np.ndarray, "N G Hp Wp 3"],
        prompts: Sequence[str],
        num_frames: int,
        seeds: Sequence[int] | None = None,
    ) -> Clips:
        """Continues clips of the shape that it was fitted on, with the captions `prompts`.

        Raises:
            UserError: another number of frames.
        """
        expected = (self.given, self.given + self.fitted.new_frames)
        if (given.shape[1], num_frames) != expected:
            raise UserError(
                f"This linear predictor goes from {expected[0]} to {expected[1]} frames, not from "
                f"{given.shape[1]} to {num_frames}."
            )
        clips = repeat_last(given, prompts, num_frames)
        for number, prompt in enumerate(prompts):
            change = self.fitted.change(given[number], prompt)
            predicted = np.round(clips[number, self.given :] + change)
            clips[number, self.given :] = np.clip(predicted, 0, 255).astype(np.uint8)
        return clips


def fit_linear(
    windows: Iterable[Windows], left_out: Sequence[Windows], given: Sequence[int], count: int
) -> dict[int, LinearPredictor]:
    """The linear predictor for each number of given frames.

    Args:
        windows: training windows, in batches; they are read once.
        left_out: windows of other training clips, which choose the kind. Without them it is
            "local".
        given: each below the frames of a window.
        count: how many windows there are, about.
    """
    fits: dict[int, dict[str, _AppearanceFit | _LocalFit]] = {
        frames: {"local": _LocalFit(frames, count), "appearance": _AppearanceFit(frames)}
        for frames in given
    }
    total = 0
    for batch in windows:
        total += len(batch.video)
        for kinds in fits.values():
            for fit in kinds.values():
                fit.add(batch)
    if not total:
        raise UserError("There are no training windows to fit the linear predictor on.")
    return {frames: _best(kinds, frames, left_out, total) for frames, kinds in fits.items()}


def _best(
    fits: "dict[str, _AppearanceFit | _LocalFit]",
    given: int,
    left_out: Sequence[Windows],
    windows: int,
) -> LinearPredictor:
    """The candidate that predicts `left_out` best, fitted on these as well."""
    scores: dict[str, float] = {}
    chosen, chosen_strength = _CANDIDATES[0]
    if left_out:
        scores["copy"] = _mean_psnr(repeat_last, left_out, given)
    for kind, strength in _CANDIDATES if left_out else ():
        fitted = fits[kind].solve(strength)
        trial = LinearPredictor(kind=kind, given=given, windows=windows, left_out={}, fitted=fitted)
        value = _mean_psnr(trial, left_out, given)
        if value > max((scores[name] for name in KINDS if name in scores), default=-np.inf):
            chosen, chosen_strength = kind, strength
        scores[kind] = max(value, scores.get(kind, -np.inf))
    for batch in left_out:
        fits[chosen].add(batch)
    return LinearPredictor(
        kind=chosen,
        given=given,
        windows=windows + sum(len(batch.video) for batch in left_out),
        left_out=scores,
        fitted=fits[chosen].solve(chosen_strength),
    )


def _mean_psnr(
    predict: Callable[[np.ndarray, Sequence[str], int], np.ndarray],
    batches: Sequence[Windows],
    given: int,
) -> float:
    values = []
    for video, captions in batches:
        made = predict(video[:, :given], captions, video.shape[1])
        values.append(psnr(made[:, given:], video[:, given:]))
    return float(np.concatenate(values).mean())


class _Ridge:
    """The sums of equation (1)."""

    def __init__(self):
        self._square: np.ndarray | None = None
        self._product: np.ndarray | None = None

    def add(self, inputs: np.ndarray, targets: np.ndarray) -> None:
        """Rows of X and of Y."""
        square, product = inputs.T @ inputs, inputs.T @ targets
        if self._square is None or self._product is None:
            self._square, self._product = square.astype(np.float64), product.astype(np.float64)
        else:
            self._square += square
            self._product += product

    def solve(self, strength: float) -> np.ndarray:
        """W as float32; 0 where all inputs were."""
        assert self._square is not None and self._product is not None
        return ridge_regression(self._square, self._product, strength).astype(np.float32)


# Local


@dataclasses.dataclass(frozen=True)
class _Local:
    """See the module's text. weights: [16 * 16 * back, new frames * 4 * 4]."""

    weights: np.ndarray
    new_frames: int

    def change(self, given: np.ndarray, caption: str) -> Float[np.ndarray, "F Hp Wp 3"]:
        """The change against the last of the frames given [G, Hp, Wp, 3]."""
        height, width = given.shape[1:3]
        regions = _regions(given)
        rows, columns = regions.shape[:2]
        change = np.empty((self.new_frames, rows, _BLOCK, columns, _BLOCK, 3), np.float32)
        step = max(1, _ROWS_AT_A_TIME // (3 * columns))
        for top in range(0, rows, step):
            inputs = _centred(regions[top : top + step])
            made = (inputs @ self.weights).reshape(-1, columns, 3, self.new_frames, _BLOCK, _BLOCK)
            change[:, top : top + step] = made.transpose(3, 0, 4, 1, 5, 2)
        whole = change.reshape(self.new_frames, rows * _BLOCK, columns * _BLOCK, 3)
        return whole[:, :height, :width]


class _LocalFit:
    """Accumulates windows for a `_Local`.

    Where there are more blocks than needed, each window gives some of its own, drawn at random.
    """

    def __init__(self, given: int, count: int):
        self._given = given
        self._ridge = _Ridge()
        self._blocks_per_window = max(1, _ROWS // (3 * max(count, 1)))
        self._random = np.random.default_rng(0)
        self._new_frames = 0

    def add(self, windows: Windows) -> None:
        for clip in windows.video:
            self._new_frames = len(clip) - self._given
            regions = _regions(clip[: self._given])
            blocks = _blocks(_changes(clip, self._given))
            count = regions.shape[0] * regions.shape[1]
            chosen = np.arange(count)
            if count > self._blocks_per_window:
                chosen = self._random.choice(count, self._blocks_per_window, replace=False)
            for start in range(0, len(chosen), _ROWS_AT_A_TIME // 3):
                places = np.divmod(chosen[start : start + _ROWS_AT_A_TIME // 3], regions.shape[1])
                targets = blocks[places].reshape(3 * len(places[0]), -1)
                self._ridge.add(_centred(regions[places]), targets)

    def solve(self, strength: float) -> _Local:
        return _Local(self._ridge.solve(strength), self._new_frames)


def _regions(given: np.ndarray) -> np.ndarray:
    """A view [rows, columns, 3, back, 16, 16] of the region around each block of a clip."""
    frames = given[-_FRAMES:]
    below, right = -frames.shape[1] % _BLOCK, -frames.shape[2] % _BLOCK
    margins = ((0, 0), (_MARGIN, _MARGIN + below), (_MARGIN, _MARGIN + right), (0, 0))
    padded = np.pad(frames, margins, mode="edge").astype(np.float32)
    side = _BLOCK + 2 * _MARGIN
    windows = np.lib.stride_tricks.sliding_window_view(padded, (side, side), axis=(1, 2))
    # [back, rows, columns, 3, 16, 16], one region for each block.
    return windows[:, ::_BLOCK, ::_BLOCK].transpose(1, 2, 3, 0, 4, 5)


def _centred(regions: np.ndarray) -> np.ndarray:
    """Regions [..., back, 16, 16] as rows, each less its mean."""
    back = regions.shape[-3]
    flat = regions.reshape(-1, back * (_BLOCK + 2 * _MARGIN) ** 2)
    return flat - flat.mean(axis=1, keepdims=True)


def _blocks(changes: np.ndarray) -> np.ndarray:
    """[F, Hp, Wp, 3] as [rows, columns, 3, F, 4, 4], the last rows and columns repeated."""
    below, right = -changes.shape[1] % _BLOCK, -changes.shape[2] % _BLOCK
    padded = np.pad(changes, ((0, 0), (0, below), (0, right), (0, 0)), mode="edge")
    frames, height, width, _ = padded.shape
    split = padded.reshape(frames, height // _BLOCK, _BLOCK, width // _BLOCK, _BLOCK, 3)
    return split.transpose(1, 3, 5, 0, 2, 4)


def _changes(clip: np.ndarray, given: int) -> np.ndarray:
    """The new frames less the last given one, in float32."""
    return clip[given:].astype(np.float32) - clip[given - 1]


# Appearance


@dataclasses.dataclass(frozen=True, eq=False)
class _Basis:
    """What frames and captions are described by, found in a sample of the training windows."""

    size: tuple[int, int]
    """Pixel (rows, columns) of the frames."""
    factor: int
    """How much smaller the frames are that components are taken of."""
    mean: np.ndarray
    """Of the last given frame, reduced and flat."""
    parts: np.ndarray
    """Its principal directions as columns, each scaled to unit variance."""
    changes: np.ndarray
    """Principal directions of the change of all new frames, as rows."""
    words: dict[str, int]
    """Words of the captions, by column."""

    def inputs(self, last: np.ndarray, caption: str) -> np.ndarray:
        """A row of X for a last given frame [Hp, Wp, 3] and its caption."""
        z = (_reduced(last[None], self.factor).ravel() - self.mean) @ self.parts
        present = np.zeros(len(self.words), np.float32)
        for word in _words(caption):
            if word in self.words:
                present[self.words[word]] = 1
        crossed = present[:, None] * z[None, :_CROSSED]
        return np.concatenate([np.ones(1, np.float32), z, present, crossed.ravel()])


@dataclasses.dataclass(frozen=True, eq=False)
class _Appearance:
    """See the module's text."""

    basis: _Basis
    weights: np.ndarray
    new_frames: int

    def change(self, given: np.ndarray, caption: str) -> Float[np.ndarray, "F Hp Wp 3"]:
        """The change against the last of the frames given [G, Hp, Wp, 3]."""
        basis = self.basis
        rows, columns = (-(-side // basis.factor) for side in basis.size)
        small = basis.inputs(given[-1], caption) @ self.weights @ basis.changes
        return _enlarged(small.reshape(self.new_frames, rows, columns, 3), basis)


class _AppearanceFit:
    """Accumulates windows for an `_Appearance`: first a sample for its basis, then sums."""

    def __init__(self, given: int):
        self._given = given
        self._ridge = _Ridge()
        self._basis: _Basis | None = None
        self._waiting: list[Windows] = []

    def add(self, windows: Windows) -> None:
        if self._basis is not None:
            self._sum(self._basis, windows)
            return
        self._waiting.append(windows)
        held = sum(len(batch.video) for batch in self._waiting)
        if held >= min(_SAMPLE, _SAMPLE_BYTES // windows.video[0].nbytes):
            self._start()

    def solve(self, strength: float) -> _Appearance:
        basis = self._basis or self._start()
        return _Appearance(basis, self._ridge.solve(strength), self._new_frames)

    def _start(self) -> _Basis:
        """Finds the basis in the windows so far and adds their sums."""
        basis = self._basis = _find_basis(self._waiting, self._given)
        for batch in self._waiting:
            self._sum(basis, batch)
        self._waiting = []
        return basis

    def _sum(self, basis: _Basis, windows: Windows) -> None:
        self._new_frames = windows.video.shape[1] - self._given
        inputs, targets = [], []
        for clip, caption in zip(windows.video, windows.captions, strict=True):
            inputs.append(basis.inputs(clip[self._given - 1], caption))
            change = _reduced(_changes(clip, self._given), basis.factor)
            targets.append(basis.changes @ change.ravel())
        self._ridge.add(np.stack(inputs), np.stack(targets))


def _find_basis(batches: Sequence[Windows], given: int) -> _Basis:
    size = batches[0].video.shape[2:4]
    factor = int(np.ceil(np.sqrt(size[0] * size[1] / _PIXELS)))
    last, changes, words = [], [], Counter[str]()
    for clip, caption in _pairs(batches):
        last.append(_reduced(clip[given - 1 : given], factor).ravel())
        changes.append(_reduced(_changes(clip, given), factor).ravel())
        words.update(set(_words(caption)))
    frames = np.stack(last)
    mean = frames.mean(axis=0)
    directions, scales = principal_components(frames - mean, _PARTS)
    # A word of all captions says nothing.
    telling = [word for word, count in words.most_common() if count < len(frames)][:_WORDS]
    return _Basis(
        size=size,
        factor=factor,
        mean=mean,
        parts=directions / scales,
        changes=principal_components(np.stack(changes), _CHANGES)[0].T,
        words={word: column for column, word in enumerate(telling)},
    )


def _pairs(batches: Sequence[Windows]) -> Iterator[tuple[np.ndarray, str]]:
    for video, captions in batches:
        yield from zip(video, captions, strict=True)


def _words(caption: str) -> list[str]:
    return caption.lower().replace(",", " ").replace(".", " ").split()


def _reduced(frames: np.ndarray, factor: int) -> np.ndarray:
    """[F, Hp, Wp, 3] averaged over squares of factor x factor pixels, in float32."""
    if factor == 1:
        return frames.astype(np.float32)
    below, right = -frames.shape[1] % factor, -frames.shape[2] % factor
    padded = np.pad(frames, ((0, 0), (0, below), (0, right), (0, 0)), mode="edge")
    count, height, width, channels = padded.shape
    split = (count, height // factor, factor, width // factor, factor, channels)
    return padded.reshape(split).mean(axis=(2, 4), dtype=np.float32)


def _enlarged(change: np.ndarray, basis: _Basis) -> np.ndarray:
    """[F, rows, columns, 3] interpolated linearly to the size of the frames."""
    if basis.factor == 1:
        return change
    down = _interpolation(basis.size[0], change.shape[1], basis.factor)
    across = _interpolation(basis.size[1], change.shape[2], basis.factor)
    taller = np.einsum("Hh,fhwc->fHwc", down, change, optimize=True)
    return np.einsum("Ww,fHwc->fHWc", across, taller, optimize=True)


def _interpolation(large: int, small: int, factor: int) -> np.ndarray:
    """The matrix [large, small] that interpolates between the centres of squares."""
    places = np.clip((np.arange(large) + 0.5) / factor - 0.5, 0, small - 1)
    return np.maximum(0, 1 - np.abs(places[:, None] - np.arange(small))).astype(np.float32)
