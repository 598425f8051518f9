"""A row becomes a stage or is told what is wrong; batches have the shapes of the mix in the shares
that it asks for."""

import jaxtyping
import numpy as np
import pytest

from videomar_jax.training.stages import BatchShape, Mix, Stage, draw_shapes, stage_of_row


def row(name="clips", **changes):
    plain = {
        "num_frames": 9,
        "height": 32,
        "width": 48,
        "batch_size": 4,
        "steps": 10,
        "learning_rate": 1e-3,
    }
    return {"name": name, **plain, **changes}


def entry(num_frames=9, **changes):
    return {
        "num_frames": num_frames,
        "sizes": ((32, 48), (48, 32)),
        "batch_size": 4,
        "weight": 1.0,
        **changes,
    }


def mixed(*entries, **changes):
    return {"name": "mixed", "mix": entries, "steps": 10, "learning_rate": 1e-3, **changes}


def batch_shape(num_frames, height, width, batch_size=4):
    return BatchShape(num_frames=num_frames, height=height, width=width, batch_size=batch_size)


# Rows


def test_a_plain_row_is_a_mix_of_one():
    stage = stage_of_row(0, row(learning_rate=1))
    assert stage == Stage(
        name="clips",
        mix=(Mix(num_frames=9, sizes=((32, 48),), batch_size=4),),
        steps=10,
        learning_rate=1.0,
    )
    assert stage.shapes == (batch_shape(9, 32, 48),) == (stage.main,)
    assert (stage.num_frames, stage.height, stage.width, stage.batch_size) == (9, 32, 48, 4)


def test_a_mixed_row_lists_every_shape():
    images = {"num_frames": 1, "height": 64, "width": 64, "batch_size": 16}
    stage = stage_of_row(0, mixed(images, entry(17, sizes=[[32, 48], [48, 32]], weight=3)))
    assert [e.weight for e in stage.mix] == [1.0, 3.0]
    assert stage.shapes == (
        batch_shape(1, 64, 64, 16),
        batch_shape(17, 32, 48),
        batch_shape(17, 48, 32),
    )


def test_the_main_shape_is_the_first_size_of_the_largest_clips():
    larger_second = entry(17, sizes=((32, 48), (64, 64)))
    for entries in [
        (entry(1), larger_second),
        (larger_second, entry(1, sizes=((64, 64),), batch_size=32)),
    ]:
        stage = stage_of_row(0, mixed(*entries))
        assert stage.main == batch_shape(17, 32, 48) and stage.batch_size == 4


# Rows that are wrong


