"""What is asked of a model of scenes."""

import numpy as np
import pytest

from videomar_jax.data.scene_objects import IN_THE_AIR
from videomar_jax.data.scenes import COMBINATIONS, HELD_OUT, Scenes
from videomar_jax.data.sources import ClipShape
from videomar_jax.experiment.cases import CaseSettings
from videomar_jax.experiment.scene_cases import scene_cases

SHAPE = ClipShape(num_frames=5, height=32, width=32)


@pytest.fixture(scope="module")
def source():
    return Scenes(seed=1, length=40, split="test")


@pytest.fixture(scope="module")
def cases(source):
    settings = CaseSettings(shape=SHAPE, clips=6, seed=0, temporal_stride=2, token_side=8)
    return {case.name: case for case in scene_cases(source, settings)}


def test_what_each_case_is_about(cases):
    sizes = {name: case.reference.shape[:4] for name, case in cases.items()}
    assert sizes == {
        "held_out": (6, 5, 32, 32),
        "unseen_combinations": (6, 5, 32, 32),
        "counterfactual": (6, 5, 32, 32),
        "longer": (3, 17, 32, 32),
        "larger": (3, 5, 48, 48),
    }


def test_the_truth_follows_its_captions(cases):
    for name, case in cases.items():
        scores = case.measure(case.reference[:], case.reference[:])
        assert scores["follows_caption"] == 1, name
        assert scores["object_there"] == 1, name
        assert scores["place_error"] == 0, name


def test_a_still_picture_follows_none(cases):
    for name, case in cases.items():
        still = np.repeat(case.reference[:][:, :1], case.reference.shape[1], axis=1)
        assert case.measure(still, case.reference[:])["follows_caption"] < 0.5, name


def test_another_caption_begins_with_the_same_picture(source, cases):
    told, asked = cases["held_out"], cases["counterfactual"]
    for index in range(6):
        scene = source.scene(index, SHAPE)
        assert told.prompts[index] != asked.prompts[index]
        np.testing.assert_array_equal(told.reference[index][0], asked.reference[index][0])
        # Within these few frames what falls and what bounces does the same.
        differ = (told.reference[index][-1] != asked.reference[index][-1]).any()
        assert differ or scene.action.verb in IN_THE_AIR


def test_unseen_combinations_are_those_held_out(cases):
    for prompt in cases["unseen_combinations"].prompts:
        named = [
            combination
            for combination in COMBINATIONS
            if f"{combination.colour} {combination.kind} {combination.action}" in prompt
        ]
        assert named and set(named) <= set(HELD_OUT), prompt
