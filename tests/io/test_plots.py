"""Curves as a picture: where they are drawn, and what they are refused for."""

import math

import numpy as np
import pytest

from videomar_jax.checks import UserError
from videomar_jax.io.plots import Curve, Panel, plot, ticks

BLUE, ORANGE = (0, 114, 178), (213, 94, 0)


def places(picture, colour, rows=slice(50, 205)):
    """(rows, columns) of the pixels of a colour inside of the first panel."""
    near = np.abs(picture[rows].astype(int) - colour).max(axis=-1) < 30
    return np.argwhere(near)


def test_a_rising_curve_rises_from_left_to_right():
    picture = plot([Panel("loss", {"a": Curve([0, 50, 100], [1.0, 2.0, 3.0])})])
    assert picture.shape == (240, 900, 3) and picture.dtype == np.uint8
    points = places(picture, BLUE)
    left, right = points[points[:, 1] < 200], points[points[:, 1] > 750]
    assert left[:, 0].min() > right[:, 0].max(), "rows count from the top"
    assert points[:, 1].min() < 90 and points[:, 1].max() > 870, "from the first step to the last"


def test_logarithms_make_powers_of_ten_a_straight_line():
    steps, values = list(range(5)), [1.0, 10.0, 100.0, 1e3, 1e4]
    points = places(plot([Panel("", {"a": Curve(steps, values)}, logarithmic=True)]), BLUE)
    middle = points[np.abs(points[:, 1] - 480) < 3][:, 0].mean()
    ends = (points[:, 0].min() + points[:, 0].max()) / 2
    assert abs(middle - ends) < 3


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_what_is_not_finite_leaves_a_gap(broken):
    values = [1.0, 1.0, broken, 1.0, 1.0]
    points = places(plot([Panel("", {"a": Curve([0, 1, 2, 3, 4], values)})]), BLUE)
    columns = set(points[:, 1])
    assert not columns & set(range(300, 660)), "between the steps 1 and 3"
    assert columns & set(range(90, 280)) and columns & set(range(700, 870))


def test_a_single_value_a_level_curve_and_none_at_all_are_drawn():
    assert len(places(plot([Panel("", {"a": Curve([5], [2.0])})]), BLUE)) > 10
    level = places(plot([Panel("", {"a": Curve([1, 2], [0.0, 0.0])})]), BLUE)
    assert np.ptp(level[:, 0]) < 4 and 90 < level[:, 0].mean() + 50 < 160
    assert not len(places(plot([Panel("", {"a": Curve([1, 2], [math.nan] * 2)})]), BLUE))


def test_panels_stand_below_each_other_in_colours_of_their_own():
    panels = [
        Panel("one", {"a": Curve([0, 1], [1.0, 2.0]), "b": Curve([0, 1], [2.0, 1.0])}),
        Panel("two", {"a": Curve([0, 1], [1.0, 2.0])}),
    ]
    picture = plot(panels)
    assert picture.shape == (480, 900, 3)
    assert len(places(picture, ORANGE)) and len(places(picture, BLUE, slice(290, 450)))


def test_only_whole_steps_are_marked():
    """Of a curve from 4 to 6 there is one line down the panel inside: that of step 5."""
    picture = plot([Panel("", {"a": Curve([4, 6], [1.0, 2.0])})])
    is_line = (picture[60:200, 100:860] < 250).any(axis=-1).all(axis=0)
    marked = np.flatnonzero(is_line) + 100
    assert len(marked) and np.abs(marked - 480).max() < 4


def test_faults_are_named():
    with pytest.raises(UserError, match="at least one panel"):
        plot([])
    with pytest.raises(UserError, match="'loss' has 2 steps and 1 values"):
        plot([Panel("loss", {"a": Curve([1, 2], [1.0])})])


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (-3.0, 950.0, [0.0, 200.0, 400.0, 600.0, 800.0]),
        (27.31, 27.36, [27.31, 27.32, 27.33, 27.34, 27.35, 27.36]),
        (2.0, 2.0, [2.0]),
    ],
)
def test_ticks_are_round(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)