@pytest.fixture
def without_annotation_checks():
    """As users run it: a value of the wrong type meets the checks of the class itself."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


IMPOSSIBLE = [
    ("num_frames", 0),
    ("num_frames", 9.0),
    ("num_frames", True),
    ("height", -32),
    ("width", "48"),
    ("batch_size", None),
    ("steps", 0),
    ("learning_rate", 0.0),
    ("learning_rate", float("nan")),
    ("learning_rate", "1e-3"),
    ("learning_rate", True),
    ("name", ""),
    ("name", 3),
]


@pytest.mark.parametrize(("key", "value"), IMPOSSIBLE)
def test_impossible_values_are_named(key, value, without_annotation_checks):
    with pytest.raises(ValueError, match=f"{key}.*{value!r}"):
        stage_of_row(0, {**row("clips"), key: value})


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("weight", 0, r"weight must be positive, not 0\.0"),
        ("weight", -1.0, "weight must be positive, not -1\.0"),
        ("weight", "2", "weight must be a number, not '2'"),
        ("num_frames", 0, "num_frames must be at least 1, not 0"),
        ("batch_size", 2.5, "batch_size must be a whole number, not 2\.5"),
        ("sizes", (), "sizes must be pairs of height and width"),
        ("sizes", (32, 48), "sizes must be pairs of height and width, not 32"),
        ("sizes", ((32, 48, 3),), "sizes must be pairs"),
        ("sizes", "32x48", "sizes must be pairs"),
        ("sizes", ((32, 0),), "width must be at least 1, not 0"),
        ("sizes", ((32, 48), (32, 48)), "name one size twice"),
    ],
)
def test_impossible_entries_are_named(key, value, words, without_annotation_checks):
    with pytest.raises(ValueError, match=r"Curriculum row 3 \('mixed'\), mix\[1\]: .*" + words):
        stage_of_row(3, mixed(entry(1), {**entry(9), key: value}))


def test_wrong_keys_are_told_what_is_meant():
    with pytest.raises(
        ValueError, match=r"'learning_rat' in .*row 1 \('b'\)\. Did you mean 'learning_rate'"
    ):
        stage_of_row(1, row("b", learning_rat=1.0))
    with pytest.raises(
        ValueError, match=r"'zzz' in .* Known: batch_size, height, learning_rate, name"
    ):
        stage_of_row(0, row(zzz=1))
    with pytest.raises(ValueError, match="lacks height, width"):
        stage_of_row(
            0, {key: value for key, value in row().items() if key not in ("height", "width")}
        )
    with pytest.raises(
        ValueError,
        match=r"'wieght' in .*\('mixed'\), mix\[1\]\. Did you mean 'weight'",
    ):
        stage_of_row(0, mixed(entry(), entry(17, wieght=2)))
    with pytest.raises(ValueError, match=r"mix\[0\] lacks batch_size, sizes"):
        stage_of_row(0, mixed({"num_frames": 9}))
    with pytest.raises(ValueError, match=r"mix\[0\] lacks width"):
        stage_of_row(0, mixed({"num_frames": 9, "height": 32, "batch_size": 4}))
    with pytest.raises(ValueError, match=r"mix\[0\] has sizes and height: give one"):
        stage_of_row(0, mixed(entry(height=32)))
    with pytest.raises(
        ValueError, match=r"\('mixed'\) has a mix and height, batch_size: these belong"
    ):
        stage_of_row(0, mixed(entry(), height=32, batch_size=3))
    with pytest.raises(ValueError, match=r"\('mixed'\) lacks steps"):
        stage_of_row(0, {"name": "mixed", "mix": (entry(),), "learning_rate": 1.0})


@pytest.mark.parametrize("mix", [3, "9x32x48", {"num_frames": 9}, (3,)])
def test_a_mix_that_is_none(mix):
    with pytest.raises(
        ValueError, match=r"mix.* must be (a sequence of entries|an entry) with num_frames, sizes"
    ):
        stage_of_row(0, {"name": "a", "mix": mix, "steps": 1, "learning_rate": 1.0})


def test_a_mix_without_entries_or_with_a_shape_twice():
    with pytest.raises(ValueError, match="Stage 'mixed': mix must have at least one entry"):
        stage_of_row(0, mixed())
    twice = entry(9, sizes=((48, 32), (64, 64)), batch_size=8)
    with pytest.raises(
        ValueError, match="Stage 'mixed': mix has 9 frames of 48x32 in more than one entry"
    ):
        stage_of_row(0, mixed(entry(9), twice))


# Which shape a step has


def long_stage(steps=20_000):
    entries = (
        entry(1, sizes=((64, 64),), weight=1),
        entry(9, weight=3),
        entry(17, sizes=((32, 32),), weight=6),
    )
    return stage_of_row(0, mixed(*entries, steps=steps))


def test_shares_are_weights_and_within_an_entry_numbers_of_clips():
    np.testing.assert_allclose(
        long_stage().shares([5, 30, 10, 7]), [0.1, 0.3 * 0.75, 0.3 * 0.25, 0.6]
    )
    np.testing.assert_allclose(long_stage().shares([5, 0, 10, 7]), [0.1, 0, 0.3, 0.6])


def test_steps_follow_the_shares():
    shares = np.array([0.1, 0.225, 0.075, 0.6])
    drawn = draw_shapes(long_stage(), [5, 30, 10, 7], seed=3, index=0)
    assert drawn.shape == (20_000,)
    found = np.bincount(drawn, minlength=4) / 20_000
    deviation = np.sqrt(shares * (1 - shares) / 20_000)
    assert (np.abs(found - shares) < 4 * deviation).all(), f"shares {found}, wanted {shares}"
    pairs = np.bincount(4 * drawn[:-1] + drawn[1:], minlength=16).reshape(4, 4) / 19_999
    np.testing.assert_allclose(
        pairs, np.outer(shares, shares), atol=0.015, err_msg="steps depend on each other"
    )


def test_a_shape_without_clips_is_never_drawn():
    drawn = draw_shapes(long_stage(), [5, 30, 0, 7], seed=3, index=0)
    assert set(drawn.tolist()) == {0, 1, 3}
    first = stage_of_row(0, mixed(entry(9), steps=1000))
    assert set(draw_shapes(first, [0, 4], seed=0, index=0).tolist()) == {1}
    assert set(draw_shapes(first, [4, 0], seed=0, index=0).tolist()) == {0}


def test_choices_depend_on_seed_and_stage_and_not_on_its_length():
    clips = [5, 30, 10, 7]
    whole = draw_shapes(long_stage(), clips, seed=3, index=1)
    np.testing.assert_array_equal(draw_shapes(long_stage(700), clips, seed=3, index=1), whole[:700])
    for other in ({"seed": 4, "index": 1}, {"seed": 3, "index": 0}):
        assert (draw_shapes(long_stage(), clips, **other) != whole).mean() > 0.3


def test_an_entry_without_any_clip_is_named():
    with pytest.raises(
        ValueError, match=r"Stage 'mixed': there is no clip .* entry of 9 frames of 32x48, 48x32"
    ):
        draw_shapes(long_stage(), [5, 0, 0, 7], seed=0, index=0)
