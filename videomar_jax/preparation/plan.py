"""Which windows of which videos make which shard, fixed before the first clip is encoded.

Windows are sorted by split, shape, video and time, and each run of one split and shape is cut into
shards of `clips_per_shard`. A shard's content follows from the plan alone, so that any process can
make it at any time, again after a kill, and the same clips come out.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from videomar_jax.data.captions import read_captions
from videomar_jax.data.records import DTYPES
from videomar_jax.data.sources import ClipShape
from videomar_jax.data.windows import Cutting, Window, cut_video, find_videos
from videomar_jax.preparation.progress import Progress, read_ahead


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What decides the content of a prepared folder, besides tokenizer, text encoder and videos.

    dtype: of latents and text features on disk.
    holdout: share of the windows that go to the split "test": of every shape as many, of a video
        its last ones.
    """

    cutting: Cutting
    dtype: str = "float16"
    clips_per_shard: int = 256
    holdout: float = 0.05

    def __post_init__(self):
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, not {self.dtype!r}")
        if self.clips_per_shard < 1:
            raise ValueError(f"clips_per_shard must be at least 1, not {self.clips_per_shard}")
        if not 0 <= self.holdout < 1:
            raise ValueError(f"holdout must be in [0, 1), not {self.holdout}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardPlan:
    """One file to be: number `number` of the `count` of its split. `first_clip` numbers its first
    window."""

    split: str
    number: int
    count: int
    shape: ClipShape
    first_clip: int
    windows: tuple[Window, ...]

    @property
    def name(self) -> str:
        return f"clips-{self.split}.array_record-{self.number:05d}-of-{self.count:05d}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that is decided before the first clip is encoded.

    parts: what tells the tokenizer and the text encoder from others (`identity`).
    videos: bytes and caption of every file by its name.
    rejected: {"file", "reason"} of the videos that give no window.
    """

    settings: Settings
    parts: Mapping[str, Any]
    videos: Mapping[str, tuple[int, str]]
    rejected: Sequence[Mapping[str, Any]]
    shards: Sequence[ShardPlan]

    @property
    def clips(self) -> int:
        return sum(len(shard.windows) for shard in self.shards)


def list_videos(folder: Path, captions: Path | None) -> dict[str, tuple[int, str]]:
    """Bytes and caption of every video; errors as `find_videos` and `read_captions`."""
    sizes = find_videos(folder)
    texts = read_captions(folder, [folder / name for name in sizes], captions)
    return {name: (size, texts[folder / name]) for name, size in sizes.items()}


def make_plan(
    folder: Path,
    videos: Mapping[str, tuple[int, str]],
    settings: Settings,
    parts: Mapping[str, Any],
    threads: int,
) -> Plan:
    """Looks at every video (packets, and the first frame). Raises ValueError where none is
    usable."""
    windows, rejected = [], []
    progress = Progress("videos looked at", len(videos))

    def look(name: str) -> list[Window] | str:
        try:
            return cut_video(folder, name, videos[name][1], settings.cutting)
        except (ValueError, OSError) as error:
            return str(error)

    for name, found in zip(
        videos, read_ahead(look, videos, threads=threads, ahead=4 * threads), strict=True
    ):
        progress.add(failed=isinstance(found, str))
        if isinstance(found, str):
            rejected.append({"file": name, "reason": found})
        else:
            windows += found
    if not windows:
        reasons = [f"  {entry['reason']}" for entry in rejected[:10]]
        raise ValueError(
            "\n".join([f"None of the {len(videos)} videos under {folder} can be used:", *reasons])
        )
    shards = tuple(plan_shards(windows, settings))
    return Plan(settings=settings, parts=parts, videos=videos, rejected=rejected, shards=shards)


def plan_shards(windows: Sequence[Window], settings: Settings) -> Iterator[ShardPlan]:
    """Windows, in the order of videos and time, as shards."""
    cutting = settings.cutting
    shapes = [
        ClipShape(num_frames=n, height=h, width=w)
        for n in cutting.lengths
        for h, w in cutting.sizes
    ]
    of_shape = [[window for window in windows if window.shape == shape] for shape in shapes]
    held_out = [_held_out(found, settings.holdout) for found in of_shape]
    first_clip = 0
    for split in ("train", "test"):
        groups: list[tuple[ClipShape, list[Window]]] = []
        for shape, found, flags in zip(shapes, of_shape, held_out, strict=True):
            mine = [
                window for window, out in zip(found, flags, strict=True) if out == (split == "test")
            ]
            step = settings.clips_per_shard
            groups += [(shape, mine[start : start + step]) for start in range(0, len(mine), step)]
        for number, (shape, group) in enumerate(groups):
            yield ShardPlan(
                split=split,
                number=number,
                count=len(groups),
                shape=shape,
                first_clip=first_clip,
                windows=tuple(group),
            )
            first_clip += len(group)


def _held_out(windows: Sequence[Window], share: float) -> list[bool]:
    """Which of the windows are for "test": the share, at least one but never all, spread evenly
    over the videos."""
    total = len(windows)
    count = min(max(round(total * share), 1), total - 1) if share and total else 0
    flags: list[bool] = []
    for _, group in groupby(windows, key=lambda window: window.video):
        begin, size = len(flags), len(list(group))
        out = (begin + size) * count // total - begin * count // total
        flags += [False] * (size - out) + [True] * out
    return flags
