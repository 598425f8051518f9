"""Zoom and flips of training clips: what they are, that they follow from the generator alone, and
that captions are respected."""

import numpy as np
import pytest

from tests.helpers.tiny_model import annotations_off
from tests.helpers.tiny_run import start, tiny, tiny_videos, write_clip
from videomar_jax.checks import UserError
from videomar_jax.data.augment import FEW_CLIPS, Augmentation, AugmentedClips, may_flip
from videomar_jax.data.sources import ClipShape
from videomar_jax.experiment.config import Experiment

SHAPE = ClipShape(num_frames=3, height=16, width=16)


class Recorded:
    """A source of one clip whose pixels are numbered; remembers the sizes that it was asked for."""

    fps = 12.0

    def __init__(self, captions=("a ball",), count=1):
        self.captions, self.count, self.asked = captions, count, []

    def __len__(self):
        return self.count

    def read(self, index, rng, shape):
        self.asked.append((shape.height, shape.width))
        rows, columns = np.mgrid[: shape.height, : shape.width]
        frame = np.stack([rows, columns, np.zeros_like(rows)], axis=-1).astype(np.uint8)
        return {"video": np.stack([frame] * shape.num_frames), "caption": "a ball"}


def reads(source, count=200):
    return [source.read(0, np.random.default_rng(seed), SHAPE)["video"] for seed in range(count)]


def way(video):
    """(mirrored sideways, upside down, rows for columns) of a clip of `Recorded`."""
    rows = video[0].astype(int)
    vertical, horizontal = rows[-1, 0] - rows[0, 0], rows[0, -1] - rows[0, 0]
    transposed = vertical[0] == 0
    if transposed:
        vertical, horizontal = horizontal, vertical
    return int(horizontal[1] < 0), int(vertical[0] < 0), int(transposed)


def test_all_flips_are_drawn_about_equally_often():
    source = AugmentedClips(Recorded(), Augmentation(flip="all"))
    ways = [way(video) for video in reads(source, 400)]
    counts = {each: ways.count(each) for each in set(ways)}
    assert len(counts) == 8 and min(counts.values()) > 25, counts


def test_horizontal_flips_leave_rows_alone():
    source = AugmentedClips(Recorded(), Augmentation(flip="horizontal"))
    ways = [way(video) for video in reads(source)]
    assert set(ways) == {(0, 0, 0), (1, 0, 0)}
    assert 70 < ways.count((1, 0, 0)) < 130


def test_wide_clips_are_never_transposed():
    source = AugmentedClips(Recorded(), Augmentation(flip="all"))
    wide = ClipShape(num_frames=1, height=8, width=16)
    for seed in range(30):
        video = source.read(0, np.random.default_rng(seed), wide)["video"]
        assert video.shape == (1, 8, 16, 3)


def test_zoom_asks_for_larger_clips_and_crops_anywhere():
    inner = Recorded()
    source = AugmentedClips(inner, Augmentation(zoom=2.0))
    corners = {tuple(video[0, 0, 0, :2]) for video in reads(source)}
    assert set(inner.asked) == {(16, 16), (20, 20), (24, 24), (28, 28), (32, 32)}
    assert (0, 0) in corners and max(row for row, _ in corners) == 16


def test_the_same_generator_gives_the_same_clip():
    source = AugmentedClips(Recorded(), Augmentation(zoom=1.5, flip="all"))
    for first, second in zip(reads(source, 20), reads(source, 20), strict=True):
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    ("captions", "flips"),
    [
        (["a ball bounces", ""], True),
        (["a ball moves left"], False),
        (["the Right-hand door"], False),
        (["turns anti-clockwise"], False),
        (["a sign that reads STOP"], False),
        (["ein Ball fällt"], False),
        (["向左移动"], False),
        (["bright leftovers"], True),
    ],
)
def test_captions_that_a_mirrored_clip_would_contradict(captions, flips):
    assert may_flip(captions) is flips


@pytest.mark.parametrize(
    ("source", "mirrored"),
    [
        (Recorded(), True),
        (Recorded(captions=("moves left",)), False),
        (Recorded(count=FEW_CLIPS), False),
    ],
)
def test_auto_mirrors_a_few_clips_whose_captions_do_not_mind(source, mirrored):
    augmented = AugmentedClips(source, Augmentation(flip="auto"))
    assert any(way(video)[0] for video in reads(augmented, 30)) is mirrored


@pytest.mark.parametrize(("caption", "warned"), [("moves left", True), ("a ball", False)])
def test_mirroring_against_the_captions_is_warned_of(caption, warned, caplog):
    AugmentedClips(Recorded(captions=(caption,)), Augmentation(flip="horizontal"))
    assert ("these words mean nothing" in caplog.text) is warned


def test_held_out_clips_are_never_changed(tmp_path):
    write_clip(tmp_path / "a.mp4")
    config = tiny_videos(tmp_path)
    config.data.update(flip="all", zoom=1.5)
    experiment = Experiment.from_config(config)
    assert isinstance(experiment.training_source(), AugmentedClips)
    for split in ("test", "train"):
        assert not isinstance(experiment.source(split), AugmentedClips)


def test_a_run_trains_on_changed_clips(tmp_path):
    write_clip(tmp_path / "clips" / "a.mp4")
    config = tiny_videos(tmp_path / "clips")
    config.data.update(flip="auto", zoom=1.25)
    report = start(config, tmp_path / "run")
    assert np.isfinite(report["psnr"])


@pytest.mark.parametrize("settings", [dict(zoom=0.5), dict(zoom=float("inf")), dict(flip="up")])
def test_a_wrong_setting_is_named(settings):
    with annotations_off(), pytest.raises(UserError, match=rf"data\.{next(iter(settings))}"):
        Experiment.from_config(tiny(data=settings))


def test_latents_cannot_be_changed(tmp_path):
    with pytest.raises(UserError, match="cannot be zoomed or mirrored"):
        Experiment.from_config(tiny(data=dict(kind="shards", path=str(tmp_path), flip="all")))


def test_with_a_probability_some_clips_stay_as_they_are():
    inner = Recorded()
    source = AugmentedClips(inner, Augmentation(zoom=2.0, flip="all", probability=0.3))
    reads(source, 400)
    enlarged = sum(asked != (16, 16) for asked in inner.asked)
    # One of the five zooms is none.
    assert 0.7 < enlarged / (400 * 0.3 * 0.8) < 1.3
    assert Augmentation(flip="all", probability=0.0).changes_nothing
    with pytest.raises(UserError, match=r"data\.probability"):
        Augmentation(probability=1.5)
