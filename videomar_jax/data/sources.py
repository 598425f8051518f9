"""What a source of clips is: numbered, random access, any size on request.

A source does not know batches, epochs or shuffling (`pipeline`), and a model never sees a source.
The size of a clip is an argument of `read`, so a curriculum reads one source at growing sizes.

    read(index, rng, shape) -> {"video": uint8 [F, Hp, Wp, 3], "caption": str}

A source of prepared clips gives `latents` for `video`, and may add the features of the caption:

    {"latents": float [T, h, w, C], "caption": str, "text": float [K, E], "text_mask": bool [K]}

The clip depends on the arguments and the source's own settings only: the same call gives the same
clip, from any thread, in any order. Whatever is drawn at random comes from `rng`; a source that
cuts nothing at random ignores it.

A source that knows how long and wide its clips are says which of them a shape is for
(`SizedSource.fits`), so that each is cut to the size that is nearest to its own aspect ratio.
Without it every clip is for every shape. One whose clips come from files has `name(index) -> str`,
what reports call the file (`name_of`).

`digest() -> str` tells two sources of different clips apart, without reading them (`digest_of`):
number `index` of two sources of equal digest is a clip of the same name and length. Neither the
place of files nor their captions count.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol, TypedDict, runtime_checkable

import numpy as np

from videomar_jax.types import Bool, Float, Int, UInt8

Sizes = Sequence[Sequence[int]]
"""Pixel (rows, columns) that a clip may be cut to."""


@dataclass(frozen=True, kw_only=True)
class ClipShape:
    """Pixel frames, rows and columns of a clip; all at least 1."""

    num_frames: int
    height: int
    width: int

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(
                    f"ClipShape.{field.name} must be a whole number >= 1, got {value!r}"
                )


class Clip(TypedDict, total=False):
    """One clip, as pixels or as latents, and the text that goes with it (an empty string where
    there is none)."""

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

        Raises IndexError for an index outside, ValueError where no clip of that shape can be cut.
        """
        ...


@runtime_checkable
class SizedSource(ClipSource, Protocol):
    """A source that knows the lengths and sizes of its clips."""

    def fits(self, shape: ClipShape, sizes: Sizes) -> Int[np.ndarray, "clips"]:
        """Ascending indices of the clips that are cut to `shape`: those long enough for its frames
        and, of `sizes` (one of which is the shape's own), nearest to its rows and columns. May be
        empty."""
        ...


def clips_for(source: ClipSource, shape: ClipShape, sizes: Sizes) -> Int[np.ndarray, "clips"]:
    """The indices of the clips of any source that are cut to `shape`, where they may be cut to
    `sizes`."""
    if isinstance(source, SizedSource):
        return np.asarray(source.fits(shape, sizes), np.int64)
    return np.arange(len(source))


def name_of(source: ClipSource, index: int) -> str:
    """What clip number `index` is cut from, as the source calls it; "" where it has no names."""
    return source.name(index) if hasattr(source, "name") else ""


def digest_of(source: ClipSource) -> str:
    """What tells this source from one of other clips; "" where it has no digest."""
    return source.digest() if hasattr(source, "digest") else ""


def short_digest(*values: Any) -> str:
    """16 hexadecimal digits for plain values (those of JSON)."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def nearest_sizes(
    rows: Int[np.ndarray, "clips"], columns: Int[np.ndarray, "clips"], sizes: Sizes
) -> Int[np.ndarray, "clips"]:
    """For clips of these rows and columns the number of the size with the nearest aspect ratio.

    Nearest is the least |log(width / height) - log(columns / rows)|; of equals the first of
    `sizes`.
    """
    wanted = np.array([np.log(width / height) for height, width in sizes])
    return np.argmin(np.abs(np.log(columns / rows)[:, None] - wanted), axis=1)


class Subset:
    """Some clips of a source, in the order of `indices`, as a source of their own."""

    def __init__(self, source: ClipSource, indices: Sequence[int] | Int[np.ndarray, "clips"]):
        if not len(indices):
            raise ValueError("a part of a source must hold at least one clip")
        self.fps = source.fps
        self._source, self._indices = source, np.asarray(indices, np.int64)

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
        """Of the source and of which of its clips are here; "" where the source has none."""
        whole = digest_of(self._source)
        return whole and short_digest(whole, self._indices.tolist())

    def fits(self, shape: ClipShape, sizes: Sizes) -> Int[np.ndarray, "clips"]:
        """The clips of this part that the source says are for `shape`."""
        return np.flatnonzero(np.isin(self._indices, clips_for(self._source, shape, sizes)))


class Decoded:
    """A source of latents whose clips have their video as well, for what is shown and scored.

    decode: latents [T, h, w, C] to uint8 video [F, Hp, Wp, 3].
    """

    def __init__(self, source: ClipSource, decode: Callable[[np.ndarray], np.ndarray]):
        self.fps = source.fps
        self._source, self._decode = source, decode

    def __len__(self) -> int:
        return len(self._source)

    def read(self, index: int, rng: np.random.Generator, shape: ClipShape) -> Clip:
        """The source's clip with its `video`."""
        clip = self._source.read(index, rng, shape)
        return clip if "video" in clip else Clip(**clip, video=self._decode(clip["latents"]))

    def name(self, index: int) -> str:
        """As the source calls it."""
        return name_of(self._source, index)

    def digest(self) -> str:
        """The source's."""
        return digest_of(self._source)

    def fits(self, shape: ClipShape, sizes: Sizes) -> Int[np.ndarray, "clips"]:
        """As the source says."""
        return clips_for(self._source, shape, sizes)


def check_index(index: int, length: int) -> None:
    """Raises IndexError unless 0 <= index < length."""
    if not 0 <= index < length:
        raise IndexError(f"clip {index} asked of a source of {length} clips (0..{length - 1})")
