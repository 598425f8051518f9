"""Scores of drawn scenes: perfect clips are perfect, and each fault is seen by the score for it."""

import numpy as np
import pytest

from videomar_jax.data.scenes import Scenes
from videomar_jax.data.sources import ClipShape
from videomar_jax.evaluation.acting import Known, acting, follows_caption

SHAPE = ClipShape(num_frames=17, height=48, width=48)


def clips(count=6):
    source = Scenes(seed=1, length=count, split="test")
    groups = [source.counterfactuals(index, SHAPE) for index in range(count)]
    truth = np.stack([group[0]["video"] for group in groups])
    known = [
        Known(source.without_actor(index, SHAPE), [clip["video"] for clip in group[1:]])
        for index, group in enumerate(groups)
    ]
    return truth, known


def test_the_truth_is_perfect():
    truth, known = clips()
    scores = acting(truth, truth, known)
    assert scores.pop("place_error") == scores.pop("place_error_last") == 0
    assert set(scores.values()) == {1.0}


def test_another_caption_does_not_follow():
    truth, known = clips()
    others = np.stack([facts.others[0] for facts in known])
    assert acting(others, truth, known)["follows_caption"] == 0


def test_a_missing_object_is_missed():
    truth, known = clips()
    empty = np.stack([facts.background for facts in known])
    scores = acting(empty, truth, known)
    assert scores["object_there"] == scores["object_there_last"] == 0
    assert "place_error" not in scores


def test_an_object_off_its_place_is_that_far_off():
    truth, known = clips()
    moved, facts = np.roll(truth, 2, axis=3), []
    for background, others in known:
        facts.append(Known(background, others))
    scores = acting(moved, truth, facts)
    # The room moves too, so some pixels of it are taken for the object.
    assert scores["place_error"] == pytest.approx(2, abs=0.7)


def test_noise_and_grain_change_little():
    truth, known = clips()
    noise = np.random.default_rng(0).normal(0, 6, truth.shape)
    grainy = np.clip(truth + noise, 0, 255).astype(np.uint8)
    scores = acting(grainy, truth, known)
    assert scores["follows_caption"] == scores["object_there"] == 1
    assert scores["place_error"] < 0.6


def test_a_hidden_object_does_not_count():
    truth, known = clips(1)
    hidden = truth.copy()
    hidden[:, 4:] = known[0].background[4:]
    scores = acting(truth, hidden, known)
    assert "object_there_last" not in scores and scores["object_there"] == 1


def test_a_tie_is_not_held_against_a_clip():
    truth, _known = clips(1)
    assert follows_caption(truth[0], truth[0], [truth[0]])
