"""What notebooks/image_to_video.ipynb shows, so that its cells stay short. Needs IPython."""

import html
import io
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from videomar_jax.checks import UserError
from videomar_jax.data.shapes import Shapes
from videomar_jax.data.sources import ClipShape
from videomar_jax.inference.images import Given
from videomar_jax.inference.pipeline import VideoMARPipeline, VideoStream
from videomar_jax.inference.video import Video
from videomar_jax.io.media import contact_sheet
from videomar_jax.types import UInt8


def trained(workdir: str | Path) -> Path:
    """The workdir, in which the quick start is trained first if it holds no checkpoint yet.

    Training takes minutes on a CPU.

    Raises:
        FileNotFoundError: there is no checkpoint, and the project's configs are not in the current
            folder.
    """
    workdir = Path(workdir)
    if not any((workdir / "checkpoints").glob("[0-9]*")):
        if not Path("configs/quickstart.py").exists():
            raise FileNotFoundError(
                f"There is no run in {workdir}, and no configs/quickstart.py to train one with: "
                f"name a run's workdir, or start from the project's folder."
            )
        flags = ["--config=configs/quickstart.py", f"--workdir={workdir}"]
        subprocess.run([sys.executable, "-m", "videomar_jax.main", *flags], check=True)
    return workdir


def example(
    pipe: VideoMARPipeline, number: int = 0
) -> tuple[UInt8[np.ndarray, "Hp Wp 3"], list[str]]:
    """A first frame that the quick start was not trained on, and four captions that fit it."""
    bundle = pipe.bundle
    shape = ClipShape(num_frames=bundle.num_frames, height=bundle.height, width=bundle.width)
    shapes = Shapes(seed=2024, length=number + 1, split="test", bounce=False)
    clips = shapes.counterfactuals(number, shape)
    return clips[0]["video"][0], [clip["caption"] for clip in clips]


def upload() -> Path:
    """Asks for a file on Colab and returns where it was saved.

    Raises:
        UserError: this is not Colab.
    """
    try:
        from google.colab import files
    except ImportError:
        raise UserError(
            "Uploading works on Colab; elsewhere write the file's name: image = 'photo.jpg'."
        ) from None
    (name, *_) = files.upload()
    return Path(name)


def watch(stream: VideoStream) -> Video:
    """Shows the frames of a video as they arrive, and returns the video."""
    from IPython.display import display

    place = display(_strip(stream.video), display_id=True)
    for _ in stream:
        if place is not None:  # None outside a notebook
            place.update(_strip(stream.video))
    print(
        f"first new frame after {stream.first_frame_s:.1f} s, "
        f"all frames after {stream.frames.seconds:.1f} s"
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
    """One video (one seed) for each number of reveal steps and each temperature, as a table."""
    rows = []
    for count in steps:
        row = [pipe(image, prompt, steps=count, temperature=t, **settings) for t in temperatures]
        rows.append(row)
    columns = [f"temperature {value:g}" for value in temperatures]
    return Table(columns, [f"{count} steps" for count in steps], rows)


class Table:
    """Videos side by side, with a name for each column and row."""

    def __init__(
        self, columns: Sequence[str], rows: Sequence[str], videos: Sequence[Sequence[Video]]
    ):
        self.columns, self.rows, self.videos = columns, rows, videos

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{html.escape(name)}</th>" for name in ("", *self.columns))
        lines = [f"<tr>{head}</tr>"]
        for name, videos in zip(self.rows, self.videos, strict=True):
            cells = "".join(f"<td>{video._repr_html_()}</td>" for video in videos)
            lines.append(f"<tr><th>{html.escape(name)}</th>{cells}</tr>")
        return f"<table>{''.join(lines)}</table>"


def _strip(video: Video):
    """The frames so far as a picture."""
    from IPython.display import Image as Picture

    data = io.BytesIO()
    rows = [(f"{video.prompt} ({len(video)} frames)", video.frames)]
    sheet = contact_sheet(rows, columns=min(len(video), 9))
    Image.fromarray(sheet).save(data, format="PNG")
    return Picture(data=data.getvalue(), format="png")
