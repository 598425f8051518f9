"""Does an object act as its caption says? For clips whose scene is known without the object.

    cover     of a pixel: how far its colour lies from the background's in the direction in which
              the object's do, 0..1; below `FAINT` it is noise or a shadow and counts as 0.
    area      of a frame: the sum of its cover, in pixels.
    place     the cover-weighted mean position (x, y) in pixels.
    present   a frame shows the object if its area is within `PRESENT` of the true one's, measured
              in the same way.

Frames in which the true object is hidden for the most part, behind another one, are left out.

A clip follows its caption if, over the pixels in which the alternatives differ visibly, it is
nearer to the true clip than to every clip of another caption that begins with the same frame. It
follows the action if that holds for the captions that name another verb or side. Both are shares of
the clips of which some other action can be told apart.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from videomar_jax.evaluation.metrics import CHANGED, Clips, Score
from videomar_jax.types import Bool, Float, UInt8

FAINT = 0.3
PRESENT = (0.5, 1.6)
VISIBLE = 0.4
"""Of its largest area: the true object is in sight."""

SCORES: dict[str, Score] = {
    "follows_action": Score(
        "",
        "higher",
        "share of the clips that are nearer to the true clip than to all of another verb or side",
    ),
    "follows_caption": Score(
        "", "higher", "the same, and nearer than to all of another speed as well"
    ),
    "object_there": Score("", "higher", "share of the frames that show the object"),
    "object_there_last": Score("", "higher", "the same of the last frames"),
    "place_error": Score(
        "px", "lower", "distance of the object, where it is there, from its place"
    ),
    "place_error_last": Score("px", "lower", "the same in the last frame"),
}
"""What `acting` gives, by name; a score that no clip can have is left out."""


class Known(NamedTuple):
    """What is known of one true clip."""

    background: UInt8[np.ndarray, "F Hp Wp 3"]
    """The clip without the object."""
    other_actions: Sequence[UInt8[np.ndarray, "F Hp Wp 3"]] = ()
    """What captions with another verb or side would have shown."""
    other_speeds: Sequence[UInt8[np.ndarray, "F Hp Wp 3"]] = ()
    """What captions with the same verb and side, but another speed, would have shown."""


class _Measured(NamedTuple):
    area: Float[np.ndarray, "F"]
    place: Float[np.ndarray, "F 2"]


def acting(generated: Clips, reference: Clips, known: Sequence[Known]) -> dict[str, float]:
    """`SCORES` of generated clips, over all frames but the first, which is given."""
    acts, follows, there, last_there, error, last_error = [], [], [], [], [], []
    for made, truth, facts in zip(generated, reference, known, strict=True):
        other_actions = _told_apart(facts.other_actions, truth)
        if other_actions:
            acts.append(is_nearest(made, truth, other_actions))
            follows.append(acts[-1] and is_nearest(made, truth, facts.other_speeds))
        present, distance, counted = compare(made, truth, facts.background)
        there += present[1:][counted[1:]].tolist()
        error += distance[1:][(present & counted)[1:]].tolist()
        if counted[-1]:
            last_there.append(present[-1])
            if present[-1]:
                last_error.append(distance[-1])
    values = {
        "follows_action": acts,
        "follows_caption": follows,
        "object_there": there,
        "object_there_last": last_there,
        "place_error": error,
        "place_error_last": last_error,
    }
    return {name: float(np.mean(found)) for name, found in values.items() if found}


def is_nearest(
    made: UInt8[np.ndarray, "F Hp Wp 3"],
    truth: UInt8[np.ndarray, "F Hp Wp 3"],
    others: Sequence[UInt8[np.ndarray, "F Hp Wp 3"]],
) -> bool:
    """Whether a clip is nearer to the truth than to every other clip, where these differ."""
    made, truth = made.astype(np.int32), truth.astype(np.int32)
    for other in others:
        other = other.astype(np.int32)
        differs = _differs(other, truth)
        to_truth = np.sum((made - truth)[differs] ** 2)
        if np.sum((made - other)[differs] ** 2) < to_truth:
            return False
    return True


def _told_apart(clips: Sequence[np.ndarray], truth: np.ndarray) -> list[np.ndarray]:
    """Those that differ visibly from the truth: what falls and what bounces begins alike."""
    return [clip for clip in clips if _differs(clip.astype(np.int32), truth).any()]


def _differs(clip: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Where one of two clips, the first of them of int32, is visibly another one."""
    return np.abs(clip - truth).max(axis=-1) > CHANGED


def compare(
    made: UInt8[np.ndarray, "F Hp Wp 3"],
    truth: UInt8[np.ndarray, "F Hp Wp 3"],
    background: UInt8[np.ndarray, "F Hp Wp 3"],
) -> tuple[Bool[np.ndarray, "F"], Float[np.ndarray, "F"], Bool[np.ndarray, "F"]]:
    """Of each frame: whether the object is there, how far it is off in pixels, and whether the
    frame counts, since the true object is in sight."""
    contrast = object_contrast(truth[0], background[0])
    true, found = (_measure(clip, background, contrast) for clip in (truth, made))
    share = found.area / np.maximum(true.area, 1e-6)
    present = (share >= PRESENT[0]) & (share <= PRESENT[1])
    distance = np.linalg.norm(found.place - true.place, axis=-1)
    return present, distance, true.area >= VISIBLE * true.area.max()


def object_contrast(
    frame: UInt8[np.ndarray, "Hp Wp 3"], background: UInt8[np.ndarray, "Hp Wp 3"]
) -> Float[np.ndarray, "3"]:
    """How the object's colours differ from the background: their main direction, as long as they
    differ along it on average.

    Marks may be brighter than the background where the rest is darker, so the sign is open.
    """
    difference = frame.astype(np.float64) - background
    size = np.linalg.norm(difference, axis=-1)
    strong = difference[size > 0.6 * size.max()]
    direction = np.linalg.svd(strong, full_matrices=False)[2][0]
    return direction * np.abs(strong @ direction).mean()


def _measure(clip: np.ndarray, background: np.ndarray, contrast: np.ndarray) -> _Measured:
    difference = clip.astype(np.float64) - background
    cover = np.abs(difference @ contrast) / max(float(contrast @ contrast), 1e-6)
    cover = np.where(cover < FAINT, 0, np.clip(cover, 0, 1))
    area = cover.sum(axis=(1, 2))
    rows, columns = np.mgrid[0 : clip.shape[1], 0 : clip.shape[2]]
    x, y = ((cover * places).sum(axis=(1, 2)) for places in (columns, rows))
    return _Measured(area, np.stack([x, y], axis=-1) / np.maximum(area, 1e-6)[:, None])
