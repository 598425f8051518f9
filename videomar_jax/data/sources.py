"""What a source of clips is: numbered, random access, any size on request.

A source does not know batches, epochs or shuffling (`pipeline`), and a model never sees a source. The size of a clip
is an argument of `read`, so a curriculum reads one source at growing sizes.

    read(index, rng, shape) -> {"video": uint8 [F, Hp, Wp, 3], "caption": str}

The clip depends on the arguments and the source's own settings only: the same call gives the same clip, from any
thread, in any order. Whatever is drawn at random comes from `rng`; a source that cuts nothing at random ignores it.
"""

from dataclasses import dataclass, fields
from typing import Protocol, TypedDict, runtime_checkable

import numpy as np

from videomar_jax.types import UInt8


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
                raise ValueError(f"ClipShape.{field.name} must be a whole number >= 1, got {value!r}")


class Clip(TypedDict):
    """One clip and the text that goes with it (an empty string where there is none)."""

    video: UInt8[np.ndarray, "F Hp Wp 3"]
    caption: str


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


def check_index(index: int, length: int) -> None:
    """Raises IndexError unless 0 <= index < length."""
    if not 0 <= index < length:
        raise IndexError(f"clip {index} asked of a source of {length} clips (0..{length - 1})")
