"""Which frames of a video are for training and which are held out.

A video is cut at (1 - holdout) of its duration: frames presented before that belong to "train", the
rest to "test". Where the training part would be shorter than the shortest training clip, or the
held-out part shorter than a test clip, the video stays whole. It is then held out if it is long
enough for a test clip and

    u(name) = (first 8 bytes of SHA-256(name)) / 2^64 < holdout,

and else trained on. The name decides alone, so that a video stays where it is when others come or
go, but for two
cases: where nothing else is held out the video of the least u is, if another one is left to train
    on; where nothing
else is trained on the video of the greatest u is.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from videomar_jax.data.decode import VideoInfo, grid

Share = Literal["cut", "train", "test", "all"]
"""Cut in two, or given as a whole to a split."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A stretch of a video: its first and last presentation time (s), how many frames the file has
    between them, and
    what holds for the file: frames a second, rows, columns. part: "train", "test", or "" for the
        whole."""

    path: Path
    part: str
    first: float
    last: float
    rate: float
    frames: int
    rows: int
    columns: int

    def count(self, fps: float) -> int:
        """Frames at `fps`."""
        return len(grid(self.first, self.last, fps))


@dataclass(frozen=True, kw_only=True)
class Video:
    """A file and its stretches; None for a part without frames."""

    path: Path
    whole: Piece
    train: Piece | None
    test: Piece | None

    def part(self, split: str) -> Piece | None:
        """The part of a cut video that belongs to "train" or "test"."""
        return self.train if split == "train" else self.test


def divide(path: Path, info: VideoInfo, holdout: float) -> Video:
    """The stretches of a file for a held-out share in [0, 1)."""
    duration = info.times[-1] - info.times[0] + 1 / info.fps
    in_train = info.times < info.times[0] + (1 - holdout) * duration

    def piece(part: str, times: np.ndarray) -> Piece | None:
        if not len(times):
            return None
        return Piece(
            path=path,
            part=part,
            first=float(times[0]),
            last=float(times[-1]),
            rate=info.fps,
            frames=len(times),
            rows=info.height,
            columns=info.width,
        )

    whole = piece("", info.times)
    return Video(
        path=path,
        whole=whole,
        train=piece("train", info.times[in_train]),
        test=piece("test", info.times[~in_train]),
    )


def draw(name: str) -> float:
    """u of the module's text, in [0, 1)."""
    return (
        int.from_bytes(hashlib.sha256(name.encode(errors="surrogateescape")).digest()[:8], "big")
        / 2**64
    )


def shares(
    videos: Sequence[Video],
    names: Sequence[str],
    *,
    holdout: float,
    fps: float,
    shortest: tuple[int, int],
) -> list[Share]:
    """What becomes of each video.

    names: what is drawn by; one for each video.
    shortest: frames at `fps` of the shortest training clip and of a test clip. A video that is long
        enough for neither counts as cut.
    """
    drawn = [draw(name) for name in names]
    found = [
        _share(video, u, holdout, fps, shortest) for video, u in zip(videos, drawn, strict=True)
    ]
    if any(_can_be_cut(video, fps, shortest) for video in videos):
        return found  # both splits have clips
    train, test = (
        [i for i, share in enumerate(found) if share == split] for split in ("train", "test")
    )
    if not test and len(train) > 1:
        if long := [i for i in train if videos[i].whole.count(fps) >= shortest[1]]:
            found[min(long, key=drawn.__getitem__)] = "test"
    elif not train:
        if long := [i for i in test if videos[i].whole.count(fps) >= shortest[0]]:
            found[max(long, key=drawn.__getitem__)] = "train"
    return found


def _share(video: Video, u: float, holdout: float, fps: float, shortest: tuple[int, int]) -> Share:
    if _can_be_cut(video, fps, shortest):
        return "cut"
    count = video.whole.count(fps)
    if u < holdout and count >= shortest[1]:
        return "test"
    return "train" if count >= shortest[0] else "cut"


def _can_be_cut(video: Video, fps: float, shortest: tuple[int, int]) -> bool:
    parts = zip((video.train, video.test), shortest, strict=True)
    return all(part is not None and part.count(fps) >= least for part, least in parts)
