"""What a source of clips is: numbered clips, read in any order, at any size on request.

A source knows neither batches nor epochs nor shuffling (see `loader`), and a model never sees a
source. The size of a clip is an argument of `read`, so a curriculum reads one source at growing
sizes:

    read(index, rng, shape) -> {"video": uint8 [F, Hp, Wp, 3], "caption": str}

A source of prepared clips returns `latents` in place of `video`, and may add features of the
caption:

    {"latents": float [T, h, w, C], "caption": str, "text": float [K, E], "text_mask": bool [K]}

A clip depends on the arguments and the source's own settings only: the same call returns the same
clip, from any thread, in any order. Whatever is random comes from `rng`; a source that cuts nothing
at random ignores it.

Optional methods of a source, with the function that asks for them:

    fits(shape, sizes)   which clips are cut to a shape (`clips_for`); without it, every clip is
    name(index)          what reports call the file of a clip (`name_of`)
    digest()             tells two sources of different clips apart without reading them
                         (`digest_of`). Clips of equal number of two sources of equal digest have
                         the same name and length. Neither the place of the files nor their contents
                         and captions count.
    contents()           what the clips come from, to tell whether it has changed (`contents_of`)
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypedDict, runtime_checkable

import numpy as np

from videomar_jax.checks import Count, UserError, check_fields
from videomar_jax.io.files import sha256
from videomar_jax.io.log import log
from videomar_jax.types import Bool, Float, Int, UInt8

Sizes = Sequence[Sequence[int]]
"""Pixel (rows, columns) that a clip may be cut to."""


@dataclass(frozen=True, kw_only=True)
class SourceKind:
    """What is true of all sources of one class; they carry it as `KIND`."""

    name: str
    """What `data.kind` calls it."""
    description: str
    """What the clips are, in a few words."""
    place: str = ""
    """What `data.path` names, such as "the folder of clips"; "" where nothing needs to be named."""
    place_form: str = ""
    """What stands for the place in a command line, such as "DIR"."""
    prepared: bool = False
    """Clips are latents, stored with the tokenizer and the text encoder that made them."""
    any_shape: bool = True
    """Every clip can be read at the shape that it was opened for; else ask `clips_for`."""


@dataclass(frozen=True, kw_only=True)
class ClipShape:
    """The size of a clip in pixels.

    Raises:
        UserError: a value below 1, by name.
    """

    num_frames: Count
    """Frames."""
    height: Count
    """Rows of a frame."""
    width: Count
    """Columns of a frame."""

    def __post_init__(self):
        check_fields("ClipShape", self)


class Clip(TypedDict, total=False):
    """One clip, as pixels or as latents, and its text ("" where there is none)."""

    video: UInt8[np.ndarray, "F Hp Wp 3"]
    latents: Float[np.ndarray, "T h w C"]
    caption: str
    text: Float[np.ndarray, "K E"]
    text_mask: Bool[np.ndarray, "K"]


@runtime_checkable
class ClipSource(Protocol):
    """Random access to clips."""

    fps: float
    """Frames per second of every clip that `read` returns."""

    def __len__(self) -> int:
        """How many indices `read` takes; at least 1."""
        ...

    def read(self, index: int, rng: np.random.Generator, shape: ClipShape) -> Clip:
        """Clip number `index`, 0 <= index < len(self), cut to `shape`.

        Raises:
            IndexError: an index outside.
            UserError: the file of the clip is damaged, or too short for the shape.
        """
        ...


@runtime_checkable
class SizedSource(ClipSource, Protocol):
    """A source that knows the lengths and sizes of its clips."""

    def fits(self, shape: ClipShape, sizes: Sizes) -> Int[np.ndarray, "clips"]:
        """Ascending indices of the clips that are cut to `shape`; may be empty.

        These are the clips with enough frames to which, of `sizes`, the shape's rows and columns
        are nearest. The shape's own size is one of `sizes`.
        """
        ...


def clips_for(source: ClipSource, shape: ClipShape, sizes: Sizes) -> Int[np.ndarray, "clips"]:
    """Ascending indices of the clips of any source that are cut to `shape`, one of `sizes`."""
    if isinstance(source, SizedSource):
        return np.asarray(source.fits(shape, sizes), np.int64)
    return np.arange(len(source))


def name_of(source: ClipSource, index: int) -> str:
    """The name of the file that clip number `index` comes from; "" where clips have no names."""
    name = getattr(source, "name", None)
    return name(index) if name else ""


def digest_of(source: ClipSource) -> str:
    """What tells this source from one of other clips; "" where it has no digest."""
    digest = getattr(source, "digest", None)
    return digest() if digest else ""


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What the clips of a source come from."""

    files: Sequence[Path] = ()
    """Files, in an order that does not depend on where they are."""
    captions: Any = ()
    """What is not in these files, of plain values (those of JSON)."""

    def stamp(self) -> str:
        """Changes whenever a file is written to or replaced, and where it is moved."""
        facts = []
        for file in self.files:
            about = file.stat()
            times = (about.st_mtime_ns, about.st_ctime_ns)
            facts.append((os.fspath(file), about.st_ino, about.st_size, *times))
        return short_digest(facts)

    def digest_of_files(self) -> str:
        """Of all bytes, wherever they are: it reads everything."""
        size = sum(file.stat().st_size for file in self.files)
        if size > _LARGE:
            log.info("reading %.1f GB of clips once, to know them again", size / 1e9)
        with ThreadPoolExecutor(max_workers=8) as pool:
            return short_digest(list(pool.map(sha256, self.files)))

    def digest_of_captions(self) -> str:
        """Of the rest."""
        return short_digest(self.captions)


