import inspect
import json

import numpy as np
import pytest

from tests.golden import record_metrics
from videomar_jax.evaluation import metrics


def _pair(shape, seed=0, noise=20):
    rng = np.random.default_rng(seed)
    reference = rng.integers(0, 256, shape, dtype=np.uint8)
    video = np.clip(reference + rng.normal(0, noise, shape), 0, 255).astype(np.uint8)
    return video, reference


def _ssim_direct(x, y, size):
    """SSIM of two [Hp, Wp] planes from the textbook moments of every window, one window after the
    other."""
    offset = np.arange(size) - (size - 1) / 2
    weights = np.exp(-(offset[:, None] ** 2 + offset**2) / (2 * 1.5**2))
    weights /= weights.sum()
    values = []
    for i in range(x.shape[0] - size + 1):
        for j in range(x.shape[1] - size + 1):
            a, b = (
                x[i : i + size, j : j + size].astype(float),
                y[i : i + size, j : j + size].astype(float),
            )
            mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
            var_a, var_b = (weights * (a - mean_a) ** 2).sum(), (weights * (b - mean_b) ** 2).sum()
            covariance = (weights * (a - mean_a) * (b - mean_b)).sum()
            c1, c2 = 2.55**2, 7.65**2
            top = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
            values.append(top / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)))
    return np.mean(values)


def test_psnr_of_known_errors():
    reference = np.full((2, 2, 4, 6, 3), 100, np.uint8)
    video = reference.copy()
    video[0, 0] += 10
    video[1, :, 0, 0, 0] = 255
    per_frame = metrics.psnr_per_frame(video, reference)
    one_value = 10 * np.log10(255**2 / (155**2 / (4 * 6 * 3)))
    np.testing.assert_allclose(per_frame, [[20 * np.log10(25.5), 100.0], [one_value, one_value]])
    np.testing.assert_allclose(
        metrics.psnr(video, reference), [(20 * np.log10(25.5) + 100) / 2, one_value]
    )


def test_psnr_does_not_wrap_around_in_uint8():
    black, white = np.zeros((1, 1, 2, 2, 3), np.uint8), np.full((1, 1, 2, 2, 3), 255, np.uint8)
    assert metrics.psnr(black, white) == metrics.psnr(white, black) == 0.0


@pytest.mark.parametrize(
    ("height", "width", "size"), [(13, 15, 11), (11, 12, 11), (8, 16, 7), (5, 9, 5), (1, 3, 1)]
)
def test_ssim_equals_the_direct_computation(height, width, size):
    video, reference = _pair((1, 2, height, width, 3))
    found = metrics.ssim_per_frame(video, reference)
    for frame in range(2):
        planes = [
            _ssim_direct(video[0, frame, ..., c], reference[0, frame, ..., c], size)
            for c in range(3)
        ]
        np.testing.assert_allclose(found[0, frame], np.mean(planes), rtol=1e-9)
    np.testing.assert_allclose(metrics.ssim(video, reference), found.mean(axis=1))


def test_ssim_is_symmetric_one_for_equal_clips_and_falls_with_noise():
    video, reference = _pair((2, 2, 16, 16, 3))
    np.testing.assert_allclose(metrics.ssim(reference, reference), 1.0)
    np.testing.assert_allclose(metrics.ssim(video, reference), metrics.ssim(reference, video))
    worse, _ = _pair((2, 2, 16, 16, 3), noise=60)
    assert (metrics.ssim(worse, reference) < metrics.ssim(video, reference)).all()


def test_clips_are_scored_independently():
    video, reference = _pair((3, 2, 12, 12, 3))
    for score in (metrics.psnr, metrics.ssim):
        alone = [score(video[i : i + 1], reference[i : i + 1])[0] for i in range(3)]
        np.testing.assert_array_equal(score(video, reference), alone)


def test_copy_first_repeats_each_clips_own_first_frame():
    _, reference = _pair((3, 4, 5, 6, 3))
    baseline = metrics.copy_first(reference)
    for clip in range(3):
        for frame in range(4):
            np.testing.assert_array_equal(baseline[clip, frame], reference[clip, 0])
    baseline[:] = 0
    assert reference.any(), "the baseline must not share memory with the reference"


@pytest.mark.parametrize("score", [metrics.psnr_per_frame, metrics.ssim_per_frame])
@pytest.mark.parametrize(
    ("video", "says"),
    [
        (np.zeros((1, 2, 8, 9, 3), np.uint8), "same shape"),
        (np.zeros((2, 8, 8, 3), np.uint8), "video must be"),
        (np.zeros((1, 0, 8, 8, 3), np.uint8), "at least 1"),
        (np.zeros((1, 2, 8, 8, 3), np.float32), "uint8"),
    ],
)
def test_clips_that_cannot_be_compared_are_refused(score, video, says):
    reference = np.zeros((1, 2, 8, 8, 3), np.uint8)
    with pytest.raises(ValueError, match=says):
        inspect.unwrap(score)(video, reference)  # without the annotations' own check


