"""The plan as a file, and what has changed since it was made.

A later start of the same command follows plan.json; it is refused if its settings, tokenizer, text
encoder or videos are not those of the plan, so that a folder never holds clips of two kinds.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from videomar_jax.checks import (
    Count,
    Natural,
    Size,
    UserError,
    check_value,
    from_values,
    known_keys,
)
from videomar_jax.data.sources import ClipShape
from videomar_jax.data.windows import Window
from videomar_jax.io.files import atomic_write, read_json, take_digest, with_digest
from videomar_jax.preparation.plan import Plan, Settings, ShardPlan

PLAN = "plan.json"
VERSION = 1


@dataclass(frozen=True, kw_only=True)
class _ShardEntry:
    """One shard in plan.json; windows as (number of the video, start, stop)."""

    split: Literal["train", "test"]
    number: Natural
    count: Count
    first_clip: Natural
    shape: tuple[Size, Size, Size]
    windows: tuple[tuple[Natural, float | int, float | int], ...]


@dataclass(frozen=True, kw_only=True)
class _PlanEntries:
    """plan.json; videos as (name, bytes, caption, time of the first frame)."""

    version: Literal[1]
    settings: Settings
    parts: Mapping[str, Any]
    videos: tuple[tuple[str, Natural, str, float | int | None], ...]
    rejected: tuple[Mapping[str, str], ...]
    shards: tuple[_ShardEntry, ...]


def save_plan(plan: Plan, output: Path) -> None:
    """Writes OUTPUT/plan.json in one move."""
    numbers = {name: number for number, name in enumerate(plan.videos)}
    firsts = {window.video: window.first for shard in plan.shards for window in shard.windows}
    videos = [
        [name, size, caption, firsts.get(name)] for name, (size, caption) in plan.videos.items()
    ]
    shards = [
        {
            "split": shard.split,
            "number": shard.number,
            "count": shard.count,
            "first_clip": shard.first_clip,
            "shape": dataclasses.astuple(shard.shape),
            "windows": [[numbers[w.video], w.start, w.stop] for w in shard.windows],
        }
        for shard in plan.shards
    ]
    values = {
        "version": VERSION,
        "settings": dataclasses.asdict(plan.settings),
        # The key of earlier versions.
        "parts": plan.identities,
        "videos": videos,
        "rejected": list(plan.rejected),
        "shards": shards,
    }
    atomic_write(output / PLAN, json.dumps(with_digest(values)) + "\n")


def load_plan(output: Path) -> Plan:
    """Reads OUTPUT/plan.json.

    Raises:
        UserError: it is damaged or of another version.
    """
    path = output / PLAN
    try:
        values = read_json(path)
        if isinstance(values, dict) and not take_digest(values):
            raise UserError("its SHA-256 differs from what it says")
        entries = from_values("", _PlanEntries, values)
        known_keys("parts", entries.parts, ("tokenizer", "text_encoder"), ("tokenizer",))
        check_value("parts.tokenizer", entries.parts["tokenizer"], Mapping)
        check_value("parts.text_encoder", entries.parts.get("text_encoder"), Mapping | None)
        _check_shards(entries)
        return Plan(
            settings=entries.settings,
            identities=entries.parts,
            videos={name: (size, caption) for name, size, caption, _ in entries.videos},
            rejected=values["rejected"],
            shards=tuple(_shard(entry, entries.videos) for entry in entries.shards),
        )
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): choose another --output.") from error


def _check_shards(entries: _PlanEntries) -> None:
    """Raises a UserError unless the shards follow each other, with windows of the plan's videos."""
    first_clip = 0
    numbers = {"train": 0, "test": 0}
    counts = Counter(shard.split for shard in entries.shards)
    cutting = entries.settings.cutting
    for shard in entries.shards:
        name = f"shard {shard.number} of {shard.split}"
        count = counts[shard.split]
        if (shard.number, shard.count) != (numbers[shard.split], count):
            raise UserError(f"{name} of {shard.count} should be {numbers[shard.split]} of {count}")
        numbers[shard.split] += 1
        if shard.first_clip != first_clip:
            raise UserError(f"{name} begins with clip {shard.first_clip}, not {first_clip}")
        first_clip += len(shard.windows)
        if not 1 <= len(shard.windows) <= entries.settings.clips_per_shard:
            raise UserError(f"{name} has {len(shard.windows)} windows")
        if shard.shape[0] not in cutting.lengths or shard.shape[1:] not in cutting.sizes:
            raise UserError(f"{name} has clips of {shard.shape}, which the settings do not name")
        for video, start, stop in shard.windows:
            if video >= len(entries.videos) or entries.videos[video][3] is None:
                raise UserError(f"{name} has a window of the video {video}, which is not listed")
            if not start < stop:
                raise UserError(f"{name} has a window from {start} to {stop} s")


def _shard(
    entry: _ShardEntry, videos: Sequence[tuple[str, int, str, float | int | None]]
) -> ShardPlan:
    num_frames, height, width = entry.shape
    shape = ClipShape(num_frames=num_frames, height=height, width=width)
    windows = tuple(
        Window(
            video=videos[number][0],
            first=float(videos[number][3] or 0.0),
            start=start,
            stop=stop,
            shape=shape,
            caption=videos[number][2],
        )
        for number, start, stop in entry.windows
    )
    return ShardPlan(
        split=entry.split,
        number=entry.number,
        count=entry.count,
        shape=shape,
        first_clip=entry.first_clip,
        windows=windows,
    )


def differences(plan: Plan, settings: Settings, identities: Mapping[str, Any]) -> list[str]:
    """What of settings, tokenizer and text encoder is not as planned, one line each."""
    before = _flat({**dataclasses.asdict(plan.settings), **plan.identities})
    now = _flat({**dataclasses.asdict(settings), **json.loads(json.dumps(identities))})
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return [f"{name} was {before.get(name)!r} and is {now.get(name)!r}" for name in names]


def changed_videos(plan: Plan, videos: Mapping[str, tuple[int, str]]) -> list[str]:
    """What of the videos and captions is not as planned, one line each."""
    changes = [f"{name} is new" for name in videos if name not in plan.videos]
    changes += [f"{name} is gone" for name in plan.videos if name not in videos]
    for name, (size, caption) in videos.items():
        if name not in plan.videos:
            continue
        old_size, old_caption = plan.videos[name]
        if size != old_size:
            changes.append(f"{name} had {old_size} bytes and has {size}")
        if caption != old_caption:
            changes.append(f"the caption of {name} was {old_caption!r} and is {caption!r}")
    return changes


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts as {"a.b": value}; sequences as lists."""
    if not isinstance(values, Mapping):
        return {prefix: json.loads(json.dumps(values))}
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return flat
