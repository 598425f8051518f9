"""Small runs for tests: configs with changes, their start, and clips to train on.

The fixture `finished` is a finished run of the quick start's tiny variant, made once for all tests
that only look at it.
"""

from pathlib import Path

import av
import jax
import numpy as np
from ml_collections import ConfigDict

from tests.helpers.paths import CONFIGS
from videomar_jax.checkpoints.manager import Checkpoints
from videomar_jax.experiment.config import Experiment
from videomar_jax.experiment.config_files import sibling
from videomar_jax.experiment.run import run

STEPS = 6  # two rows of three steps


def load_config(file: str, variant: str = "", **sections) -> ConfigDict:
    """configs/FILE.py:VARIANT with changes.

    Args:
        sections: a section's changes as a dict, or the value of any other key.
    """
    config = sibling(CONFIGS / "tests", file).get_config(variant)
    config.mesh.data = 1  # one of the eight devices of the tests, unless a test says otherwise
    config.run.lookahead = False  # so that tests can act at a certain batch
    for name, change in sections.items():
        if isinstance(change, dict):
            config[name].update(change)
        else:
            config[name] = change
    return config


def tiny(**sections) -> ConfigDict:
    """configs/quickstart.py:tiny with changes."""
    return load_config("quickstart", "tiny", **sections)


def tiny_videos(path: Path, **sections) -> ConfigDict:
    """The tiny variant on a folder of clips."""
    return tiny(data=dict(kind="videos", path=str(path)), **sections)


def start(config: ConfigDict, workdir: Path) -> dict:
    """What `python -m videomar_jax.main` does."""
    return run(Experiment.from_config(config), workdir, config.to_dict())


def saved_parts(workdir: Path, step: int, like: dict) -> dict:
    """The entries of a checkpoint as NumPy arrays, shaped as in `like`."""
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        return checkpoints.restore(
            step, jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), like)
        )[0]


def write_clip(
    path: Path, count: int = 40, *, fps: int = 12, size: tuple[int, int] = (32, 40), seed: int = 0
) -> Path:
    """A video of `count` frames: a bright square that moves right over a dark ground."""
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = np.random.default_rng(seed).integers(120, 255, 3)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        for number in range(count):
            frame = np.full((*size, 3), 20, np.uint8)
            left = number % (size[1] - 10)
            frame[8:18, left : left + 10] = colour
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path
