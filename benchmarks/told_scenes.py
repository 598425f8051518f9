"""Scenes whose captions fix everything, and the scores of videos that continue them.

acts        share of the clips that are nearer to the true clip than to all of another verb or side
            that could begin with the first frame (`evaluation.acting`).
follows     the same, and nearer than to all of another speed as well.
there       share of the frames that show the object.
changed     PSNR over the pixels that differ visibly from the first frame, in dB.
"""

from typing import NamedTuple

import numpy as np

from videomar_jax.data.scene_objects import possible_actions
from videomar_jax.data.scenes import Scenes
from videomar_jax.data.sources import ClipShape
from videomar_jax.evaluation.acting import Known, acting
from videomar_jax.evaluation.metrics import METRICS
from videomar_jax.experiment.scene_cases import draw_known
from videomar_jax.types import UInt8

_ACTING = {"acts": "follows_action", "follows": "follows_caption", "there": "object_there"}
"""Our name → that of `evaluation.acting`."""


class Told(NamedTuple):
    """Clips whose captions fix everything."""

    video: UInt8[np.ndarray, "N F Hp Wp 3"]
    captions: list[str]
    known: list[Known]


def told_clips(source: Scenes, shape: ClipShape, count: int) -> Told:
    """The first `count` scenes of the source."""
    videos, captions, known = [], [], []
    for index in range(count):
        scene = source.scene(index, shape)
        video, facts = draw_known(scene, possible_actions(scene), shape)
        videos.append(video)
        captions.append(scene.caption())
        known.append(facts)
    return Told(np.stack(videos), captions, known)


def score_videos(made: UInt8[np.ndarray, "N F Hp Wp 3"], told: Told) -> dict[str, float]:
    """The four scores of videos that were given the first frames; one that no clip can have is left
    out."""
    found = acting(made, told.video, told.known)
    scores = {ours: found[name] for ours, name in _ACTING.items() if name in found}
    changed = changed_psnr(made, told.video)
    return scores if changed is None else scores | {"changed": changed}


def changed_psnr(
    made: UInt8[np.ndarray, "N F Hp Wp 3"], truth: UInt8[np.ndarray, "N F Hp Wp 3"]
) -> float | None:
    """PSNR in dB over the pixels that differ visibly from the first frame, which was given; None if
    none does."""
    metric = METRICS["changed_psnr"]
    tally = metric.tally(made, truth, given=1)
    weight = tally.weight.sum()
    return metric.score(tally.amount.sum() / weight) if weight else None
