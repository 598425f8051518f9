"""Memory for the decoded frames of short clips, which are read again in every epoch."""

import threading
from pathlib import Path
from typing import NamedTuple

import numpy as np

# A frame size that this many reads did not ask for is taken to be over (a stage has ended).
_STALE = 1000

Frames = list[tuple[float, np.ndarray]]
"""(presentation time, picture) of the frames of a clip."""


class FrameKey(NamedTuple):
    """A stretch of a file, and the size that its frames are scaled to cover."""

    path: Path
    first: float
    """The time of the first frame, in seconds."""
    height: int
    width: int


class FrameCache:
    """Decoded, scaled clips by file and frame size, for any number of threads.

    Clips are read in random order, so the first to arrive are as good to keep as any: nothing is
    replaced while its frame size is in use. Clips of a size that is no longer asked for make room
    for others.

    Args:
        budget: bytes of frames that are kept.
    """

    def __init__(self, budget: int):
        self._budget = budget
        self._used = 0
        self._reads = 0
        self._clips: dict[FrameKey, Frames] = {}
        # Frame size → number of the last read that asked for it.
        self._last_read: dict[tuple[int, int], int] = {}
        self._lock = threading.Lock()

    def get(self, key: FrameKey) -> Frames | None:
        """The frames of a clip, where they are kept."""
        with self._lock:
            self._reads += 1
            self._last_read[key.height, key.width] = self._reads
            return self._clips.get(key)

    def fits(self, size: int) -> bool:
        """Whether there is room for this many bytes, if need be after dropping stale clips."""
        with self._lock:
            if self._used + size > self._budget:
                self._drop_stale()
            return self._used + size <= self._budget

    def put(self, key: FrameKey, frames: Frames) -> None:
        """Keeps a clip, if there is room."""
        size = _bytes(frames)
        with self._lock:
            if key not in self._clips and self._used + size <= self._budget:
                self._clips[key] = frames
                self._used += size

    def _drop_stale(self) -> None:
        stale = {size for size, read in self._last_read.items() if self._reads - read > _STALE}
        for key in list(self._clips):
            if (key.height, key.width) in stale:
                self._used -= _bytes(self._clips.pop(key))


def _bytes(frames: Frames) -> int:
    return sum(picture.nbytes for _, picture in frames)
