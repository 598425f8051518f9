"""A small folder of videos, a tokenizer that was fitted on noise, and the task of preparing one
with the other."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.tiny_run import write_clip
from videomar_jax.data.windows import Cutting
from videomar_jax.preparation.plan import Settings
from videomar_jax.preparation.run import Task, prepare
from videomar_jax.text_encoders import HashedTextEncoder
from videomar_jax.tokenizers import PCATokenizer

CUTTING = Cutting(fps=12.0, lengths=(9, 5), sizes=((16, 24), (24, 16)))
FRAMES = {"a/wide0.mp4": 40, "a/wide1.mp4": 30, "tall.mp4": 28, "brief.mp4": 7, "wide2.mp4": 20}
"""9 frames: 4 + 3 + 2 wide windows, 3 tall ones; one of 5 frames."""


@pytest.fixture(scope="session")
def videos(tmp_path_factory) -> Path:
    """Five captioned videos. Look, do not touch."""
    folder = tmp_path_factory.mktemp("videos")
    for seed, (name, count) in enumerate(FRAMES.items()):
        write_clip(
            folder / name, count, size=(48, 32) if name == "tall.mp4" else (32, 48), seed=seed
        )
    rows = "".join(f"{name},clip {name} moves\n" for name in FRAMES)
    (folder / "captions.csv").write_text("file,caption\n" + rows)
    return folder


@pytest.fixture(scope="session")
def tokenizer() -> PCATokenizer:
    rng = np.random.default_rng(0)
    clips = (rng.integers(0, 256, (5, 16, 16, 3), dtype=np.uint8) for _ in range(30))
    return PCATokenizer.fit(clips, patch=8, temporal_stride=2, channels=4)


@pytest.fixture(scope="session")
def task(videos, tokenizer, tmp_path_factory):
    """Makes a task with an output of its own; keywords change fields of it or of its settings."""

    def make(output: Path | None = None, **changes) -> Task:
        fields = {field.name for field in dataclasses.fields(Settings)}
        settings = dict(cutting=CUTTING, clips_per_shard=2, holdout=0.25)
        settings |= {name: changes.pop(name) for name in list(changes) if name in fields}
        output = output or tmp_path_factory.mktemp("prepared") / "out"
        given = dict(
            videos=videos,
            output=output,
            settings=Settings(**settings),
            tokenizer=tokenizer,
            text_encoder=HashedTextEncoder(8, 6),
            threads=2,
        )
        return Task(**(given | changes))

    return make


@pytest.fixture(scope="session")
def prepared(task):
    """What one undisturbed preparation makes. Look, do not touch."""
    done = task()
    prepare(done)
    return done.output
