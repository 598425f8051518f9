"""What is asked of a model at the end of a run."""

import numpy as np
import pytest

from videomar_jax.data.shapes import Shapes
from videomar_jax.data.sources import ClipShape
from videomar_jax.experiment import cases
from videomar_jax.experiment.cases import (
    CaseSettings,
    HeldOutWindows,
    fitting_given,
    footage_cases,
    larger_shape,
    other_captions,
    shape_cases,
)


@pytest.mark.parametrize(
    ("side", "token_side", "larger"),
    [(32, 4, 48), (24, 4, 36), (24, 8, 32), (16, 16, 32), (32, 16, 48), (8, 8, 16)],
)
def test_the_larger_canvas_is_larger_in_whole_tokens(side, token_side, larger):
    """1.5 times a side of one token, rounded down, would be the side itself."""
    shape = ClipShape(num_frames=3, height=side, width=4 * token_side)
    made = larger_shape(shape, token_side)
    assert (made.num_frames, made.height, made.width) == (3, larger, 6 * token_side)


def test_cases_of_shapes():
    settings = CaseSettings(
        shape=ClipShape(num_frames=3, height=16, width=16),
        clips=5,
        seed=0,
        temporal_stride=2,
        token_side=16,
    )
    held_out = Shapes(seed=0, length=50, split="test", bounce=False)
    found = {case.name: case for case in shape_cases(held_out, settings)}
    sizes = {name: case.reference.shape[:4] for name, case in found.items()}
    assert sizes == {
        "held_out": (5, 3, 16, 16),
        "unseen_triples": (5, 3, 16, 16),
        "counterfactual": (8, 3, 16, 16),
        "shuffled_captions": (5, 3, 16, 16),
        "longer": (3, 5, 16, 16),
        "larger": (3, 3, 32, 32),
    }
    assert found["larger"].title == "A larger canvas: 32x32"
    for case in found.values():
        assert len(case.prompts) == len(case.reference)
        assert case.measure(case.reference[:], case.reference[:])["centroid_error"] == 0


class Footage:
    """Windows of clips, whose names are the given ones."""

    fps = 12.0

    def __init__(self, names):
        self.names = names

    def __len__(self):
        return len(self.names)

    def name(self, index):
        return self.names[index]

    def read(self, index, rng, shape):
        size = (shape.num_frames, shape.height, shape.width, 3)
        return {"video": np.full(size, index, np.uint8), "caption": f"caption {index}"}


def footage_settings(given=(1,), frames=2, clips=6):
    return CaseSettings(
        shape=ClipShape(num_frames=frames, height=4, width=4),
        clips=clips,
        seed=0,
        temporal_stride=2,
        token_side=4,
        given=given,
    )


def test_cases_of_footage():
    """The whole, and each named clip; one that is called like the whole gets another name."""
    footage = Footage(["a", "held_out", "a", "", "b", "a", "beyond the number of clips"])
    (case,) = footage_cases(footage, footage_settings())
    assert case.name == "held_out" and case.given == 1
    assert case.reference[0:6][:, 0, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert case.reference.shape == (6, 2, 4, 4, 3)
    assert case.prompts == [f"caption {number}" for number in range(6)]
    parts = {part.name: part for part in case.parts}
    assert {name: part.clips for name, part in parts.items()} == {
        "a": [0, 2, 5],
        "clip held_out": [1],
        "b": [4],
    }
    assert parts["clip held_out"].title == "Held-out part of held_out, from 1 frame"


def test_many_clips_are_not_shown_apart():
    names = [f"clip {number}" for number in range(9)]
    (few,) = footage_cases(Footage(names), footage_settings(clips=8))
    (many,) = footage_cases(Footage(names), footage_settings(clips=9))
    assert [part.name for part in few.parts] == names[:8] and not many.parts


def test_a_case_for_each_number_of_given_frames():
    footage = Footage(["a", "held_out_given_3", "a"])
    found = footage_cases(footage, footage_settings(given=(1, 3, 5), frames=7, clips=3))
    assert [(case.name, case.given) for case in found] == [
        ("held_out", 1),
        ("held_out_given_3", 3),
        ("held_out_given_5", 5),
    ]
    names = [part.name for case in found for part in case.parts]
    assert names == [
        "a",
        "clip held_out_given_3",
        "a_given_3",
        "held_out_given_3_given_3",
        "a_given_5",
        "held_out_given_3_given_5",
    ]
    assert found[1].title == "Held-out footage, from 3 frames"


@pytest.mark.parametrize(
    ("wanted", "frames", "stride", "found"),
    [
        ((1, 3, 5), 9, 2, (1, 3, 5)),
        ((1, 3, 5), 5, 2, (1, 3)),
        ((1, 3, 5), 9, 4, (1, 5)),
        ((1, 3, 5), 49, 8, (1, 9)),
        ((1, 3, 5), 9, 8, (1,)),
        ((2, 4), 9, 2, (3, 5)),
        ((5,), 3, 2, (1,)),
    ],
)
def test_given_frames_that_a_clip_can_be_continued_from(wanted, frames, stride, found, monkeypatch):
    said = []
    monkeypatch.setattr(
        "videomar_jax.experiment.cases.log.info", lambda text, *args: said.append(text % args)
    )
    assert fitting_given(wanted, frames, stride) == found
    changed = [number for number in wanted if number not in found]
    assert len(said) == len(changed), said


def test_other_captions_are_others():
    captions = ["a", "b", "", "a", "c"]
    others = other_captions(captions)
    for caption, other in zip(captions, others, strict=True):
        assert other in ({"a", "b", "c"} - {caption} if caption else {""})
    assert others == other_captions(captions), "drawn anew each time"
    many = other_captions(["a", "b", "c"] * 100)
    assert 30 < many[::3].count("b") < 70, "not uniform"
    assert other_captions(["a", "a", ""]) is None, "there is no other caption"


def test_windows_are_read_again_where_they_do_not_fit_into_memory(monkeypatch):
    shape = ClipShape(num_frames=2, height=4, width=4)
    kept = HeldOutWindows(Footage(["a"] * 5), range(5), shape)
    monkeypatch.setattr(cases, "_KEPT_BYTES", 10)
    read = HeldOutWindows(Footage(["a"] * 5), range(5), shape)
    assert read.captions == kept.captions and read.shape == kept.shape
    np.testing.assert_array_equal(read[1:4], kept[1:4])
    assert read._video is None
