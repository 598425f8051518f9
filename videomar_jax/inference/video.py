"""A generated video: its frames, where they come from, and the files it can be saved as."""

import base64
import dataclasses
import html
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from videomar_jax.checks import UserError
from videomar_jax.inference.requests import FORMATS
from videomar_jax.io.media import (
    contact_sheet,
    write_arrays,
    write_gif,
    write_mp4,
    write_png,
    write_webm,
)
from videomar_jax.io.paths import user_path
from videomar_jax.types import Float, UInt8

MIN_SIDE = 256  # smaller videos are enlarged in mp4 and webm, because players blur them


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Video:
    """A generated video, with everything that is known about it."""

    frames: UInt8[np.ndarray, "F Hp Wp 3"]
    """RGB in 0..255; the first `given` frames are the image or clip that it started from."""
    latents: Float[np.ndarray, "T h w C"]
    """The latents that the frames were decoded from (with `still_detail`, before it)."""
    fps: float | int
    prompt: str = ""
    seed: int = 0
    given: int = 1
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """How it was generated, by field of `SamplingConfig`."""
    first_frame_s: float | None = None
    """Seconds from the start to the first new frame of its batch, compilation included."""

    def __len__(self) -> int:
        return len(self.frames)

    def __repr__(self) -> str:
        frames, height, width, _ = self.frames.shape
        size = f"{frames} frames of {height}x{width}"
        return f"Video({self.prompt!r}, {size}, {self.fps:g} fps, seed {self.seed})"

    def save(self, path: str | os.PathLike, *, overwrite: bool = False) -> Path:
        """Writes one file, of the kind that its ending names.

        .mp4 (H.264) and .webm (VP9) are enlarged by pixel repetition until the short side has 256
        pixels, .gif until 128; .png is a strip of up to nine frames under the prompt; .npz holds
        "latents" [T, h, w, C] and "fps".

        Raises:
            UserError: an unknown ending.
            FileExistsError: the file is there, and `overwrite` is not set.
        """
        path = user_path(path)
        ending = path.suffix.lower()
        if ending == ".mp4":
            write_mp4(path, self.frames, self.fps, min_side=MIN_SIDE, overwrite=overwrite)
        elif ending == ".webm":
            write_webm(path, self.frames, self.fps, min_side=MIN_SIDE, overwrite=overwrite)
        elif ending == ".gif":
            scale = max(1, 128 // min(self.frames.shape[1:3]))
            write_gif(path, self.frames, self.fps, scale=scale, overwrite=overwrite)
        elif ending == ".png":
            rows = [(self.prompt or path.stem, self.frames)]
            write_png(path, contact_sheet(rows, columns=min(len(self), 9)), overwrite=overwrite)
        elif ending == ".npz":
            arrays = {"latents": self.latents, "fps": np.asarray(self.fps)}
            write_arrays(path, arrays, overwrite=overwrite)
        else:
            raise UserError(
                f"{path}: a video is saved as one of {', '.join(FORMATS.values())}, not {ending!r}."
            )
        return path

    def _repr_html_(self) -> str:
        """The video itself, playing in the page of a notebook."""
        with tempfile.TemporaryDirectory() as folder:
            file = self.save(Path(folder) / "video.mp4")
            data = base64.b64encode(file.read_bytes()).decode()
        caption = html.escape(self.prompt)
        return (
            f'<figure style="margin:0"><video controls autoplay loop muted playsinline '
            f'src="data:video/mp4;base64,{data}"></video>'
            f"<figcaption>{caption}</figcaption></figure>"
        )
