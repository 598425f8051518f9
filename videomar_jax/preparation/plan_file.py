"""The plan as a file, and what has changed since it was made.

A later start of the same command follows plan.json; it is refused if its settings, tokenizer, text
encoder or videos are not those of the plan, so that a folder never holds clips of two kinds.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from videomar_jax.checks import UserError
from videomar_jax.data.sources import ClipShape
from videomar_jax.data.windows import Cutting, Window
from videomar_jax.io.files import atomic_write, read_json
from videomar_jax.preparation.plan import Plan, Settings, ShardPlan

PLAN = "plan.json"
VERSION = 1


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
    atomic_write(output / PLAN, json.dumps(values) + "\n")


def load_plan(output: Path) -> Plan:
    """Reads OUTPUT/plan.json.

    Raises:
        UserError: it is damaged or of another version.
    """
    path = output / PLAN
    try:
        values = read_json(path)
        if values["version"] != VERSION:
            raise ValueError(f"version {values['version']}, this code reads {VERSION}")
        settings = _settings(values["settings"])
        shards = tuple(_shard(entry, values["videos"]) for entry in values["shards"])
        videos = {name: (size, caption) for name, size, caption, _ in values["videos"]}
        return Plan(
            settings=settings,
            identities=values["parts"],
            videos=videos,
            rejected=values["rejected"],
            shards=shards,
        )
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(f"{path} is damaged ({error!r}): choose another --output.") from error


def _settings(values: Mapping[str, Any]) -> Settings:
    cutting = dict(values["cutting"])
    cutting |= {
        "lengths": tuple(cutting["lengths"]),
        "sizes": tuple(tuple(size) for size in cutting["sizes"]),
    }
    return Settings(**{**values, "cutting": Cutting(**cutting)})


def _shard(entry: Mapping[str, Any], videos: Sequence[Sequence[Any]]) -> ShardPlan:
    num_frames, height, width = entry["shape"]
    shape = ClipShape(num_frames=num_frames, height=height, width=width)
    windows = tuple(
        Window(
            video=videos[number][0],
            first=videos[number][3],
            start=start,
            stop=stop,
            shape=shape,
            caption=videos[number][2],
        )
        for number, start, stop in entry["windows"]
    )
    return ShardPlan(
        split=entry["split"],
        number=entry["number"],
        count=entry["count"],
        shape=shape,
        first_clip=entry["first_clip"],
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