def table_score(name, video, reference, last):
    """Of clips that follow the frame `last`."""
    whole = [np.concatenate([last, clips], axis=1) for clips in (video, reference)]
    tally = metrics.METRICS[name].tally(*whole, given=1)
    return metrics.METRICS[name].score(tally.amount.sum() / tally.weight.sum())


def test_the_psnr_of_changed_pixels_is_pooled_over_clips():
    """One clip changes at one pixel, the other at three; all four values weigh the same."""
    last = np.full((2, 1, 4, 4, 3), 100, np.uint8)
    reference = np.full((2, 2, 4, 4, 3), 100, np.uint8)
    reference[0, 1, 0, 0, 1] = 111
    reference[1, 0, :3, 2] = 50
    reference[1, 1, 1, 1] = 110, 90, 100  # ten levels are not more than ten
    changed = metrics.changed_pixels(reference, last)
    assert changed.sum() == 4 and changed[0, 1, 0, 0] and changed[1, 0, :3, 2].all()
    video = reference.copy()
    video[1, 0, 0, 2] = 56
    video[0, 0] = 255  # not where the truth changes
    error = 3 * 6**2 / (4 * 3)
    assert table_score("changed_psnr", video, reference, last) == pytest.approx(
        10 * np.log10(255**2 / error)
    )
    copied = (11**2 + 9 * 50**2) / 12
    still = np.repeat(last, 2, axis=1)
    assert table_score("changed_psnr", still, reference, last) == pytest.approx(
        10 * np.log10(255**2 / copied)
    )
    assert table_score("changed_psnr", reference, reference, last) == 100


def test_motion_counts_from_the_last_given_frame():
    last = np.full((1, 1, 4, 4, 3), 100, np.uint8)
    reference = np.full((1, 2, 4, 4, 3), 90, np.uint8)
    reference[:, 1] = 98
    video = np.full((1, 2, 4, 4, 3), 103, np.uint8)
    assert table_score("motion", video, reference, last) == pytest.approx(3 / 18)
    assert table_score("motion", reference, reference, last) == 1
    assert table_score("motion", np.repeat(last, 2, axis=1), reference, last) == 0


def test_every_row_of_the_table_says_what_it_means():
    video, reference = _pair((2, 3, 16, 16, 3))
    for name, metric in metrics.METRICS.items():
        assert metric.description and metric.better in ("higher", "lower", "near 1"), name
        assert np.isfinite(table_score(name, video, reference, reference[:, -1:])), name


def test_the_first_step_is_the_motion_of_one_frame():
    last = np.full((1, 1, 4, 4, 3), 100, np.uint8)
    reference = np.full((1, 3, 4, 4, 3), 110, np.uint8)
    video = np.full((1, 3, 4, 4, 3), 130, np.uint8)
    video[:, 1:] = 0  # whatever follows
    assert table_score("first_step", video, reference, last) == pytest.approx(3)
    assert table_score("first_step", reference, reference, last) == 1


def test_drift_is_told_channel_by_channel_and_frame_by_frame():
    """A colour cast leaves the mean over channels alone, and opposite drifts do not cancel."""
    video, reference = _pair((2, 3, 8, 8, 3), noise=0)
    reference = np.clip(reference, 60, 190)
    video = reference.copy()
    video[0, 1, ..., 0] += 12
    video[0, 1, ..., 2] -= 12
    video[1, 2] += 30
    np.testing.assert_allclose(metrics.mean_drift(video, reference), [(12 + 12) / 3 / 3, 30 / 3])
    np.testing.assert_allclose(metrics.contrast_drift(video, reference), 0, atol=1e-9)
    paler = (reference * 0.5 + 62.5).round().astype(np.uint8)
    spread = reference.astype(float).std(axis=(2, 3))
    found = metrics.contrast_drift(paler, reference)
    np.testing.assert_allclose(found, (spread / 2).mean(axis=(1, 2)), rtol=0.02)


def test_only_the_given_frames_count_for_their_score():
    video, reference = _pair((2, 5, 8, 8, 3))
    metric = metrics.METRICS["given_psnr"]
    expected = metrics.psnr(video[:, :2], reference[:, :2])
    np.testing.assert_array_equal(metric.tally(video, reference, 2).amount, expected)
    video[:, :2] = reference[:, :2]
    assert (metric.tally(video, reference, 2).amount == 100).all()


@pytest.mark.parametrize("library", ["scikit-image", "torchmetrics"])
def test_psnr_and_ssim_agree_with_libraries(library):
    """Values from tests/golden/record_metrics.py; torchmetrics computes PSNR in float32."""
    recorded = json.loads(record_metrics.FILE.read_text())[library]
    pairs = record_metrics.random_frames()
    for number, (reference, video) in enumerate(pairs):
        clips = video[None, None], reference[None, None]
        assert metrics.psnr(*clips)[0] == pytest.approx(recorded["psnr"][number], rel=1e-6)
        assert metrics.ssim(*clips)[0] == pytest.approx(recorded["ssim"][number], rel=1e-9)
