"""Images to generate from, jobs on the tiny run, and what is in the files that they write."""

from pathlib import Path

import av
import numpy as np
from PIL import Image

from videomar_jax.inference import jobs, requests
from videomar_jax.inference.requests import JobOptions, Output

SIZE = 24
"""Pixel rows and columns of the tiny run's last stage."""


def draw(path, seed=0, size=(SIZE, SIZE)):
    """An image of few colours."""
    picture = np.kron(
        np.random.default_rng(seed).integers(0, 256, (size[0] // 4, size[1] // 4, 3)),
        np.ones((4, 4, 1)),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture.astype(np.uint8)).save(path)
    return path


def pixels(path):
    return np.array(Image.open(path).convert("RGB"))


def first_tile(sheet):
    """The first frame on a contact sheet of one row: behind the margin and one line of text, three
    times as large."""
    tile = pixels(sheet)[36 : 36 + 3 * SIZE, 16 : 16 + 3 * SIZE]
    assert (tile.reshape(SIZE, 3, SIZE, 3, 3) == tile[::3, None, ::3, None]).all(), (
        "not pixel by pixel"
    )
    return tile[::3, ::3]


def mp4_frames(path):
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def make(asked, checkpoint, folder, overwrite=False, formats=("mp4", "gif", "png"), **changes):
    options = JobOptions(checkpoint=checkpoint, **dict(batch_size=2) | changes)
    return jobs.run_jobs(
        asked, options, Output(folder=folder, formats=formats, overwrite=overwrite)
    )


def latents(folder, name="v"):
    with np.load(folder / f"{name}.npz") as arrays:
        return arrays["latents"]


def request(image, name="v", prompt="a red circle moves left", seed=0, **more):
    return requests.Request(image=Path(image), prompt=prompt, seed=seed, name=name, **more)
