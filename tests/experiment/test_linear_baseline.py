"""The linear predictor of a run is fitted on its training clips, and is never in the way."""

import numpy as np
import pytest

from tests.evaluation.test_baselines import drifting
from videomar_jax.data.sources import ClipShape
from videomar_jax.experiment import linear_baseline
from videomar_jax.experiment.linear_baseline import linear_predictors

SHAPE = ClipShape(num_frames=7, height=16, width=20)


class Drifting:
    """Clips of pictures that move right, read in any order; counts what is read."""

    fps = 12.0

    def __init__(self, count):
        self.video = drifting(count, frames=9).video
        self.read_indices = []

    def __len__(self):
        return len(self.video)

    def read(self, index, rng, shape):
        self.read_indices.append(index)
        start = rng.integers(3)
        return {"video": self.video[index, start : start + 7], "caption": "right"}


def test_it_is_fitted_on_random_windows_and_chosen_on_clips_left_out(monkeypatch):
    said = []
    monkeypatch.setattr(linear_baseline.log, "info", lambda text, *args: said.append(text % args))
    left_out, fitted = [], []
    original = linear_baseline.fit_linear

    def spy(windows, left, given, count):
        windows = list(windows)
        left_out.extend(left)
        fitted.extend(windows)
        return original(windows, left, given, count)

    monkeypatch.setattr(linear_baseline, "fit_linear", spy)
    source = Drifting(30)
    found = linear_predictors(source, SHAPE, (1, 3), windows=90, threads=0)
    assert set(found) == {1, 3} and found[3].kind == "local" and found[3].windows == 99
    assert found[3].left_out["local"] > found[3].left_out["copy"] + 5
    assert sum(len(batch.video) for batch in fitted) == 90
    assert sum(len(batch.video) for batch in left_out) == 9
    ours = {clip[0].tobytes() for batch in fitted for clip in batch.video}
    assert not ours & {clip[0].tobytes() for batch in left_out for clip in batch.video}
    assert len(set(source.read_indices)) == 30, "not all clips are used"
    assert any("linear predictor, 3 given: the local kind, fitted on 99" in s for s in said)


@pytest.mark.parametrize(
    ("clips", "windows", "expected"), [(1, 1000, 64), (2, 1000, 192), (5, 3, 4)]
)
def test_few_clips_give_few_windows(clips, windows, expected):
    found = linear_predictors(Drifting(clips), SHAPE, (3,), windows=windows, threads=0)[3]
    assert found.kind == "local" and bool(found.left_out) == (clips > 1)
    assert found.windows <= expected
    made = found(drifting(2).video[:, :3], ["", ""], 7)
    assert made.shape == (2, 7, 16, 20, 3) and made.dtype == np.uint8


def test_large_windows_are_fewer(monkeypatch):
    source = Drifting(20)
    monkeypatch.setattr(linear_baseline, "_BYTES", 10 * 7 * 16 * 20 * 3)
    found = linear_predictors(source, SHAPE, (3,), windows=1000, threads=0)[3]
    assert found.windows == 11


def test_none_is_fitted_if_none_is_asked_for():
    source = Drifting(3)
    assert linear_predictors(source, SHAPE, (3,), windows=0) == {} and not source.read_indices
