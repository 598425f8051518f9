"""The linear predictor is ridge regression: it foresees what is linear, and is chosen on windows
that it was not fitted on."""

import numpy as np
import pytest

from videomar_jax.checks import UserError
from videomar_jax.evaluation import baselines
from videomar_jax.evaluation.baselines import Windows, fit_linear, repeat_last
from videomar_jax.evaluation.metrics import psnr


def drifting(count, *, frames=7, size=(16, 20), seed=0):
    """Smooth random pictures that move right by one pixel a frame."""
    rng = np.random.default_rng(seed)
    height, width = size
    wide = width + frames
    rows, columns = np.arange(height)[:, None, None], np.arange(wide)[:, None]
    clips = []
    for _ in range(count):
        waves = np.zeros((height, wide, 3))
        for _ in range(4):
            fy, fx = rng.uniform(-0.5, 0.5, 2)
            waves += np.sin(fy * rows + fx * columns + rng.uniform(0, 6.3, 3))
        picture = np.clip(128 + 30 * waves, 0, 255).astype(np.uint8)
        clips.append([picture[:, frames - t : frames - t + width] for t in range(frames)])
    return Windows(np.array(clips), [""] * count)


def speaking(count, *, frames=5, size=(8, 8), seed=0):
    """A grey picture that becomes brighter or darker, as its caption says, the more the brighter
    its left half is."""
    rng = np.random.default_rng(seed)
    video = np.empty((count, frames, *size, 3), np.uint8)
    captions = []
    for number in range(count):
        level = rng.integers(0, 60)
        sign = (1, -1)[number % 2]
        captions.append("make it brighter" if sign > 0 else "make it darker")
        for t in range(frames):
            video[number, t] = 128 + sign * t * level // 4
            video[number, t, :, : size[1] // 2] = 100 + level
    return Windows(video, captions)


def score(predict, windows, given):
    made = predict(windows.video[:, :given], windows.captions, windows.video.shape[1])
    np.testing.assert_array_equal(made[:, :given], windows.video[:, :given])
    return psnr(made[:, given:], windows.video[:, given:]).mean()


def halves(windows):
    middle = len(windows.video) // 2
    return [
        Windows(windows.video[part], windows.captions[part])
        for part in (slice(middle), slice(middle, None))
    ]


def test_the_last_given_frame_is_repeated():
    video = np.arange(2 * 5 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 5, 4, 4, 3)
    made = repeat_last(video[:, :3], ["", ""], 5)
    np.testing.assert_array_equal(made[:, :3], video[:, :3])
    np.testing.assert_array_equal(made[:, 3], video[:, 2])
    np.testing.assert_array_equal(made[:, 4], video[:, 2])


def test_what_moves_is_foreseen_from_three_frames():
    found = fit_linear(halves(drifting(60)), [drifting(10, seed=1)], [1, 3], 60)
    test = drifting(8, seed=2)
    assert found[3].kind == "local" and found[3].given == 3 and found[3].windows == 70
    assert score(found[3], test, 3) > score(repeat_last, test, 3) + 8
    assert found[3].left_out["local"] > found[3].left_out["copy"] + 8


def test_what_the_caption_says_is_foreseen():
    found = fit_linear(halves(speaking(80)), [speaking(20, seed=1)], [1], 80)[1]
    test = speaking(10, seed=2)
    assert found.kind == "appearance"
    assert score(found, test, 1) > score(repeat_last, test, 1) + 8
    swapped = Windows(test.video, [*test.captions[1:], test.captions[0]])
    assert score(found, swapped, 1) < score(repeat_last, test, 1), "the caption is not looked at"


def test_the_local_kind_is_the_ridge_regression_of_the_text():
    windows = drifting(6, frames=5, size=(8, 12))
    found = fit_linear(halves(windows), [], [3], 6)[3]
    padded = np.pad(windows.video[:, :3], ((0, 0), (0, 0), (6, 6), (6, 6), (0, 0)), mode="edge")
    inputs, targets = [], []
    for n in range(6):
        for y in range(0, 8, 4):
            for x in range(0, 12, 4):
                for colour in range(3):
                    region = padded[n, :, y : y + 16, x : x + 16, colour].astype(float).ravel()
                    inputs.append(region - region.mean())
                    block = windows.video[n, :, y : y + 4, x : x + 4, colour].astype(float)
                    targets.append((block[3:] - block[2]).ravel())
    inputs, targets = np.array(inputs), np.array(targets)
    square = inputs.T @ inputs
    penalty = 1e-4 * np.trace(square) / 768 * np.eye(768)
    weights = np.linalg.solve(square + penalty, inputs.T @ targets)
    expected = (inputs @ weights).reshape(6, 2, 3, 3, 2, 4, 4).transpose(0, 4, 1, 5, 2, 6, 3)
    expected = windows.video[:, 2:3] + expected.reshape(6, 2, 8, 12, 3)
    made = found(windows.video[:, :3], windows.captions, 5)[:, 3:]
    np.testing.assert_allclose(made, np.clip(np.round(expected), 0, 255), atol=1)
    assert found.kind == "local" and found.left_out == {}, "nothing was there to choose by"


@pytest.mark.parametrize("size", [(10, 14), (90, 122)])
def test_frames_of_any_size(size):
    """Sides that blocks do not divide, and frames that the appearance kind reduces."""
    for windows, given, fit in (
        (drifting(12, size=size), 3, baselines._LocalFit(3, 12)),
        (speaking(24, size=size), 1, baselines._AppearanceFit(1)),
    ):
        fit.add(windows)
        predictor = baselines.LinearPredictor(
            kind="any", given=given, windows=0, left_out={}, fitted=fit.solve(1e-4)
        )
        assert score(predictor, windows, given) > score(repeat_last, windows, given) + 5, fit


def test_many_windows_give_some_blocks_each(monkeypatch):
    monkeypatch.setattr(baselines, "_ROWS", 3 * 5 * 60)
    fit = baselines._LocalFit(3, 60)
    rows = []
    monkeypatch.setattr(fit._ridge, "add", lambda inputs, targets: rows.append(len(inputs)))
    fit.add(drifting(60))
    assert sum(rows) == 3 * 5 * 60


def test_still_clips_stay_still():
    video = np.full((4, 5, 8, 8, 3), 90, np.uint8)
    windows = Windows(video, ["a", "b", "a", "b"])
    found = fit_linear([windows], [windows], [1, 3], 4)
    for given, predictor in found.items():
        assert score(predictor, windows, given) == 100


def test_what_cannot_be_is_refused():
    with pytest.raises(UserError, match="no training windows"):
        fit_linear([], [], [1], 0)
    found = fit_linear([drifting(4)], [], [3], 4)[3]
    with pytest.raises(UserError, match="from 3 to 7 frames, not from 2 to 7"):
        found(drifting(1).video[:, :2], [""], 7)
