"""Which windows of which videos make which shard, fixed before the first clip is encoded.

Windows are sorted by split, shape, video and time, and all of one split and shape are cut into
shards of `clips_per_shard`. A shard's content follows from the plan alone, so that any process can
make it at any time, again after a kill, and the same clips come out.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from videomar_jax.checks import BelowOne, Count, UserError, check_fields, one_of
from videomar_jax.data.captions import read_captions
from videomar_jax.data.records import DTYPES
from videomar_jax.data.sources import ClipShape
from videomar_jax.data.windows import Cutting, Window, cut_video, find_videos
from videomar_jax.preparation.progress import Progress, read_ahead

_REASONS_SHOWN = 10
"""Rejected videos that a message names."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What decides the content of a prepared folder, besides tokenizer, text encoder and videos.

    Raises:
        UserError: a value outside its range, by name.
    """

    cutting: Cutting
    """How videos become windows."""
    dtype: str = "float16"
    """Of latents and text features on disk: float16 or bfloat16."""
    clips_per_shard: Count = 256
    """Clips in one file: what a kill loses at most."""
    holdout: BelowOne = 0.05
    """Share of the windows of every shape that go to the split "test", the last ones of a video."""

    def __post_init__(self):
        check_fields("settings", self)
        one_of("dtype", self.dtype, DTYPES)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardPlan:
    """One file to be made: number `number` of the `count` of its split.

    first_clip: the number of its first window among all clips.
    """

    split: str
    number: int
    count: int
    shape: ClipShape
    first_clip: int
    windows: tuple[Window, ...]

    @property
    def name(self) -> str:
        """The file's name, of the form that TFDS expects."""
        return f"clips-{self.split}.array_record-{self.number:05d}-of-{self.count:05d}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that is decided before the first clip is encoded.

    identities: what distinguishes the tokenizer and the text encoder from others (`run.identify`).
    videos: bytes and caption of every file by its name.
    rejected: {"file", "reason"} of the videos that give no window.
    """

    settings: Settings
    identities: Mapping[str, Any]
    videos: Mapping[str, tuple[int, str]]
    rejected: Sequence[Mapping[str, Any]]
    shards: Sequence[ShardPlan]

    @property
    def clips(self) -> int:
        """Windows in all shards together."""
        return sum(len(shard.windows) for shard in self.shards)


def list_videos(folder: Path, captions: Path | None) -> dict[str, tuple[int, str]]:
    """Bytes and caption of every video by its name; errors as `find_videos` and `read_captions`."""
    sizes = find_videos(folder)
    texts = read_captions(folder, [folder / name for name in sizes], captions)
    return {name: (size, texts[folder / name]) for name, size in sizes.items()}


def make_plan(
    folder: Path,
    videos: Mapping[str, tuple[int, str]],
    settings: Settings,
    identities: Mapping[str, Any],
    threads: int,
) -> Plan:
    """Looks at every video (its packets and the first frame) and plans all shards.

    Raises:
        UserError: no video can be used.
    """
    windows: list[Window] = []
    rejected: list[dict[str, str]] = []
    progress = Progress("videos looked at", len(videos))

    def look(name: str) -> list[Window] | str:
        _, caption = videos[name]
        try:
            return cut_video(folder, name, caption, settings.cutting)
        except (ValueError, OSError) as error:
            return str(error)

    results = read_ahead(look, videos, threads=threads, ahead=4 * threads)
    for name, found in zip(videos, results, strict=True):
        progress.add(failed=isinstance(found, str))
        if isinstance(found, str):
            rejected.append({"file": name, "reason": found})
        else:
            windows += found
    if not windows:
        reasons = [f"  {entry['reason']}" for entry in rejected[:_REASONS_SHOWN]]
        lines = [f"None of the {len(videos)} videos under {folder} can be used:", *reasons]
        raise UserError("\n".join(lines))
    return Plan(
        settings=settings,
        identities=identities,
        videos=videos,
        rejected=rejected,
        shards=tuple(plan_shards(windows, settings)),
    )


def plan_shards(windows: Sequence[Window], settings: Settings) -> Iterator[ShardPlan]:
    """Windows, in the order of videos and time, as shards."""
    by_shape: dict[ClipShape, list[Window]] = {}
    for length in settings.cutting.lengths:
        for height, width in settings.cutting.sizes:
            by_shape[ClipShape(num_frames=length, height=height, width=width)] = []
    for window in windows:
        by_shape[window.shape].append(window)
    held_out = {shape: _held_out(found, settings.holdout) for shape, found in by_shape.items()}
    first_clip = 0
    for split in ("train", "test"):
        groups: list[tuple[ClipShape, list[Window]]] = []
        for shape, found in by_shape.items():
            own = []
            for window, is_held_out in zip(found, held_out[shape], strict=True):
                if is_held_out == (split == "test"):
                    own.append(window)
            step = settings.clips_per_shard
            groups += [(shape, own[start : start + step]) for start in range(0, len(own), step)]
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
        # The whole numbers that count * windows / total passes within this video.
        held_out = (begin + size) * count // total - begin * count // total
        flags += [False] * (size - held_out) + [True] * held_out
    return flags
