"""Scores of generated clips against true ones, and the table of them that reports use.

    PSNR  = 10 log10(255^2 / MSE), with the MSE over the pixels and channels of one frame. A clip's
            PSNR is the mean of its frames' PSNR, not the PSNR of its mean error, so that one
            perfect frame cannot hide a broken one behind a sum of squares, nor the reverse. Values
            are capped at 100 dB, which is what identical frames get.
    SSIM  = mean over windows and colour channels of
                (2 mu_x mu_y + C1) (2 s_xy + C2) / ((mu_x^2 + mu_y^2 + C1) (s_x^2 + s_y^2 + C2)),
            Wang et al., "Image quality assessment" (2004): Gaussian windows of 11 x 11 with sigma
            1.5 and weights that sum to one, only where they lie wholly inside the frame;
            C1 = (0.01 * 255)^2, C2 = (0.03 * 255)^2. Frames with a side under 11 pixels use the
            largest odd window that fits, with the same sigma, so that their values are comparable
            among themselves only.
    changed pixels
            are those of which some channel differs from the last given frame by more than 10 grey
            levels: where something happens. Their PSNR has the squared error of all of them, over
            all clips, in one mean. On slow footage it tells what the PSNR of whole frames hides:
            whether the moving part is there.
    motion  = mean |x_t - x_t-1| of the video over that of the truth, from the last given frame on.
            0 is a still picture, 1 as much motion as in the truth.
    first step
            is the motion from the last given frame to the first new one alone. A model that does
            not take up the given picture jumps here (far above 1) and may then move as it should.
    drift   What slips away slowly hardly shows in PSNR. Mean drift is |mean(x_t) - mean(truth_t)|
            of each colour channel, averaged over channels and frames, and contrast drift the same
            of their standard deviations, both in grey levels. Video and truth begin with the same
            given frame, so this is what the video has become and the truth has not: paler, darker,
            of another colour.
    given frames
            should come back as they were given. Their PSNR is the mean over frames; videos of this
            package hold them untouched, which makes 100 dB, those of others may have been through
            a tokenizer.

Every frame passed to a function counts. Leave out conditioning frames first (`video[:, 1:]`): they
come back nearly unchanged and flatter a model. The rows of the table do so themselves. A plain copy
of the last given frame scores well on slow clips, so report it beside the model (`baselines`).

To add a metric, write its function and a row of `METRICS`: a `Metric` gives each clip its value,
and the score of a set of clips is their mean. A `PooledMetric` gives each clip a sum and a weight,
and the score is the quotient of their totals. A `GivenMetric` is a `Metric` of the given frames.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from videomar_jax.checks import UserError
from videomar_jax.types import Bool, Float, UInt8

Clips: TypeAlias = UInt8[np.ndarray, "N F Hp Wp 3"]
"""A batch of RGB clips in memory, 0..255."""
LastFrames: TypeAlias = UInt8[np.ndarray, "N 1 Hp Wp 3"]
"""The last given frame of each clip."""

MAX_PSNR = 100.0
CHANGED = 10
"""Grey levels of 255; a pixel that differs by more from the last given frame has changed."""
_PEAK = 255.0
_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = (0.01 * _PEAK) ** 2, (0.03 * _PEAK) ** 2


def psnr(video: Clips, reference: Clips) -> Float[np.ndarray, " N"]:
    """PSNR of each clip in dB: the mean over its frames of `psnr_per_frame`."""
    return psnr_per_frame(video, reference).mean(axis=1)


def psnr_per_frame(video: Clips, reference: Clips) -> Float[np.ndarray, "N F"]:
    """PSNR of each frame in dB, at most `MAX_PSNR`.

    Raises:
        UserError: the clips cannot be compared.
    """
    _check_pair(video, reference)
    return _per_frame(_frame_psnr, video, reference)


def ssim(video: Clips, reference: Clips) -> Float[np.ndarray, " N"]:
    """SSIM of each clip, at most 1: the mean over its frames of `ssim_per_frame`."""
    return ssim_per_frame(video, reference).mean(axis=1)


def ssim_per_frame(video: Clips, reference: Clips) -> Float[np.ndarray, "N F"]:
    """SSIM of each frame, averaged over the colour channels.

    Raises:
        UserError: the clips cannot be compared.
    """
    _check_pair(video, reference)
    return _per_frame(_frame_ssim, video, reference)


def changed_pixels(reference: Clips, last: LastFrames) -> Bool[np.ndarray, "N F Hp Wp"]:
    """Where the truth differs visibly from the last given frame: some channel by more than
    `CHANGED` grey levels."""
    changed = np.empty(reference.shape[:4], bool)
    for index in np.ndindex(*reference.shape[:2]):
        difference = np.abs(reference[index].astype(np.int16) - last[index[0], 0])
        changed[index] = difference.max(axis=-1) > CHANGED
    return changed


def changed_error(video: Clips, reference: Clips, last: LastFrames) -> "Tally":
    """The sum of the squared errors at the changed pixels of each clip, and their values."""
    _check_pair(video, reference)
    changed = changed_pixels(reference, last)
    total = np.zeros(len(video))
    for number, frame in np.ndindex(*video.shape[:2]):
        where = changed[number, frame]
        error = video[number, frame][where].astype(np.int64) - reference[number, frame][where]
        total[number] += np.sum(error**2)
    values = changed.sum(axis=(1, 2, 3)) * reference.shape[-1]
    return Tally(total, values.astype(np.float64))


def motion(video: Clips, reference: Clips, last: LastFrames) -> "Tally":
    """The mean absolute difference between neighbouring frames of each clip, and the truth's."""
    _check_pair(video, reference)
    return Tally(_frame_difference(video, last), _frame_difference(reference, last))


