"""The loss curve: what is read from metrics.jsonl, and what is left out of it."""

import json
import math

import numpy as np

from videomar_jax.experiment.curves import loss_curve, read_metrics, smoothed
from videomar_jax.io.plots import Curve


def test_a_metric_that_is_not_in_every_line(tmp_path):
    lines = [
        {"step": 10, "loss": 2.0},
        {"step": 20, "loss": None},
        {"step": 20, "validation_loss": 2.5},
        {"step": 30, "loss": 1.0},
    ]
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 40, "lo')
    found = read_metrics(file)
    assert set(found) == {"loss", "validation_loss"}
    assert list(found["loss"].steps) == [10, 20, 30]
    assert found["loss"].values[0] == 2 and math.isnan(found["loss"].values[1])
    assert tuple(found["validation_loss"][:2]) == ((20,), (2.5,))
    assert read_metrics(tmp_path / "missing") == {} and loss_curve({}) is None


def test_the_picture_has_validation_only_where_there_was_one():
    loss = Curve([1, 2, 3], [3.0, 2.0, 1.0])
    without = loss_curve({"loss": loss})
    both = loss_curve({"loss": loss, "validation_loss": Curve([1, 3], [3.0, 2.0])})
    orange = (213, 94, 0)
    counts = [(np.abs(x.astype(int) - orange).max(axis=-1) < 30).sum() for x in (without, both)]
    assert counts[0] == 0 and counts[1] > 50
    assert loss_curve({"loss": loss, "learning_rate": loss}).shape[0] == 2 * without.shape[0]


def test_the_mean_runs_over_stretches_of_the_run():
    steps, noise = np.arange(500), np.random.default_rng(0).normal(size=500)
    curve = smoothed(Curve(list(steps), list(100 - steps / 10 + noise)))
    assert len(curve.steps) == 50
    np.testing.assert_allclose(curve.values, 100 - np.array(curve.steps) / 10, atol=1.5)
    noise[3] = np.nan
    assert np.isfinite(smoothed(Curve(list(steps), list(noise))).values).all()


def test_a_loss_below_zero_is_drawn_too():
    """A logarithm would leave it out in silence."""
    picture = loss_curve({"loss": Curve([1, 2, 3], [1.0, -1.0, -2.0])})
    near = np.abs(picture[50:205].astype(int) - (0, 114, 178)).max(axis=-1) < 30
    columns = np.argwhere(near)[:, 1]
    assert columns.min() < 90 and columns.max() > 870
