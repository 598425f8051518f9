"""What the log says of footage before training: right numbers, and a warning for each thing that
disappoints."""

import dataclasses
import logging
import re

import numpy as np
import pytest

from tests.helpers.tiny_run import start, tiny_videos, write_clip
from videomar_jax.data.sources import ClipShape
from videomar_jax.experiment import run
from videomar_jax.experiment.footage import describe_footage
from videomar_jax.tokenizers import PCATokenizer

SHAPE = ClipShape(num_frames=5, height=32, width=32)


@dataclasses.dataclass
class Footage:
    """Clips in memory, all alike but for their numbers, with what a folder knows of them."""

    make: object
    captions: tuple = ("a ball rolls",) * 20
    fps: float = 10.0
    sizes: np.ndarray = None
    rates: np.ndarray = None

    def __post_init__(self):
        count = len(self.captions)
        if self.sizes is None:
            self.sizes = np.full((count, 2), 64)
        if self.rates is None:
            self.rates = np.full(count, 10.0)
        self.lengths = np.full(count, 23)

    def __len__(self):
        return len(self.captions)

    def read(self, index, rng, shape):
        return {"video": self.make(rng, shape), "caption": self.captions[index]}


def moving(rng, shape):
    """Soft noise that shifts by two columns a frame."""
    ground = rng.integers(40, 200, (shape.height, shape.width, 3))
    ground = (ground + np.roll(ground, 1, 0) + np.roll(ground, 1, 1)) // 3
    shifted = [np.roll(ground, 2 * number, axis=1) for number in range(shape.num_frames)]
    return np.stack(shifted).astype(np.uint8)


def still(rng, shape):
    return np.repeat(moving(rng, shape)[:1], shape.num_frames, axis=0)


def slides(rng, shape):
    video = still(rng, shape)
    video[3:] = moving(rng, shape)[:1]
    return video


def barred(rng, shape):
    video = moving(rng, shape)
    video[:, :4], video[:, -3:] = 16, 10
    return video


def ball_on_black(rng, shape):
    video = np.full((shape.num_frames, shape.height, shape.width, 3), 10, np.uint8)
    for number, frame in enumerate(video):
        frame[10:20, 8 + 2 * number : 18 + 2 * number] = 200
    return video


@pytest.fixture(scope="module")
def tokenizer():
    rng = np.random.default_rng(0)
    clips = [moving(rng, SHAPE) for _ in range(20)]
    return PCATokenizer.fit(clips, patch=4, temporal_stride=2, channels=96)


def described(tokenizer, make=moving, linear=None, **facts):
    rows = describe_footage(Footage(make, **facts), tokenizer, SHAPE, linear)
    warnings = [text for name, text in rows if name == "warning"]
    return dict(rows), warnings


def test_the_numbers_of_a_known_video(tokenizer):
    """One frame of grey 100, then 50 rows of 32 columns of which the left half is 120."""

    def half(rng, shape):
        video = np.full((shape.num_frames, shape.height, shape.width, 3), 100, np.uint8)
        video[1:, :, : shape.width // 2] = 120
        return video

    rows, _ = described(tokenizer, half, {"copy": 20.0, "local": 21.0, "appearance": 22.5})
    assert rows["clips"] == "20" and rows["windows"].startswith("80 of 5 frames")
    assert rows["captions"] == "1 different, 0 empty"
    assert rows["motion"] == "2.5 grey levels a frame"  # 10 in one of four steps
    assert rows["changed pixels"].startswith("50.0 %")
    copied = 10 * np.log10(255**2 / 200)
    assert rows["repeating the first frame"] == f"{copied:.1f} dB"
    assert rows["the linear predictor"] == "22.5 dB, where repeating scores 20.0 dB"


def test_footage_without_faults_has_no_warning(tokenizer, caplog):
    caplog.set_level(logging.INFO, "videomar_jax")
    rows, warnings = described(tokenizer)
    assert warnings == [], warnings
    assert "the linear predictor" not in rows
    assert caplog.text.count("footage:") == 1 and "clips 20; windows 80" in caplog.text


SIZES = np.stack([np.full(20, 64), np.linspace(64, 160, 20).astype(int)], axis=1)
FAULTS = {
    "still": (dict(make=still), "64 of 64 windows hardly move: repeating"),
    "slides": (dict(make=slides), "64 of 64 windows rest but for jumps.*data.split_cuts=True"),
    "bars": (dict(make=barred), "64 of 64 windows have black bars, 7 of 32 rows above and below"),
    "one clip": (dict(captions=("a",)), "a single clip: it will be learnt by heart"),
    "few clips": (dict(captions=("a",) * 4), "there are 4 clips only"),
    "no captions": (dict(captions=("",) * 20), "no clip has a caption"),
    "sizes": (dict(sizes=SIZES), "20 sizes of different proportions, .* 0 to 60 % of a frame"),
    "wide": (dict(sizes=np.full((20, 2), (64, 160))), "leaves out 60 % of a frame on average"),
    "small": (dict(sizes=np.full((20, 2), 16)), "20 of 20 clips are smaller than 32x32"),
    "slow": (
        dict(rates=np.full(20, 5.0)),
        "20 of 20 clips have fewer frames a second .* frames are repeated",
    ),
    "rates": (dict(rates=np.linspace(10, 30, 20)), "clips have 10 to 30 frames a second"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_named(tokenizer, fault):
    facts, expected = FAULTS[fault]
    _, warnings = described(tokenizer, **facts)
    assert any(re.search(expected, text) for text in warnings), warnings


def test_a_dark_ground_is_no_bar(tokenizer):
    _, warnings = described(tokenizer, ball_on_black)
    assert not any("black bars" in text for text in warnings), warnings


def test_a_low_ceiling_is_named():
    def nearly_still(rng, shape):
        return still(rng, shape) + rng.integers(0, 2, (shape.num_frames, 1, 1, 1)).astype(np.uint8)

    clips = [moving(np.random.default_rng(seed), SHAPE) for seed in range(20)]
    poor = PCATokenizer.fit(clips, patch=4, temporal_stride=2, channels=1)
    _, warnings = described(poor, nearly_still)
    assert any("set more tokenizer.channels" in text for text in warnings), warnings


def test_images_have_nothing_to_expect(tokenizer):
    shape = ClipShape(num_frames=1, height=32, width=32)
    assert describe_footage(Footage(moving), tokenizer, shape) == []


class Enough(Exception):
    """Ends a run where training would begin."""


def test_a_run_on_videos_says_what_to_expect_before_training(tmp_path, caplog, monkeypatch):
    def no_training(*args, **kwargs):
        raise Enough

    monkeypatch.setattr(run, "train", no_training)
    caplog.set_level(logging.INFO, "videomar_jax")
    for number in range(6):
        write_clip(tmp_path / "clips" / f"{number}.mp4", seed=number)
    config = tiny_videos(tmp_path / "clips")
    with pytest.raises(Enough):
        start(config, tmp_path / "run")
    assert caplog.text.count("footage: clips 6; windows") == 1
    assert "the linear predictor" in caplog.text and "no clip has a caption" in caplog.text
    caplog.clear()
    (tmp_path / "run" / "checkpoints").mkdir()  # as if it had trained already
    with pytest.raises(Enough):
        start(config, tmp_path / "run")
    assert "footage:" not in caplog.text
