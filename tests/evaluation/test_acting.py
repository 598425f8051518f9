"""Scores of drawn scenes: perfect clips are perfect, and each fault is seen by the score for it."""

import numpy as np
import pytest

from videomar_jax.data.scene_objects import possible_actions
from videomar_jax.data.scenes import Scenes
from videomar_jax.data.sources import ClipShape
from videomar_jax.evaluation.acting import acting, is_nearest
from videomar_jax.experiment.scene_cases import draw_known

SHAPE = ClipShape(num_frames=17, height=48, width=48)


def clips(count=6):
    source = Scenes(seed=1, length=count, split="test")
    scenes = [source.scene(index, SHAPE) for index in range(count)]
    drawn = [draw_known(scene, possible_actions(scene), SHAPE) for scene in scenes]
    return np.stack([video for video, _ in drawn]), [known for _, known in drawn]


def test_the_truth_is_perfect():
    truth, known = clips()
    scores = acting(truth, truth, known)
    assert scores.pop("place_error") == scores.pop("place_error_last") == 0
    assert set(scores.values()) == {1.0}


def test_another_caption_does_not_follow():
    truth, known = clips()
    others = np.stack([facts.other_actions[0] for facts in known])
    scores = acting(others, truth, known)
    assert scores["follows_action"] == scores["follows_caption"] == 0


def test_another_speed_follows_the_action_but_not_the_caption():
    truth, known = clips()
    kept = [number for number, facts in enumerate(known) if facts.other_speeds]
    others = np.stack([known[number].other_speeds[0] for number in kept])
    scores = acting(others, truth[kept], [known[number] for number in kept])
    assert scores["follows_action"] > 0.5 and scores["follows_caption"] == 0


def test_a_missing_object_is_missed():
    truth, known = clips()
    empty = np.stack([facts.background for facts in known])
    scores = acting(empty, truth, known)
    assert scores["object_there"] == scores["object_there_last"] == 0
    assert "place_error" not in scores


def test_an_object_off_its_place_is_that_far_off():
    truth, known = clips()
    background = np.stack([facts.background for facts in known]).astype(int)
    moved = background + np.roll(truth - background, 2, axis=3)
    scores = acting(np.clip(moved, 0, 255).astype(np.uint8), truth, known)
    assert scores["place_error"] == pytest.approx(2, abs=0.2)


def test_noise_and_grain_change_little():
    truth, known = clips()
    noise = np.random.default_rng(0).normal(0, 6, truth.shape)
    grainy = np.clip(truth + noise, 0, 255).astype(np.uint8)
    scores = acting(grainy, truth, known)
    assert scores["follows_caption"] == 1 and scores["object_there"] > 0.95
    assert scores["place_error"] < 0.6


def test_a_hidden_object_does_not_count():
    truth, known = clips(1)
    hidden = truth.copy()
    hidden[:, 4:] = known[0].background[4:]
    scores = acting(truth, hidden, known)
    assert "object_there_last" not in scores and scores["object_there"] == 1


def test_a_tie_is_not_held_against_a_clip():
    truth, _known = clips(1)
    assert is_nearest(truth[0], truth[0], [truth[0]])
