"""What is asked of a model at the end of a run."""

import numpy as np
import pytest

from videomar_jax.data.shapes import Shapes
from videomar_jax.data.sources import ClipShape
from videomar_jax.experiment.cases import CaseSettings, footage_cases, larger_shape, shape_cases


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
    cases = {case.name: case for case in shape_cases(held_out, settings)}
    sizes = {name: case.reference.shape[:4] for name, case in cases.items()}
    assert sizes == {
        "held_out": (5, 3, 16, 16),
        "unseen_triples": (5, 3, 16, 16),
        "counterfactual": (8, 3, 16, 16),
        "shuffled_captions": (5, 3, 16, 16),
        "longer": (3, 5, 16, 16),
        "larger": (3, 3, 32, 32),
    }
    assert cases["larger"].title == "A larger canvas: 32x32"
    for case in cases.values():
        assert len(case.prompts) == len(case.directions) == len(case.reference)


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


def test_cases_of_footage():
    """The whole, and each named clip; one that is called like the whole gets another name."""
    settings = CaseSettings(
        shape=ClipShape(num_frames=2, height=4, width=4),
        clips=6,
        seed=0,
        temporal_stride=2,
        token_side=4,
    )
    footage = Footage(["a", "held_out", "a", "", "b", "a", "beyond the number of clips"])
    cases = footage_cases(footage, settings)
    found = {case.name: case.reference[:, 0, 0, 0, 0].tolist() for case in cases}
    assert found == {
        "held_out": [0, 1, 2, 3, 4, 5],
        "a": [0, 2, 5],
        "clip held_out": [1],
        "b": [4],
    }
    assert cases[1].prompts == ["caption 0", "caption 2", "caption 5"]
    assert cases[2].title == "Held-out part of held_out"
