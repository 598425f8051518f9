"""Images and clips that a video begins with, from whatever a person has: files, Pillow images,
arrays.

upright     as the EXIF tag says
8-bit RGB   transparent parts over white, 16-bit grey scaled to 8, palettes and CMYK converted, an
animation's first
            frame
size        fit="resize": stretched to the size whatever the aspect ratio, which is VideoMAR's rule
for the
            conditioning image; fit="crop": the aspect ratio kept, both sides cut off evenly
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageOps

from videomar_jax.data.decode import read_video
from videomar_jax.types import UInt8

Given: TypeAlias = str | os.PathLike | Image.Image | np.ndarray
"""What a video may begin with: an image file, a Pillow image, uint8 [Hp, Wp, 3], or a clip, uint8
[G, Hp, Wp, 3]."""


def load_image(
    path: str | os.PathLike, *, height: int, width: int, fit: str = "resize"
) -> UInt8[np.ndarray, "{height} {width} 3"]:
    """Reads any picture that Pillow knows as RGB of the size asked for.

    Raises FileNotFoundError for a missing file, ValueError for one that is no image, or damaged, or
    of floats.
    """
    check_fit(height, width, fit)
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no image file {os.fspath(path)!r}.")
    with _faults_named(os.fspath(path)), Image.open(path) as opened:
        picture = _to_rgb(ImageOps.exif_transpose(opened))
    return _sized(picture, height, width, fit)


def load_clip(
    path: str | os.PathLike,
    frames: int,
    *,
    fps: float | int,
    height: int,
    width: int,
    fit: str = "resize",
) -> UInt8[np.ndarray, "{frames} {height} {width} 3"]:
    """The last `frames` frames of a video file at `fps` frames per second (nearest presentation
    times), to go on from.

    Raises FileNotFoundError for a missing file, ValueError for one that does not decode or is too
    short.
    """
    check_fit(height, width, fit)
    video, _ = read_video(Path(path), fps=float(fps))
    if len(video) < frames:
        raise ValueError(
            f"{os.fspath(path)} has {len(video)} frames at {fps:g} fps, {frames} are to be given."
        )
    return given_frames(video[-frames:], height=height, width=width, fit=fit)


def given_frames(
    given: Given, *, height: int, width: int, fit: str = "resize"
) -> UInt8[np.ndarray, "G {height} {width} 3"]:
    """The conditioning frames in anything that `Given` names, G = 1 for an image.

    Raises:
        FileNotFoundError, ValueError: as `load_image`; an array of another type or shape.
    """
    check_fit(height, width, fit)
    if isinstance(given, str | os.PathLike):
        return load_image(given, height=height, width=width, fit=fit)[None]
    if isinstance(given, Image.Image):
        with _faults_named("the image"):
            picture = _to_rgb(ImageOps.exif_transpose(given))
        return _sized(picture, height, width, fit)[None]
    given = np.asarray(given)
    if (
        given.dtype != np.uint8
        or given.ndim not in (3, 4)
        or given.shape[-1] != 3
        or 0 in given.shape
    ):
        raise ValueError(
            f"An image is uint8 [height, width, 3], a clip uint8 [frames, height, width, 3], both RGB in 0..255; got "
            f"{given.dtype} {given.shape}. PIL.Image.fromarray helps with other kinds."
        )
    frames = given if given.ndim == 4 else given[None]
    return np.stack(
        [_sized(Image.fromarray(np.ascontiguousarray(f)), height, width, fit) for f in frames]
    )


def check_fit(height: int, width: int, fit: str) -> None:
    """Raises a ValueError for a size or a way of fitting that makes no sense."""
    if fit not in ("resize", "crop"):
        raise ValueError(f'fit must be "resize" or "crop", got {fit!r}.')
    if height < 1 or width < 1:
        raise ValueError(f"height and width must be at least 1, got {height} x {width}.")


@contextmanager
def _faults_named(name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError(f"{name!r} cannot be read as an image: {error}") from error


def _sized(picture: Image.Image, height: int, width: int, fit: str) -> np.ndarray:
    if picture.size == (width, height):
        return np.array(picture)
    if fit == "crop":
        return np.array(ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS))
    return np.array(picture.resize((width, height), Image.Resampling.LANCZOS))


def _to_rgb(picture: Image.Image) -> Image.Image:
    """Eight-bit RGB from any Pillow mode, transparent parts over white."""
    if picture.mode == "F":
        raise ValueError("its values are floats of unknown range; save it with 8 or 16 bits")
    if picture.mode.startswith("I"):
        grey = np.asarray(picture).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise ValueError("its 32-bit values exceed 16 bits; save it with 8 or 16 bits")
        return Image.fromarray((grey / 257).round().astype(np.uint8)).convert("RGB")
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    picture = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
