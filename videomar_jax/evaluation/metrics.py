"""PSNR and SSIM of clips, the copy-first baseline, and the table of metrics that reports use.

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

Every frame passed in counts. Leave out conditioning frames first (`video[:, 1:]`): they come back
nearly unchanged and flatter a model. A plain copy of the first frame scores well on slow clips, so
report `copy_first` beside the model.

To add a metric of this kind, write its function and a row of `METRICS`.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from videomar_jax.checks import UserError
from videomar_jax.types import Float, UInt8

Clips: TypeAlias = UInt8[np.ndarray, "N F Hp Wp 3"]
"""A batch of RGB clips in memory, 0..255."""

MAX_PSNR = 100.0
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


def copy_first(reference: Clips) -> Clips:
    """The baseline without motion: each clip's first frame repeated over its length."""
    check_clips(reference, "reference")
    return np.repeat(reference[:, :1], reference.shape[1], axis=1)


# The table


class Score(NamedTuple):
    """What a number in a report means.

    unit: such as "dB"; "" for a plain number.
    better: which way is better.
    description: one line.
    """

    unit: str
    better: Literal["higher", "lower"]
    description: str


class Metric(NamedTuple):
    """A score that compares generated clips with true ones; fields beside `function` as in
    `Score`.

    function: (video [N, F, Hp, Wp, 3], reference of the same shape) → one value for each clip.
    """

    function: Callable[[np.ndarray, np.ndarray], np.ndarray]
    unit: str
    better: Literal["higher", "lower"]
    description: str


METRICS: dict[str, Metric] = {
    "psnr": Metric(psnr, "dB", "higher", "peak signal-to-noise ratio, mean over frames"),
    "ssim": Metric(ssim, "", "higher", "structural similarity, mean over frames; 1 is equal"),
}
"""What every report compares, by name; `evaluation.report` adds two baselines to each."""


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


def _frame_psnr(x: np.ndarray, y: np.ndarray) -> float:
    mse = float(np.mean((x - y) ** 2))
    return MAX_PSNR if mse == 0 else min(MAX_PSNR, float(10 * np.log10(_PEAK**2 / mse)))


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
