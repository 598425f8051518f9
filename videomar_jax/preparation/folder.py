"""The output folder: which shards are complete, the manifest, the rejected clips.

    NAME              the clips of a shard, moved here when complete
    NAME.json         its receipt: clips, bytes, SHA-256, rejected windows; written after the shard
    rejected.jsonl    all rejected videos and windows with reasons, when every shard is complete
    manifest.json     last of all; a folder that has it is complete

A shard counts as complete when it has a receipt and its file has the size that the receipt names.
So whatever was interrupted is made again, and comes out the same.
"""

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from videomar_jax.checks import UserError
from videomar_jax.data.records import write_records
from videomar_jax.data.shards import FORMAT, MANIFEST, VERSION
from videomar_jax.data.sources import ClipShape
from videomar_jax.io import lock
from videomar_jax.io.files import atomic_write, clear_leftovers, read_json, with_digest
from videomar_jax.preparation.encoding import Encode
from videomar_jax.preparation.plan import Plan, ShardPlan
from videomar_jax.preparation.progress import Progress
from videomar_jax.preparation.tfds_info import write_tfds_info
from videomar_jax.tokenizers.base import grid_shape

REJECTED = "rejected.jsonl"
MODEL = "model"
Receipt = dict[str, Any]


def write_shard(output: Path, shard: ShardPlan, encode: Encode, progress: Progress) -> None:
    """Makes a shard and its receipt.

    Raises:
        OSError: the folder cannot be written to.
    """
    rejected: list[dict[str, Any]] = []

    def records() -> Iterator[bytes]:
        for window, result in encode(shard):
            progress.add(failed=isinstance(result, str))
            if isinstance(result, bytes):
                yield result
            else:
                rejected.append({"file": window.video, "start": window.start, "reason": result})

    receipt = write_records(output / shard.name, records())
    atomic_write(_receipt_path(output, shard), json.dumps(receipt | {"rejected": rejected}) + "\n")


def receipt_of(output: Path, shard: ShardPlan) -> Receipt | None:
    """The receipt of a complete shard, None of any other."""
    try:
        receipt = read_json(_receipt_path(output, shard))
        complete = (output / shard.name).stat().st_size == receipt["bytes"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return receipt if complete else None


def missing(output: Path, plan: Plan) -> list[ShardPlan]:
    """The shards that are not complete."""
    return [shard for shard in plan.shards if receipt_of(output, shard) is None]


def finish(output: Path, plan: Plan) -> dict[str, Any] | None:
    """Writes the manifest and what belongs to it, and returns it; None while shards or OUTPUT/model
    are missing.

    Any process may call it at any time: the same plan and shards give the same files.

    Raises:
        UserError: every clip was rejected.
    """
    receipts: list[Receipt] = []
    for shard in plan.shards:
        receipt = receipt_of(output, shard)
        if receipt is None:
            return None
        receipts.append(receipt)
    if not (output / MODEL / "tokenizer").exists():
        return None
    rejected = list(plan.rejected)
    for receipt in receipts:
        rejected += receipt["rejected"]
    atomic_write(output / REJECTED, "".join(json.dumps(entry) + "\n" for entry in rejected))
    if not any(receipt["clips"] for receipt in receipts):
        reasons = [f"  {entry['reason']}" for entry in rejected[:10]]
        lines = [f"Every clip was rejected; see {output / REJECTED}:", *reasons]
        raise UserError("\n".join(lines))
    manifest = _manifest(plan, receipts, len(rejected))
    write_tfds_info(output, plan, receipts)
    atomic_write(output / MANIFEST, json.dumps(with_digest(manifest), indent=1) + "\n")
    clear_leftovers(output)  # nobody writes to a complete folder any more
    return manifest


@contextlib.contextmanager
def share_of(output: Path, process_index: int, process_count: int) -> Iterator[None]:
    """Holds the lock of one of the processes that share `output` during the block.

    If none of the others is there, what killed processes left of unfinished files is removed.

    Raises:
        UserError: a process of the same number, or of another count of processes, is there; the
            text names it.
    """
    own = output / f"{lock.PREFIX}-{process_index}-of-{process_count}"
    what = f"{output} (as process {process_index} of {process_count})"
    with lock.holding(own, what):
        others = 0
        for file in output.glob(f"{lock.PREFIX}-*-of-*"):
            if file == own:
                continue
            holder = lock.holder_of(file)
            if holder is None:
                lock.remove_if_stale(file)
                continue
            if not file.name.endswith(f"-of-{process_count}"):
                raise UserError(
                    f"{output} is being prepared by {holder}, as one of "
                    f"{file.name.rpartition('-')[2]} processes, not of {process_count}. Wait until "
                    f"that has ended, stop it, or choose another folder."
                )
            others += 1
        if not others:
            # A process that comes from now on sees this one, and writes later than its lock.
            clear_leftovers(output, before=own.stat().st_mtime)
        yield


def _receipt_path(output: Path, shard: ShardPlan) -> Path:
    return output / f"{shard.name}.json"


def _manifest(plan: Plan, receipts: Sequence[Receipt], rejected: int) -> dict[str, Any]:
    shards = []
    for shard, receipt in zip(plan.shards, receipts, strict=True):
        made = {name: receipt[name] for name in ("clips", "bytes", "sha256")}
        entry = {"file": shard.name, "split": shard.split, **_sizes(shard.shape), **made}
        shards.append(entry)
    return {
        "format": FORMAT,
        "version": VERSION,
        "clips": sum(entry["clips"] for entry in shards),
        "rejected": rejected,
        "bytes": sum(entry["bytes"] for entry in shards),
        "fps": plan.settings.cutting.fps,
        "dtype": plan.settings.dtype,
        **plan.identities,
        "settings": {
            "windows_per_clip": plan.settings.cutting.windows_per_clip,
            "holdout": plan.settings.holdout,
            "clips_per_shard": plan.settings.clips_per_shard,
        },
        "shapes": _shapes(plan, receipts),
        "shards": shards,
    }


def _shapes(plan: Plan, receipts: Sequence[Receipt]) -> list[dict[str, Any]]:
    """Of each shape of clips its latents, and how many clips each split has."""
    tokenizer = plan.identities["tokenizer"]
    counts: dict[ClipShape, dict[str, int]] = {}
    for shard, receipt in zip(plan.shards, receipts, strict=True):
        clips = counts.setdefault(shard.shape, {"train": 0, "test": 0})
        clips[shard.split] += receipt["clips"]
    shapes = []
    for shape, clips in counts.items():
        grid = grid_shape(
            shape.num_frames,
            shape.height,
            shape.width,
            temporal_stride=tokenizer["temporal_stride"],
            spatial_stride=tokenizer["spatial_stride"],
        )
        latents = [*grid, tokenizer["channels"]]
        shapes.append({**_sizes(shape), "latents": latents, "clips": clips})
    return shapes


def _sizes(shape: ClipShape) -> dict[str, int]:
    return {"num_frames": shape.num_frames, "height": shape.height, "width": shape.width}
