"""Does the object move as its caption says? For clips of one coloured object over a uniform ground.

    contrast  of a pixel: max over channels of |value - background| in 0..1, less `threshold` and
              cut at zero. Sampling noise and ringing below the threshold weigh nothing, and what
              exceeds it weighs only its excess.
    mass      of a frame: the sum of its pixels' contrast.
    centroid  the contrast-weighted mean position (y, x) in pixels; the centre of the top left pixel
              is (0, 0).
    found     a frame shows an object if its mass is at least one pixel of contrast 1 and its spread
              (the weighted rms distance from the centroid) stays under 0.85 of that of a uniformly
              filled canvas. Blank frames fail the first; frames of noise and frames of another
              brightness fail the second.

Failure is a number, never a NaN that a mean would drop: where no object is found the centroid is
the centre of the canvas, the direction "none", the centroid error the diagonal of the canvas, and
the object counts as absent.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from videomar_jax.checks import UserError
from videomar_jax.evaluation.metrics import Clips, Score, check_clips, check_same_shape
from videomar_jax.types import Bool, Float

DIRECTIONS = ("left", "right", "up", "down")
BACKGROUND = 0.08
"""Brightness, in 0..1, behind the package's captioned moving shapes."""
THRESHOLD = 0.2
"""Contrast that still counts as background: about four standard deviations of the error of a 26 dB
sample."""

_MIN_MASS = 1.0
_MAX_SPREAD = 0.85
_PRESENT = (0.6, 1.5)

SCORES: dict[str, Score] = {
    "direction_accuracy": Score(
        "", "higher", "share of the clips that go the way their caption says"
    ),
    "centroid_error": Score(
        "px", "lower", "mean distance of the object from where the truth has it"
    ),
    "centroid_error_last": Score("px", "lower", "the same in the last frame"),
    "object_present": Score(
        "", "higher", "share of the clips whose last frame still shows the object"
    ),
}
"""What `movement` gives, by name."""


def movement(generated: Clips, reference: Clips, directions: Sequence[str]) -> dict[str, float]:
    """`SCORES` of generated clips, over all frames but the first, which is given.

    Args:
        directions: where each clip's object should go, one of `DIRECTIONS`.
    """
    error = centroid_error(generated, reference)[:, 1:]
    return {
        "direction_accuracy": direction_accuracy(generated, directions),
        "centroid_error": float(error.mean()),
        "centroid_error_last": float(error[:, -1].mean()),
        "object_present": float(object_present(generated, reference).mean()),
    }


def object_mass(
    video: Clips, background: float | int = BACKGROUND, *, threshold: float | int = THRESHOLD
) -> Float[np.ndarray, "N F"]:
    """How much object each frame shows, in pixels of contrast 1."""
    return _measure(video, background, threshold).mass


def centroids(
    video: Clips, background: float | int = BACKGROUND, *, threshold: float | int = THRESHOLD
) -> Float[np.ndarray, "N F 2"]:
    """Position (y, x) of the object in pixels; the canvas centre where `object_found` is False."""
    return _measure(video, background, threshold).centroid


def object_found(
    video: Clips, background: float | int = BACKGROUND, *, threshold: float | int = THRESHOLD
) -> Bool[np.ndarray, "N F"]:
    """True for the frames that show one compact object, as the module's docstring defines it."""
    return _measure(video, background, threshold).found


def directions(
    video: Clips,
    background: float | int = BACKGROUND,
    *,
    min_shift: float | int = 2.0,
    threshold: float | int = THRESHOLD,
) -> list[str]:
    """The way each object went from its clip's first frame to the last: of `DIRECTIONS`, or "none".

    It is the axis of the larger centroid shift with its sign ("down" is larger y), if that shift
    exceeds `min_shift` pixels and the object is found in both frames.

    Raises:
        UserError: clips of a single frame.
    """
    check_clips(video, "video")
    if video.shape[1] < 2:
        raise UserError(f"A direction needs clips of at least 2 frames, got shape {video.shape}.")
    ends = _measure(video[:, [0, -1]], background, threshold)
    shifts = ends.centroid[:, 1] - ends.centroid[:, 0]
    found_in_both = ends.found[:, 0] & ends.found[:, 1]
    return [
        _direction(dy, dx, min_shift) if found else "none"
        for (dy, dx), found in zip(shifts, found_in_both, strict=True)
    ]


def direction_accuracy(
    video: Clips,
    wanted: Sequence[str],
    background: float | int = BACKGROUND,
    *,
    min_shift: float | int = 2.0,
    threshold: float | int = THRESHOLD,
) -> float:
    """Share of the clips, 0..1, that go the `wanted` way.

    Raises:
        UserError: `wanted` is not one of `DIRECTIONS` for each clip.
    """
    if len(wanted) != len(video) or not len(wanted):
        raise UserError(
            f"wanted must name a direction for each clip, got {len(wanted)} for {len(video)} clips."
        )
    unknown = sorted(set(wanted) - set(DIRECTIONS))
    if unknown:
        raise UserError(f"wanted must hold {', '.join(DIRECTIONS)} only, got {unknown}.")
    seen = directions(video, background, min_shift=min_shift, threshold=threshold)
    return float(np.mean([a == b for a, b in zip(seen, wanted, strict=True)]))