def first_step(video: Clips, reference: Clips, last: LastFrames) -> "Tally":
    """As `motion`, from the last given frame to the first new one."""
    return motion(video[:, :1], reference[:, :1], last)


def mean_drift(video: Clips, reference: Clips) -> Float[np.ndarray, " N"]:
    """How far the means of each clip's frames are from the truth's, in grey levels."""
    return _drift(video, reference, np.mean)


def contrast_drift(video: Clips, reference: Clips) -> Float[np.ndarray, " N"]:
    """How far the standard deviations of each clip's frames are from the truth's, in grey
    levels."""
    return _drift(video, reference, np.std)


def copy_first(reference: Clips) -> Clips:
    """The baseline without motion: each clip's first frame repeated over its length."""
    check_clips(reference, "reference")
    return np.repeat(reference[:, :1], reference.shape[1], axis=1)


# The table

Better = Literal["higher", "lower", "near 1"]


class Score(NamedTuple):
    """What a number in a report means.

    unit: such as "dB"; "" for a plain number.
    better: which way is better.
    description: one line.
    """

    unit: str
    better: Better
    description: str


class Tally(NamedTuple):
    """What each clip adds to a score: of any set of clips it is a function of
    sum(amount) / sum(weight)."""

    amount: Float[np.ndarray, " N"]
    weight: Float[np.ndarray, " N"]


class Metric(NamedTuple):
    """A score that compares generated clips with true ones, and is the mean over clips; fields
    beside `function` as in `Score`.

    function: (video [N, F, Hp, Wp, 3], reference of the same shape) → one value for each clip.
    """

    function: Callable[[np.ndarray, np.ndarray], np.ndarray]
    unit: str
    better: Better
    description: str

    def tally(self, video: Clips, reference: Clips, given: int) -> Tally:
        """Of whole clips that were continued from so many frames."""
        values = self.function(video[:, given:], reference[:, given:])
        return Tally(values, np.ones(len(values)))

    def score(self, mean: float) -> float:
        """The score of clips whose tallies have this quotient."""
        return float(mean)


class PooledMetric(NamedTuple):
    """A score of a set of clips as a whole; fields beside the first two as in `Score`.

    function: (video, reference, `LastFrames`) → what each clip adds.
    finish: the quotient of the totals → the score.
    """

    function: Callable[[np.ndarray, np.ndarray, np.ndarray], Tally]
    finish: Callable[[float], float]
    unit: str
    better: Better
    description: str

    def tally(self, video: Clips, reference: Clips, given: int) -> Tally:
        """As `Metric.tally`."""
        last = reference[:, given - 1 : given]
        return self.function(video[:, given:], reference[:, given:], last)

    def score(self, mean: float) -> float:
        """As `Metric.score`."""
        return float(self.finish(mean))


class GivenMetric(NamedTuple):
    """A score of the frames that clips are continued from; fields as in `Metric`."""

    function: Callable[[np.ndarray, np.ndarray], np.ndarray]
    unit: str
    better: Better
    description: str

    def tally(self, video: Clips, reference: Clips, given: int) -> Tally:
        """As `Metric.tally`."""
        values = self.function(video[:, :given], reference[:, :given])
        return Tally(values, np.ones(len(values)))

    def score(self, mean: float) -> float:
        """As `Metric.score`."""
        return float(mean)


def decibels(mse: float) -> float:
    """The PSNR of a mean squared error, at most `MAX_PSNR`."""
    return MAX_PSNR if mse == 0 else min(MAX_PSNR, float(10 * np.log10(_PEAK**2 / mse)))


AnyMetric: TypeAlias = Metric | PooledMetric | GivenMetric
"""A row of the table."""

METRICS: dict[str, AnyMetric] = {
    "psnr": Metric(psnr, "dB", "higher", "peak signal-to-noise ratio, mean over frames"),
    "ssim": Metric(ssim, "", "higher", "structural similarity, mean over frames; 1 is equal"),
    "changed_psnr": PooledMetric(
        changed_error,
        decibels,
        "dB",
        "higher",
        f"PSNR over the pixels that differ from the last given frame by more than {CHANGED} grey "
        "levels: the moving part",
    ),
    "motion": PooledMetric(
        motion,
        float,
        "",
        "near 1",
        "mean absolute difference between neighbouring frames over the truth's; 0 is still",
    ),
    "first_step": PooledMetric(
        first_step,
        float,
        "",
        "near 1",
        "the same from the last given frame to the first new one; far above 1 is a jump",
    ),
    "mean_drift": Metric(
        mean_drift,
        "grey levels",
        "lower",
        "distance of the mean of each channel and frame from the truth's",
    ),
    "contrast_drift": Metric(
        contrast_drift,
        "grey levels",
        "lower",
        "distance of the standard deviation of each channel and frame from the truth's",
    ),
    "given_psnr": GivenMetric(
        psnr,
        "dB",
        "higher",
        f"PSNR of the given frames in the video; {MAX_PSNR:.0f} is untouched",
    ),
}
"""What every report compares, by name; `evaluation.report` adds the baselines to each."""

