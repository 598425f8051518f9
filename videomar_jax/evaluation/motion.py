"""Does the object move as its caption says? Measured on clips of one coloured object over a uniform
background.

    contrast  of a pixel: max over channels of |value - background|, in 0..1, less `threshold` and
        cut at zero.
              Sampling noise and ringing under the threshold weigh nothing, and what passes it
              weighs only its excess.
    mass      of a frame: the sum of its pixels' contrast.
    centroid  the contrast-weighted mean position (y, x) in pixels; the centre of the top left pixel
    is (0, 0).
    found     a frame shows an object when its mass is at least one pixel of contrast 1 and its
    spread (the weighted
              rms distance from the centroid) stays under 0.85 of that of a uniformly filled canvas.
              Blank frames fail the first, frames of noise and frames of another brightness the
              second.

Failure is a number, never a NaN that a mean would drop: where no object is found the centroid is
    the canvas centre,
the direction "none", the centroid error the canvas diagonal, and the object counts as absent.
"""

from collections.abc import Sequence

import numpy as np

from videomar_jax.evaluation.metrics import Clips, check_clips, check_same_shape
from videomar_jax.types import Bool, Float

DIRECTIONS = ("left", "right", "up", "down")
BACKGROUND = 0.08
"""Brightness, in 0..1, behind the package's synthetic captioned shapes."""
THRESHOLD = 0.2
"""Contrast that counts as background still: about four standard deviations of the error of a 26 dB
sample."""

_MIN_MASS, _MAX_SPREAD = 1.0, 0.85
_PRESENT = (0.6, 1.5)


def object_mass(
    video: Clips, background: float | int = BACKGROUND, *, threshold: float | int = THRESHOLD
) -> Float[np.ndarray, "N F"]:
    """How much object each frame shows, in pixels of contrast 1."""
    return _measure(video, background, threshold)[0]


def centroids(
    video: Clips, background: float | int = BACKGROUND, *, threshold: float | int = THRESHOLD
) -> Float[np.ndarray, "N F 2"]:
    """Position (y, x) of the object in each frame, in pixels; the canvas centre where
    `object_found` is False."""
    return _measure(video, background, threshold)[1]


def object_found(
    video: Clips, background: float | int = BACKGROUND, *, threshold: float | int = THRESHOLD
) -> Bool[np.ndarray, "N F"]:
    """True for the frames that show one compact object, as the module's docstring defines it."""
    return _measure(video, background, threshold)[2]


def directions(
    video: Clips,
    background: float | int = BACKGROUND,
    *,
    min_shift: float | int = 2.0,
    threshold: float | int = THRESHOLD,
) -> list[str]:
    """The way each object went from its clip's first frame to the last: one of `DIRECTIONS`, or
    "none".

    It is the axis of the larger centroid shift and its sign ("down" is larger y), where that shift
    exceeds `min_shift` pixels and the object is found in both frames.
    """
    check_clips(video, "video")
    if video.shape[1] < 2:
        raise ValueError(f"A direction needs clips of at least 2 frames, got shape {video.shape}.")
    _, places, found = _measure(video[:, [0, -1]], background, threshold)
    shifts = places[:, 1] - places[:, 0]
    return [
        _direction(*shift, min_shift) if seen else "none"
        for shift, seen in zip(shifts, found.all(1), strict=True)
    ]


