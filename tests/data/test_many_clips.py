"""A folder of very many clips, of one clip, and of clips of many sizes and rates."""

import os
import time
import tracemalloc

import numpy as np
import pytest

from tests.helpers.tiny_run import tiny_videos, write_clip
from videomar_jax.data.loader import batches
from videomar_jax.data.sources import ClipShape
from videomar_jax.data.videos import VideoFolder
from videomar_jax.experiment.config import Experiment

SHAPE = ClipShape(num_frames=5, height=32, width=32)
COUNT = 1000
SIZES = ((32, 40), (48, 32), (40, 64), (32, 32))
RATES = (10, 12, 25, 30)


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """COUNT links to a dozen clips of different lengths, sizes and rates, with captions."""
    kinds, folder = tmp_path_factory.mktemp("kinds"), tmp_path_factory.mktemp("many")
    made = [
        write_clip(kinds / f"{k}.mp4", 24 + 4 * k, fps=RATES[k % 4], size=SIZES[k % 3], seed=k)
        for k in range(12)
    ]
    lines = ["file,caption"]
    for number in range(COUNT):
        os.link(made[number % 12], folder / f"{number:05}.mp4")
        lines.append(f"{number:05}.mp4,clip {number}")
    (folder / "captions.csv").write_text("\n".join(lines))
    return folder


def test_thousands_of_clips_open_in_seconds(many):
    """Ten thousand take ten times as long: the time is a clip's times them."""
    started = time.monotonic()
    source = VideoFolder(many, fps=12.0, split="train", holdout=0.2, shortest=(3, 5))
    seconds = time.monotonic() - started
    # Some of the short ones are held out whole.
    assert 0.8 * COUNT < len(source) < COUNT
    last = len(source) - 1
    assert source.captions[last] == f"clip {int(source.name(last))}"
    # About a millisecond a clip: the bound leaves room for a busy machine, none for a decode.
    assert seconds < 0.01 * COUNT, f"{1000 * seconds / COUNT:.1f} ms a clip"


def test_an_open_folder_takes_little_memory(many, tmp_path):
    for number in range(150):
        os.link(many / f"{number:05}.mp4", tmp_path / f"{number}.mp4")
    tracemalloc.start()
    VideoFolder(tmp_path, fps=12.0, split="train", holdout=0.2, shortest=(3, 5))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20_000 * 150, f"{peak / 150:.0f} bytes a clip"


def test_clips_of_many_sizes_and_rates_are_one_batch(many):
    source = VideoFolder(many, fps=12.0, split="train", holdout=0.2, shortest=(3, 5))
    assert set(source.rates.round().astype(int).tolist()) == set(RATES)
    assert {tuple(size) for size in source.sizes.tolist()} == set(SIZES[:3])
    stream = batches(source, shape=SHAPE, batch_size=16, seed=0)
    batch = next(stream)
    stream.close()
    assert batch["video"].shape == (16, 5, 32, 32, 3) and len(set(batch["caption"])) == 16
    # Each clip belongs to one of the sizes, by its proportions.
    sizes = ((32, 40), (48, 32))
    owners = [source.fits(ClipShape(num_frames=5, height=h, width=w), sizes) for h, w in sizes]
    assert sorted(np.concatenate(owners).tolist()) == list(range(len(source)))
    assert all(len(owner) for owner in owners)


def test_one_clip_is_trained_on_and_held_out(tmp_path):
    write_clip(tmp_path / "clips" / "only.mp4", 60)
    experiment = Experiment.from_config(tiny_videos(tmp_path / "clips"))
    train, test = experiment.source("train"), experiment.source("test")
    assert len(train) == 1 and {test.name(index) for index in range(len(test))} == {"only"}
    tokenizer = experiment.tokenizer(train)
    assert tokenizer.channels == 16
    stream = batches(train, shape=experiment.final_shape, batch_size=4, seed=0)
    video = next(stream)["video"]
    stream.close()
    assert len({clip.tobytes() for clip in video}) > 1, "windows of one clip are all alike"
