"""Which frames of a video are for training and which are held out.

A video is cut at (1 - holdout) of its duration: frames presented before that belong to "train", the
rest to "test". Where the training part would be shorter than the shortest training clip, or the
held-out part shorter than a test clip, the video stays whole. It is then held out if it is long
enough for a test clip and

    u(name) = (first 8 bytes of SHA-256(name)) / 2^64 < holdout,

and is trained on otherwise. The name alone decides, so a video stays where it is when others are
added or removed. There are two exceptions: where nothing else is held out and another video is left
to train on, the video of the least u is held out; where nothing else is trained on, the video of
the greatest u is.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from videomar_jax.data.decode import VideoInfo, grid

Assignment = Literal["cut", "train", "test"]
"""A video is cut in two, or belongs to one split as a whole."""

# Seconds by which two equal times may differ after rounding.
_EPSILON = 1e-6


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A stretch of a video."""

    path: Path
    split: str
    """The split that the stretch is cut for; "" for the whole video."""
    first: float
    """Presentation time of the first frame, in seconds."""
    last: float
    """Presentation time of the last frame, in seconds."""
    frames: int
    """Frames that the file has in it."""
    rate: float
    """Frames per second of the file."""
    rows: int
    columns: int

    def count(self, fps: float) -> int:
        """Frames at `fps`."""
        return len(grid(self.first, self.last, fps))


@dataclass(frozen=True, kw_only=True)
class SplitVideo:
    """A file and the shots of its stretches; a stretch without frames has none.

    Where no cuts are looked for, a stretch is one shot.
    """

    path: Path
    whole: tuple[Segment, ...]
    train: tuple[Segment, ...]
    test: tuple[Segment, ...]

    def shots(self, split: str) -> tuple[Segment, ...]:
        """Those of "train" or "test" of a video that is cut in two, or of the "whole" video."""
        return {"train": self.train, "test": self.test, "whole": self.whole}[split]

    def longest(self, split: str, fps: float) -> int:
        """Frames at `fps` of the longest shot; 0 if there is none."""
        return max((shot.count(fps) for shot in self.shots(split)), default=0)


def split_video(
    path: Path, info: VideoInfo, holdout: float, cuts: Sequence[float] = ()
) -> SplitVideo:
    """The shots of a file for a held-out share in [0, 1).

    Args:
        cuts: times at which a shot begins, in seconds (`cuts`).
    """
    duration = info.times[-1] - info.times[0] + 1 / info.fps
    in_train = info.times < info.times[0] + (1 - holdout) * duration
    return SplitVideo(
        path=path,
        whole=_shots(path, info, "", info.times, cuts),
        train=_shots(path, info, "train", info.times[in_train], cuts),
        test=_shots(path, info, "test", info.times[~in_train], cuts),
    )


def _shots(
    path: Path, info: VideoInfo, split: str, times: np.ndarray, cuts: Sequence[float]
) -> tuple[Segment, ...]:
    """The shots that frames of these times belong to."""
    starts = np.searchsorted(times, np.asarray(cuts) - _EPSILON)
    shots = np.split(times, starts)
    return tuple(_segment(path, info, split, shot) for shot in shots if len(shot))


def _segment(path: Path, info: VideoInfo, split: str, times: np.ndarray) -> Segment:
    return Segment(
        path=path,
        split=split,
        first=float(times[0]),
        last=float(times[-1]),
        frames=len(times),
        rate=info.fps,
        rows=info.height,
        columns=info.width,
    )


def hash_fraction(name: str) -> float:
    """u of the module's text, in [0, 1)."""
    digest = hashlib.sha256(name.encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def assign(
    videos: Sequence[SplitVideo],
    names: Sequence[str],
    *,
    holdout: float,
    fps: float,
    shortest: tuple[int, int],
) -> list[Assignment]:
    """Decides for each video whether it is cut, or which split it belongs to.

    Args:
        names: of the videos; they decide.
        shortest: frames at `fps` of the shortest training clip and of a test clip. A video that is
            long enough for neither counts as cut.
    """
    fractions = [hash_fraction(name) for name in names]
    assigned: list[Assignment] = [
        _assign_alone(video, fraction, holdout, fps, shortest)
        for video, fraction in zip(videos, fractions, strict=True)
    ]
    if any(_can_be_cut(video, fps, shortest) for video in videos):
        return assigned  # Both splits have clips.
    shortest_train, shortest_test = shortest
    train = [i for i, split in enumerate(assigned) if split == "train"]
    test = [i for i, split in enumerate(assigned) if split == "test"]
    if not test and len(train) > 1:
        long = [i for i in train if videos[i].longest("whole", fps) >= shortest_test]
        if long:
            assigned[min(long, key=fractions.__getitem__)] = "test"
    elif not train:
        long = [i for i in test if videos[i].longest("whole", fps) >= shortest_train]
        if long:
            assigned[max(long, key=fractions.__getitem__)] = "train"
    return assigned


def _assign_alone(
    video: SplitVideo, fraction: float, holdout: float, fps: float, shortest: tuple[int, int]
) -> Assignment:
    """The assignment of a video, whatever the others are."""
    if _can_be_cut(video, fps, shortest):
        return "cut"
    shortest_train, shortest_test = shortest
    count = video.longest("whole", fps)
    if fraction < holdout and count >= shortest_test:
        return "test"
    return "train" if count >= shortest_train else "cut"


def _can_be_cut(video: SplitVideo, fps: float, shortest: tuple[int, int]) -> bool:
    """Whether both stretches have a shot that is long enough for a clip."""
    shortest_train, shortest_test = shortest
    return (
        video.longest("train", fps) >= shortest_train
        and video.longest("test", fps) >= shortest_test
    )