def direction_accuracy(
    video: Clips,
    wanted: Sequence[str],
    background: float | int = BACKGROUND,
    *,
    min_shift: float | int = 2.0,
    threshold: float | int = THRESHOLD,
) -> float:
    """Share of the clips, 0..1, that go the `wanted` way; one of `DIRECTIONS` for each clip, else
    ValueError."""
    if len(wanted) != len(video) or not len(wanted):
        raise ValueError(
            f"wanted must name a direction for each clip, got {len(wanted)} for {len(video)} clips."
        )
    if unknown := sorted(set(wanted) - set(DIRECTIONS)):
        raise ValueError(f"wanted must hold {', '.join(DIRECTIONS)} only, got {unknown}.")
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

    Raises ValueError when a frame of the reference shows no object: then `background` is not its
        background.
    """
    _, places, found = _measure(video, background, threshold)
    _, truth, _ = _measure_truth(video, reference, background, threshold)
    return np.where(found, np.linalg.norm(places - truth, axis=-1), np.hypot(*video.shape[2:4]))


def object_present(
    video: Clips,
    reference: Clips,
    background: float | int = BACKGROUND,
    *,
    threshold: float | int = THRESHOLD,
) -> Bool[np.ndarray, " N"]:
    """True where the last frame shows an object of 0.6 to 1.5 times the mass of the reference's
    last frame."""
    check_clips(video, "video")
    mass, _, found = _measure(video[:, -1:], background, threshold)
    truth, _, _ = _measure_truth(video, reference, background, threshold, frames=slice(-1, None))
    ratio, (low, high) = mass[:, 0] / truth[:, 0], _PRESENT
    return found[:, 0] & (ratio >= low) & (ratio <= high)


def direction_of(caption: str) -> str:
    """The direction that a caption ends with: "a red circle moves left" gives "left". Raises
    ValueError otherwise."""
    words = caption.lower().rstrip(" .!\n").split()
    if not words or words[-1] not in DIRECTIONS:
        raise ValueError(
            f"The caption {caption!r} does not end with one of: {', '.join(DIRECTIONS)}."
        )
    return words[-1]


def _direction(dy, dx, min_shift):
    if max(abs(dy), abs(dx)) <= min_shift:
        return "none"
    if abs(dx) >= abs(dy):
        return "right" if dx > 0 else "left"
    return "down" if dy > 0 else "up"


def _measure_truth(video, reference, background, threshold, frames=slice(None)):
    check_same_shape(video, reference)
    measured = _measure(reference[:, frames], background, threshold)
    if not measured[2].all():
        clip = np.argwhere(~measured[2])[0, 0]
        raise ValueError(
            f"The reference's clip {clip} has a frame without one compact object over background {background}: "
            "pass the background of these clips (0..1), or leave clips of another kind out."
        )
    return measured


def _measure(video, background, threshold):
    """(mass [N, F], centroids [N, F, 2], found [N, F]) of uint8 clips; finite everywhere."""
    check_clips(video, "video")
    if not 0 <= background <= 1 or not 0 <= threshold < 1:
        raise ValueError(
            f"background and threshold are brightnesses in 0..1, got {background} and {threshold}."
        )
    centre = (np.array(video.shape[2:4]) - 1) / 2
    mass, places, spread = (np.empty((*video.shape[:2], *tail)) for tail in ((), (2,), ()))
    for index in np.ndindex(*video.shape[:2]):
        mass[index], places[index], spread[index] = _moments(
            _contrast(video[index], background, threshold), centre
        )
    # A filled row of n pixels has variance (n^2 - 1) / 12.
    filled = np.sqrt(sum(side**2 - 1 for side in video.shape[2:4]) / 12)
    found = (mass >= _MIN_MASS) & (spread < _MAX_SPREAD * filled)
    return mass, np.where(found[..., None], places, centre), found


def _contrast(frame, background, threshold):
    difference = np.abs(frame / 255.0 - background).max(axis=-1)
    return np.maximum(difference - threshold, 0.0)


def _moments(weights, centre):
    """Sum, mean position and rms distance from it of a weighted frame [Hp, Wp]; an empty one sits
    at the centre."""
    mass = weights.sum()
    if mass == 0:
        return 0.0, centre, 0.0
    marginals = [weights.sum(axis=1) / mass, weights.sum(axis=0) / mass]
    positions = [np.arange(marginal.size) for marginal in marginals]
    place = [p @ m for p, m in zip(positions, marginals, strict=True)]
    variance = [(p - c) ** 2 @ m for p, c, m in zip(positions, place, marginals, strict=True)]
    return mass, np.array(place), np.sqrt(sum(variance))
