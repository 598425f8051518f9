"""From videos to a complete folder of prepared clips, by one process or several that share the
output folder.

    process 0    plans, unless plan.json is there; saves the tokenizer and the text encoder under
    OUTPUT/model
    process i    makes the shards i, i + n, i + 2n, ... of n processes that are not complete yet
    any          that finds all shards complete writes the manifest

Nothing passes between processes but files, so they may start in any order, at any time, and be
killed at any moment: the same command goes on where it stopped, and ends with the same bytes.
"""

import dataclasses
import logging
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from videomar_jax.data.shards import MANIFEST
from videomar_jax.data.windows import find_videos
from videomar_jax.io.files import replacing
from videomar_jax.parallel import launch
from videomar_jax.preparation.encoding import ShardEncoder
from videomar_jax.preparation.folder import (
    MODEL,
    REJECTED,
    finish,
    missing,
    receipt_of,
    write_shard,
)
from videomar_jax.preparation.plan import Plan, Settings, list_videos, make_plan
from videomar_jax.preparation.plan_file import (
    PLAN,
    changed_videos,
    differences,
    load_plan,
    save_plan,
)
from videomar_jax.preparation.progress import Progress
from videomar_jax.text_encoders import TextEncoder, save_text_encoder
from videomar_jax.tokenizers import Tokenizer, fingerprint, latent_shape, save_tokenizer

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """What to prepare, with what, where to.

    captions: a table of captions; None looks for one among the videos.
    text_encoder: None keeps captions only; training encodes them then.
    threads: decode videos.   batch_size: clips encoded at a time over all local devices; None for
        one on each.
    """

    videos: Path
    output: Path
    settings: Settings
    tokenizer: Tokenizer
    text_encoder: TextEncoder | None = None
    captions: Path | None = None
    batch_size: int | None = None
    threads: int = 4


def prepare(task: Task, process_index: int = 0, process_count: int = 1) -> dict[str, Any] | None:
    """Makes this process's shards and returns the manifest, or None while other processes have
    shards to make.

    Raises:
        ValueError: settings that cannot be, an output folder of another plan, no usable clip.
        OSError: missing videos, an output folder that cannot be written to.
    """
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index must be in 0..{process_count - 1}, not {process_index}")
    encoder = check(task)
    plan = planned(task) if process_index == 0 else _wait_for_plan(task)
    mine = plan.shards[process_index::process_count]
    done = [shard for shard in mine if receipt_of(task.output, shard) is not None]
    progress = Progress(
        "clips", sum(len(s.windows) for s in mine), done=sum(len(s.windows) for s in done)
    )
    _log.info(
        "process %d of %d: %d of %d shards to make, %d of %d clips, %d at a time on %s",
        process_index,
        process_count,
        len(mine) - len(done),
        len(plan.shards),
        progress.total - progress.done,
        plan.clips,
        encoder.batch_size,
        _devices(),
    )
    for shard in mine:
        if receipt_of(task.output, shard) is None:
            write_shard(task.output, shard, encoder, progress)
    return conclude(task.output, plan)


def check(task: Task) -> ShardEncoder:
    """Tells what cannot be, before any video is opened. Raises ValueError or OSError."""
    for length in task.settings.cutting.lengths:
        for height, width in task.settings.cutting.sizes:
            try:
                latent_shape(task.tokenizer, length, height, width)
            except ValueError as error:
                raise ValueError(f"{length} frames at {height}x{width}: {error}") from error
    encoder = ShardEncoder(
        task.videos,
        task.settings,
        task.tokenizer,
        task.text_encoder,
        batch_size=task.batch_size,
        threads=task.threads,
    )
    check_folders(task.videos, task.output)
    return encoder


def planned(task: Task) -> Plan:
    """The folder's plan, made if there is none, with the parts saved beside it.

    Raises ValueError where the folder's own plan is another one; the text says what differs.
    """
    videos = list_videos(task.videos, task.captions)
    parts = identity(task.tokenizer, task.text_encoder)
    if (task.output / PLAN).exists():
        plan = load_plan(task.output)
        _refuse(
            task.output, [*differences(plan, task.settings, parts), *changed_videos(plan, videos)]
        )
    else:
        plan = make_plan(task.videos, videos, task.settings, parts, task.threads)
        save_plan(plan, task.output)
        silent = sum(not caption for _, caption in videos.values())
        _log.info(
            "planned %d clips of %d videos (%d without caption) in %d shards; %d videos rejected",
            plan.clips,
            len(videos),
            silent,
            len(plan.shards),
            len(plan.rejected),
        )
    _save_parts(task)
    return plan