NETWORK_SCORES: dict[str, Score] = {
    "lpips": Score(
        "",
        "lower",
        "LPIPS, how different the frames look to a network, mean over frames; 0 is equal",
    ),
    "fvd": Score("", "lower", "Fréchet video distance of all clips together; 0 is equal"),
}
"""Scores that need the weights of a network (`lpips`, `fvd`)."""


# Checks


def check_clips(clips: np.ndarray, name: str) -> None:
    """Raises a UserError unless `clips` is a uint8 batch [N, F, Hp, Wp, 3] with at least one frame
    and pixel."""
    if clips.ndim != 5 or clips.shape[-1] != 3 or 0 in clips.shape[1:]:
        raise UserError(
            f"{name} must be [N, F, Hp, Wp, 3] with F, Hp, Wp at least 1, got shape {clips.shape}."
        )
    if clips.dtype != np.uint8:
        raise UserError(
            f"{name} must be uint8 in 0..255, got {clips.dtype}; scale and round floats first."
        )


def check_same_shape(video: np.ndarray, reference: np.ndarray) -> None:
    """Raises a UserError unless the two have one shape."""
    if video.shape != reference.shape:
        raise UserError(
            f"video {video.shape} and reference {reference.shape} must have the same shape."
        )


def _check_pair(video: np.ndarray, reference: np.ndarray) -> None:
    check_clips(video, "video")
    check_clips(reference, "reference")
    check_same_shape(video, reference)


# Single frames, in float64


def _per_frame(
    score: Callable[[np.ndarray, np.ndarray], float], video: Clips, reference: Clips
) -> Float[np.ndarray, "N F"]:
    # One frame at a time: float64 copies of a whole batch of large clips would not fit in memory.
    scores = np.empty(video.shape[:2], np.float64)
    for index in np.ndindex(*scores.shape):
        scores[index] = score(video[index].astype(np.float64), reference[index].astype(np.float64))
    return scores


def _frame_difference(video: Clips, last: LastFrames) -> Float[np.ndarray, " N"]:
    """The mean over pixels, channels and frames of |x_t - x_t-1|, beginning with the first new
    frame."""
    total = np.zeros(len(video))
    for number, frame in np.ndindex(*video.shape[:2]):
        before = video[number, frame - 1] if frame else last[number, 0]
        total[number] += np.mean(np.abs(video[number, frame].astype(np.int16) - before))
    return total / video.shape[1]


def _drift(
    video: Clips, reference: Clips, statistic: Callable[..., np.ndarray]
) -> Float[np.ndarray, " N"]:
    """The mean over frames and channels of |statistic(x_t) - statistic(truth_t)|, taken over
    pixels."""
    _check_pair(video, reference)

    def difference(x: np.ndarray, y: np.ndarray) -> float:
        return float(np.abs(statistic(x, axis=(0, 1)) - statistic(y, axis=(0, 1))).mean())

    return _per_frame(difference, video, reference).mean(axis=1)


def _frame_psnr(x: np.ndarray, y: np.ndarray) -> float:
    return decibels(float(np.mean((x - y) ** 2)))


def _frame_ssim(x: np.ndarray, y: np.ndarray) -> float:
    largest = min(x.shape[:2])
    window = _gaussian(min(_WINDOW, largest - 1 + largest % 2))
    mean_x, mean_y = _filter(x, window), _filter(y, window)
    # The two variances enter only as their sum, so that one map serves for both.
    power, product = _filter(x * x + y * y, window), _filter(x * y, window)
    luminance = (2 * mean_x * mean_y + _C1) / (mean_x**2 + mean_y**2 + _C1)
    covariance = product - mean_x * mean_y
    variances = power - mean_x**2 - mean_y**2
    return float(np.mean(luminance * (2 * covariance + _C2) / (variances + _C2)))


def _gaussian(size: int) -> np.ndarray:
    """`size` weights around the middle, which sum to one."""
    offsets = np.arange(size) - size // 2
    weights = np.exp(-0.5 * (offsets / _SIGMA) ** 2)
    return weights / weights.sum()


def _filter(image: np.ndarray, window: np.ndarray) -> np.ndarray:
    """[Hp, Wp, 3] filtered over rows, then columns, with windows inside the image only."""
    rows = image.shape[0] - window.size + 1
    columns = image.shape[1] - window.size + 1
    over_rows = sum(weight * image[i : i + rows] for i, weight in enumerate(window))
    return sum(weight * over_rows[:, i : i + columns] for i, weight in enumerate(window))