_LARGE = 10**9


def contents_of(source: ClipSource) -> Contents:
    """What the clips come from; nothing for a source that does not say."""
    contents = getattr(source, "contents", None)
    return contents() if contents else Contents()


def short_digest(*values: Any) -> str:
    """16 hexadecimal digits for plain values (those of JSON)."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def nearest_sizes(
    rows: Int[np.ndarray, "clips"], columns: Int[np.ndarray, "clips"], sizes: Sizes
) -> Int[np.ndarray, "clips"]:
    """The number of the size with the nearest aspect ratio, for clips of these rows and columns.

    Nearest is the least |log(width / height) - log(columns / rows)|; of equals, the first of
    `sizes`.
    """
    wanted = np.array([np.log(width / height) for height, width in sizes])
    distances = np.abs(np.log(columns / rows)[:, None] - wanted)
    return np.argmin(distances, axis=1)


class Subset:
    """Some clips of a source, in the order of `indices`, as a source of their own.

    Raises:
        UserError: there are no indices.
    """

    def __init__(self, source: ClipSource, indices: Sequence[int] | Int[np.ndarray, "clips"]):
        if not len(indices):
            raise UserError("A part of a source must hold at least one clip.")
        self.fps = source.fps
        self._source = source
        self._indices = np.asarray(indices, np.int64)

    def __len__(self) -> int:
        return len(self._indices)

    def read(self, index: int, rng: np.random.Generator, shape: ClipShape) -> Clip:
        """As the whole source reads it."""
        check_index(index, len(self))
        return self._source.read(int(self._indices[index]), rng, shape)

    def name(self, index: int) -> str:
        """As the whole source calls it."""
        return name_of(self._source, int(self._indices[index]))

    def digest(self) -> str:
        """Of the whole source and the indices; "" where the source has no digest."""
        whole = digest_of(self._source)
        return whole and short_digest(whole, self._indices.tolist())

    def contents(self) -> Contents:
        """Those of the whole source."""
        return contents_of(self._source)

    def fits(self, shape: ClipShape, sizes: Sizes) -> Int[np.ndarray, "clips"]:
        """The clips of this part that the whole source says are for `shape`."""
        return np.flatnonzero(np.isin(self._indices, clips_for(self._source, shape, sizes)))


class Decoded:
    """A source of latents whose clips have their video as well, to be shown and scored.

    Args:
        source: its clips may have a video already, which is kept.
        decode: latents [T, h, w, C] to uint8 video [F, Hp, Wp, 3].
    """

    def __init__(self, source: ClipSource, decode: Callable[[np.ndarray], np.ndarray]):
        self.fps = source.fps
        self._source = source
        self._decode = decode

    def __len__(self) -> int:
        return len(self._source)

    def read(self, index: int, rng: np.random.Generator, shape: ClipShape) -> Clip:
        """The source's clip with its `video`."""
        clip = self._source.read(index, rng, shape)
        if "video" in clip:
            return clip
        return {**clip, "video": self._decode(clip["latents"])}

    def name(self, index: int) -> str:
        """As the source calls it."""
        return name_of(self._source, index)

    def digest(self) -> str:
        """The source's."""
        return digest_of(self._source)

    def contents(self) -> Contents:
        """The source's."""
        return contents_of(self._source)

    def fits(self, shape: ClipShape, sizes: Sizes) -> Int[np.ndarray, "clips"]:
        """As the source says."""
        return clips_for(self._source, shape, sizes)


def check_index(index: int, length: int) -> None:
    """Raises an IndexError unless 0 <= index < length."""
    if not 0 <= index < length:
        raise IndexError(f"clip {index} asked of a source of {length} clips (0..{length - 1})")