def identity(tokenizer: Tokenizer, text_encoder: TextEncoder | None) -> dict[str, Any]:
    """What tells tokenizer and text encoder from others; wherever their files lie."""
    known = ("kind", "temporal_stride", "spatial_stride", "channels")
    parts: dict[str, Any] = {
        "tokenizer": {name: getattr(tokenizer, name) for name in known}
        | {"scale": float(getattr(tokenizer, "scale", 1.0)), "fingerprint": fingerprint(tokenizer)},
        "text_encoder": None,
    }
    if text_encoder is not None:
        settings = {
            name: value for name, value in text_encoder.settings().items() if name != "folder"
        }
        parts["text_encoder"] = {
            name: getattr(text_encoder, name) for name in ("kind", "max_tokens", "width")
        } | {"settings": settings}
    return parts


def conclude(output: Path, plan: Plan) -> dict[str, Any] | None:
    """Writes the manifest if all shards are complete, and says how things stand."""
    manifest = finish(output, plan)
    if manifest is None:
        left = missing(output, plan)
        _log.info(
            "done here; %d of %d shards are left to other processes, the last of which writes %s; or run the "
            "command again",
            len(left),
            len(plan.shards),
            MANIFEST,
        )
        return None
    rejected = (
        f"; {manifest['rejected']} rejected, see {output / REJECTED}"
        if manifest["rejected"]
        else ""
    )
    _log.info(
        "%d clips in %d shards, %.2f GB: %s%s",
        manifest["clips"],
        len(plan.shards),
        manifest["bytes"] / 1e9,
        output / MANIFEST,
        rejected,
    )
    return manifest


def find_process(
    index: int | None, count: int | None, environ: Mapping[str, str]
) -> tuple[int, int]:
    """(index, count) of this process: as given, as SLURM or Open MPI say, by its place in a TPU
    pod, or else 0 of 1.

    Only in a TPU pod do processes join, as its devices ask for it; elsewhere none needs the others.
    Raises ValueError where one of the two is given without the other.
    """
    if (index is None) != (count is None):
        raise ValueError("Give --process_index and --process_count together, or neither.")
    if index is not None and count is not None:
        return index, count
    if (launcher := launch.launched_by(environ)) is not None:
        return launcher.process_id, launcher.num_processes
    if launch.on_tpu(jax.config.jax_platforms, environ):
        launch.start()
    return (
        (jax.process_index(), jax.process_count()) if jax.distributed.is_initialized() else (0, 1)
    )


def check_folders(videos: Path, output: Path) -> None:
    """Raises OSError unless there are videos, and `output` can be written to and is empty or a
    planned folder."""
    find_videos(videos)
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=output):
        pass  # OUTPUT can be written to
    foreign = [
        path.name
        for path in output.iterdir()
        if not (path.name.startswith(".") and path.suffix == ".part")
    ]
    if foreign and not (output / PLAN).exists():
        raise FileExistsError(
            f"{output} is not empty ({min(foreign)}) and holds no {PLAN}: name a new folder"
        )


def _wait_for_plan(task: Task) -> Plan:
    """The plan that process 0 makes."""
    said = time.monotonic()
    while not (task.output / PLAN).exists():
        time.sleep(0.5)
        if time.monotonic() - said > 15:
            said = time.monotonic()
            _log.info("waiting for process 0 to write %s", task.output / PLAN)
    plan = load_plan(task.output)
    _refuse(
        task.output, differences(plan, task.settings, identity(task.tokenizer, task.text_encoder))
    )
    return plan


def _refuse(output: Path, faults: Sequence[str]) -> None:
    if faults:
        more = [f"  and {len(faults) - 10} more"] if len(faults) > 10 else []
        lines = "\n".join([*(f"  {fault}" for fault in faults[:10]), *more])
        raise ValueError(
            f"{output} was begun with something else; name a new folder, or give it what it was:\n{lines}"
        )


def _save_parts(task: Task) -> None:
    """OUTPUT/model in one move: what a run on the clips decodes and encodes prompts with."""
    model = task.output / MODEL
    if model.exists():
        return
    with replacing(model) as part:
        save_tokenizer(task.tokenizer, part / "tokenizer")
        if task.text_encoder is not None:
            save_text_encoder(task.text_encoder, part / "text_encoder")


def _devices() -> str:
    devices = jax.local_devices()
    return f"{len(devices)} x {devices[0].device_kind}"
