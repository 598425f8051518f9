"""A video that was made: its frames, where they come from, and the files it can become."""

import base64
import dataclasses
import html
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from videomar_jax.io.media import (
    contact_sheet,
    write_arrays,
    write_gif,
    write_mp4,
    write_png,
    write_webm,
)
from videomar_jax.types import Float, UInt8

FORMATS = {"mp4": ".mp4", "gif": ".gif", "png": ".png", "webm": ".webm", "latents": ".npz"}
"""Name of a format → ending of its files."""
_MIN_SIDE = 256  # smaller videos are enlarged in mp4 and webm: players blur them


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Video:
    """A video with everything that is known of it.

    frames: RGB, 0..255; the first `given` of them are the image or clip that it was made from.
    latents: those it was decoded from.
    settings: how it was drawn, by field of `SamplingConfig`.
    first_frame_s: seconds from the start to the first new frame of its batch, compilation included.
    """

    frames: UInt8[np.ndarray, "F Hp Wp 3"]
    latents: Float[np.ndarray, "T h w C"]
    fps: float | int
    prompt: str = ""
    seed: int = 0
    given: int = 1
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    first_frame_s: float | None = None

    def __len__(self) -> int:
        return len(self.frames)

    def __repr__(self) -> str:
        frames, height, width, _ = self.frames.shape
        return f"Video({self.prompt!r}, {frames} frames of {height}x{width}, {self.fps:g} fps, seed {self.seed})"

    def save(self, path: str | os.PathLike, *, overwrite: bool = False) -> Path:
        """Writes one file; its ending says which kind.

        .mp4 (H.264) and .webm (VP9) are enlarged by pixel repetition until the short side has 256
        pixels, .gif until 128; .png is a strip of up to nine frames under the prompt; .npz holds
        "latents" [T, h, w, C] and "fps".

        Raises:
            ValueError: an unknown ending.
            FileExistsError: the file is there, and `overwrite` is not set.
        """
        path = Path(path)
        ending = path.suffix.lower()
        if ending == ".mp4":
            write_mp4(path, self.frames, self.fps, min_side=_MIN_SIDE, overwrite=overwrite)
        elif ending == ".webm":
            write_webm(path, self.frames, self.fps, min_side=_MIN_SIDE, overwrite=overwrite)
        elif ending == ".gif":
            scale = max(1, 128 // min(self.frames.shape[1:3]))
            write_gif(path, self.frames, self.fps, scale=scale, overwrite=overwrite)
        elif ending == ".png":
            sheet = contact_sheet(
                [(self.prompt or path.stem, self.frames)], columns=min(len(self), 9)
            )
            write_png(path, sheet, overwrite=overwrite)
        elif ending == ".npz":
            write_arrays(
                path, {"latents": self.latents, "fps": np.asarray(self.fps)}, overwrite=overwrite
            )
        else:
            raise ValueError(
                f"{path}: a video is saved as one of {', '.join(FORMATS.values())}, not {ending!r}."
            )
        return path

    def _repr_html_(self) -> str:
        """The video itself, playing in the page of a notebook."""
        with tempfile.TemporaryDirectory() as folder:
            data = base64.b64encode(self.save(Path(folder) / "video.mp4").read_bytes()).decode()
        caption = html.escape(self.prompt)
        return (
            f'<figure style="margin:0"><video controls autoplay loop muted playsinline '
            f'src="data:video/mp4;base64,{data}"></video><figcaption>{caption}</figcaption></figure>'
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Output:
    """Where and as what videos are written: NAME.json and one file of each format. `local_path`
    makes the folder of a text that a person wrote."""

    folder: Path
    formats: tuple[str, ...] = ("mp4", "gif", "png")
    fps: float | None = None  # None: the model's
    overwrite: bool = False

    def __post_init__(self):
        object.__setattr__(self, "folder", local_path(self.folder))
        check_formats(self.formats)
        if self.fps is not None and not 0 < self.fps <= 1000:
            raise ValueError(f"fps must lie between 0 and 1000, not {self.fps:g}.")

    def paths(self, name: str) -> dict[str, Path]:
        """The files of one video by format, and its record as "json"."""
        endings = {format: FORMATS[format] for format in self.formats} | {"json": ".json"}
        return {format: self.folder / (name + ending) for format, ending in endings.items()}

    def check(self, names: Sequence[str]) -> None:
        """Raises an OSError where files are in the way or the folder cannot be written to."""
        for name in [] if self.overwrite else names:
            for path in self.paths(name).values():
                if path.exists():
                    raise FileExistsError(
                        f"{path} exists already; choose another --output, or replace with "
                        f"--overwrite."
                    )
        there = next(
            path
            for path in (self.folder.absolute(), *self.folder.absolute().parents)
            if path.exists()
        )
        if not there.is_dir():
            raise NotADirectoryError(f"{there} is a file: --output names a folder.")
        if not os.access(there, os.W_OK | os.X_OK):
            raise PermissionError(f"{there} cannot be written to; choose another --output.")


def local_path(path: str | os.PathLike) -> Path:
    """The file or folder that a person names, "~" for the home folder; a ValueError for an address
    such as gs://…"""
    if "://" in (text := os.fspath(path)):
        raise ValueError(
            f"{text} is not a local path: name a local file or folder, and copy what it holds."
        )
    return Path(os.path.expanduser(text))


def check_formats(formats: tuple[str, ...]) -> None:
    """Raises a ValueError that names the formats there are, unless all of these are."""
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        raise ValueError(
            f"There is no format {', '.join(unknown) or 'at all'}: choose among {', '.join(FORMATS)}."
        )