def centroid_error(
    video: Clips,
    reference: Clips,
    background: float | int = BACKGROUND,
    *,
    threshold: float | int = THRESHOLD,
) -> Float[np.ndarray, "N F"]:
    """Distance in pixels between the object and the reference's; the canvas diagonal where the
    video shows none.

    Raises:
        UserError: a frame of the reference shows no object, so `background` is not its own.
    """
    measured = _measure(video, background, threshold)
    truth = _measure_truth(video, reference, background, threshold)
    distance = np.linalg.norm(measured.centroid - truth.centroid, axis=-1)
    return np.where(measured.found, distance, np.hypot(*video.shape[2:4]))


def object_present(
    video: Clips,
    reference: Clips,
    background: float | int = BACKGROUND,
    *,
    threshold: float | int = THRESHOLD,
) -> Bool[np.ndarray, " N"]:
    """True where the last frame shows an object of 0.6 to 1.5 times the mass of the reference's
    last frame. Errors as `centroid_error`."""
    check_clips(video, "video")
    measured = _measure(video[:, -1:], background, threshold)
    truth = _measure_truth(video, reference, background, threshold, frames=slice(-1, None))
    ratio = measured.mass[:, 0] / truth.mass[:, 0]
    low, high = _PRESENT
    return measured.found[:, 0] & (ratio >= low) & (ratio <= high)


def direction_of(caption: str) -> str:
    """The direction that a caption ends with: "a red circle moves left" gives "left".

    Raises:
        UserError: it ends with none.
    """
    words = caption.lower().rstrip(" .!\n").split()
    if not words or words[-1] not in DIRECTIONS:
        raise UserError(
            f"The caption {caption!r} does not end with one of: {', '.join(DIRECTIONS)}."
        )
    return words[-1]


class _Measured(NamedTuple):
    """Of each frame: see the module's docstring. All values are finite."""

    mass: Float[np.ndarray, "N F"]
    centroid: Float[np.ndarray, "N F 2"]
    found: Bool[np.ndarray, "N F"]


def _direction(dy: float, dx: float, min_shift: float | int) -> str:
    if max(abs(dy), abs(dx)) <= min_shift:
        return "none"
    if abs(dx) >= abs(dy):
        return "right" if dx > 0 else "left"
    return "down" if dy > 0 else "up"


def _measure_truth(
    video: np.ndarray,
    reference: np.ndarray,
    background: float | int,
    threshold: float | int,
    frames: slice = slice(None),
) -> _Measured:
    """The reference's frames, all of which must show an object."""
    check_same_shape(video, reference)
    measured = _measure(reference[:, frames], background, threshold)
    if not measured.found.all():
        clip = np.argwhere(~measured.found)[0, 0]
        raise UserError(
            f"The reference's clip {clip} has a frame without one compact object over background "
            f"{background}: pass the background of these clips (0..1), or leave clips of another "
            "kind out."
        )
    return measured


def _measure(video: np.ndarray, background: float | int, threshold: float | int) -> _Measured:
    check_clips(video, "video")
    if not 0 <= background <= 1 or not 0 <= threshold < 1:
        raise UserError(
            f"background and threshold are brightnesses in 0..1, got {background} and {threshold}."
        )
    frames, canvas = video.shape[:2], video.shape[2:4]
    centre = (np.array(canvas) - 1) / 2
    mass = np.empty(frames)
    centroid = np.empty((*frames, 2))
    spread = np.empty(frames)
    for index in np.ndindex(*frames):
        contrast = _contrast(video[index], background, threshold)
        mass[index], centroid[index], spread[index] = _moments(contrast, centre)
    # A filled row of n pixels has variance (n^2 - 1) / 12.
    filled = np.sqrt(sum(side**2 - 1 for side in canvas) / 12)
    found = (mass >= _MIN_MASS) & (spread < _MAX_SPREAD * filled)
    return _Measured(mass, np.where(found[..., None], centroid, centre), found)


def _contrast(frame: np.ndarray, background: float | int, threshold: float | int) -> np.ndarray:
    difference = np.abs(frame / 255.0 - background).max(axis=-1)
    return np.maximum(difference - threshold, 0.0)


def _moments(weights: np.ndarray, centre: np.ndarray) -> tuple[float, np.ndarray, float]:
    """Sum, mean position and rms distance from it of a weighted frame [Hp, Wp].

    An empty frame has its position at the centre.
    """
    mass = weights.sum()
    if mass == 0:
        return 0.0, centre, 0.0
    position, variance = np.empty(2), []
    for axis in (0, 1):
        marginal = weights.sum(axis=1 - axis) / mass
        places = np.arange(marginal.size)
        position[axis] = places @ marginal
        variance.append((places - position[axis]) ** 2 @ marginal)
    return mass, position, np.sqrt(sum(variance))
