"""What notebooks/image_to_video.ipynb shows, so that its cells stay short: needs IPython, which
every notebook has."""

import html
import io
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from videomar_jax.data.shapes import Shapes
from videomar_jax.data.sources import ClipShape
from videomar_jax.inference.images import Given
from videomar_jax.inference.pipeline import VideoMARPipeline, VideoStream
from videomar_jax.inference.video import Video
from videomar_jax.io.media import contact_sheet
from videomar_jax.types import UInt8


def trained(workdir: str | Path) -> Path:
    """The workdir, in which the quick start is trained first where there is no checkpoint yet (CPU:
    minutes)."""
    workdir = Path(workdir)
    if not any((workdir / "checkpoints").glob("[0-9]*")):
        if not Path("configs/quickstart.py").exists():
            raise FileNotFoundError(
                f"There is no run in {workdir}, and no configs/quickstart.py to train one with: "
                f"name a run's workdir, or start from the project's folder."
            )
        call = [
            sys.executable,
            "-m",
            "videomar_jax.main",
            "--config=configs/quickstart.py",
            f"--workdir={workdir}",
        ]
        subprocess.run(call, check=True)
    return workdir


def example(
    pipe: VideoMARPipeline, number: int = 0
) -> tuple[UInt8[np.ndarray, "Hp Wp 3"], list[str]]:
    """A first frame of the quick start's kind that it was not trained on, and four captions that
    fit it."""
    shape = ClipShape(
        num_frames=pipe.bundle.num_frames, height=pipe.bundle.height, width=pipe.bundle.width
    )
    clips = Shapes(seed=2024, length=number + 1, split="test", bounce=False).counterfactuals(
        number, shape
    )
    return clips[0]["video"][0], [clip["caption"] for clip in clips]


def upload() -> Path:
    """Asks for a file of the user's own (on Colab) and returns where it lies."""
    try:
        from google.colab import files
    except ImportError:
        raise RuntimeError(
            "Uploading works on Colab; elsewhere write the file's name: image = 'photo.jpg'."
        ) from None
    (name, *_) = files.upload()
    return Path(name)


def watch(stream: VideoStream) -> Video:
    """Shows the frames of a video as they arrive and returns it."""
    from IPython.display import display

    place = display(_strip(stream.video), display_id=True)
    for _ in stream:
        if place is not None:  # None: outside a notebook
            place.update(_strip(stream.video))
    print(
        f"first new frame after {stream.first_frame_s:.1f} s, all after {stream.frames.seconds:.1f} s"
    )
    return stream.video


def compare(
    pipe: VideoMARPipeline,
    image: Given,
    prompt: str,
    *,
    steps: Sequence[int],
    temperatures: Sequence[float],
    **settings: Any,
) -> "Table":
    """The same video (one seed) for all reveal steps and temperatures: a table that a notebook
    shows."""
    rows = [
        [pipe(image, prompt, steps=count, temperature=value, **settings) for value in temperatures]
        for count in steps
    ]
    return Table(
        [f"temperature {value:g}" for value in temperatures],
        [f"{count} steps" for count in steps],
        rows,
    )


class Table:
    """Videos side by side, with a name for each column and row."""

    def __init__(
        self, columns: Sequence[str], rows: Sequence[str], videos: Sequence[Sequence[Video]]
    ):
        self.columns, self.rows, self.videos = columns, rows, videos

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{html.escape(name)}</th>" for name in ("", *self.columns))
        body = "".join(
            f"<tr><th>{html.escape(name)}</th>{''.join(f'<td>{video._repr_html_()}</td>' for video in videos)}</tr>"
            for name, videos in zip(self.rows, self.videos, strict=True)
        )
        return f"<table><tr>{head}</tr>{body}</table>"


def _strip(video: Video):
    """The frames so far as a picture."""
    from IPython.display import Image as Picture

    data = io.BytesIO()
    sheet = contact_sheet(
        [(f"{video.prompt} ({len(video)} frames)", video.frames)], columns=min(len(video), 9)
    )
    Image.fromarray(sheet).save(data, format="PNG")
    return Picture(data=data.getvalue(), format="png")
