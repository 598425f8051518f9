"""From videos to a complete folder of prepared clips, by one or several processes that share it.

    process 0    plans, unless plan.json is there; saves the tokenizer and the text encoder under
                 OUTPUT/model
    process i    makes the shards i, i + n, i + 2n, ... of n processes that are not complete yet
    any          that finds all shards complete writes the manifest

Nothing passes between processes but files, so they may start in any order, at any time, and be
killed at any moment: the same command continues where it stopped, and ends with the same bytes.
"""

import dataclasses
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from videomar_jax.checks import UserError
from videomar_jax.data.shards import MANIFEST
from videomar_jax.data.windows import find_videos
from videomar_jax.io import lock
from videomar_jax.io.files import replacing
from videomar_jax.io.log import log
from videomar_jax.parallel import launch
from videomar_jax.preparation.encoding import ShardEncoder
from videomar_jax.preparation.folder import (
    MODEL,
    REJECTED,
    finish,
    missing,
    receipt_of,
    share_of,
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

_REPORT_WAITING = 15
"""Seconds between two lines that say what a process waits for."""
_NAMED = 10
"""Differences that a message names."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """What to prepare, with what, where to.

    videos: the folder of video files; output: the folder of prepared clips.
    captions: a table of captions; None looks for one among the videos.
    text_encoder: None keeps captions as text; training encodes them then.
    batch_size: clips encoded at a time over all local devices; None for one on each.
    threads: decode videos.
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
    """Makes this process's shards.

    Returns:
        The manifest, or None while other processes have shards to make.
    Raises:
        UserError: settings that are not possible, an output folder of another plan or that the same
            process is at work in, no usable clip.
        OSError: missing videos, an output folder that cannot be written to.
    """
    if not 0 <= process_index < process_count:
        raise UserError(f"process_index must be in 0..{process_count - 1}, not {process_index}.")
    encoder = check(task)
    with share_of(task.output, process_index, process_count):
        return _prepare(task, encoder, process_index, process_count)


def _prepare(
    task: Task, encoder: ShardEncoder, process_index: int, process_count: int
) -> dict[str, Any] | None:
    """`prepare` while no other process makes the same shards."""
    plan = open_plan(task) if process_index == 0 else _wait_for_plan(task)
    own = plan.shards[process_index::process_count]
    complete = [shard for shard in own if receipt_of(task.output, shard) is not None]
    progress = Progress(
        "clips",
        sum(len(shard.windows) for shard in own),
        done=sum(len(shard.windows) for shard in complete),
    )
    log.info(
        "process %d of %d: %d of %d shards to make, %d of %d clips, %d at a time on %s",
        process_index,
        process_count,
        len(own) - len(complete),
        len(plan.shards),
        progress.total - progress.done,
        plan.clips,
        encoder.batch_size,
        _devices(),
    )
    for shard in own:
        if receipt_of(task.output, shard) is None:
            write_shard(task.output, shard, encoder, progress)
    return finish_if_complete(task.output, plan)


def check(task: Task) -> ShardEncoder:
    """Reports what is not possible before any video is opened; returns the encoder of all shards.

    Raises:
        UserError: a size that the tokenizer cannot take, or another setting.
        OSError: as `check_folders`.
    """
    for length in task.settings.cutting.lengths:
        for height, width in task.settings.cutting.sizes:
            try:
                latent_shape(task.tokenizer, length, height, width)
            except ValueError as error:
                raise UserError(f"{length} frames at {height}x{width}: {error}") from error
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


def check_folders(videos: Path, output: Path) -> None:
    """Makes sure that there are videos, and that `output` can be written to and is empty or a
    planned folder.

    Raises:
        OSError: one of these is not so.
    """
    find_videos(videos)
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=output):
        pass  # OUTPUT can be written to
    foreign = []
    for path in output.iterdir():
        is_unfinished = path.name.startswith(".") and path.suffix == ".part"
        if not is_unfinished and not path.name.startswith(lock.PREFIX):
            foreign.append(path.name)
    if foreign and not (output / PLAN).exists():
        raise FileExistsError(
            f"{output} is not empty ({min(foreign)}) and holds no {PLAN}: name a new folder."
        )


def open_plan(task: Task) -> Plan:
    """The folder's plan, made if there is none; tokenizer and text encoder are saved beside it.

    Raises:
        UserError: the folder has a plan of other settings or videos; the text says what differs.
    """
    videos = list_videos(task.videos, task.captions)
    identities = identify(task.tokenizer, task.text_encoder)
    if (task.output / PLAN).exists():
        plan = load_plan(task.output)
        changes = differences(plan, task.settings, identities) + changed_videos(plan, videos)
        _refuse_changes(task.output, changes)
    else:
        plan = make_plan(task.videos, videos, task.settings, identities, task.threads)
        save_plan(plan, task.output)
        without_caption = sum(not caption for _, caption in videos.values())
        log.info(
            "planned %d clips of %d videos (%d without caption) in %d shards; %d videos rejected",
            plan.clips,
            len(videos),
            without_caption,
            len(plan.shards),
            len(plan.rejected),
        )
    _save_model(task)
    return plan


def identify(tokenizer: Tokenizer, text_encoder: TextEncoder | None) -> dict[str, Any]:
    """What distinguishes the tokenizer and the text encoder from others, wherever their files are.

    It is kept in plan.json and manifest.json.
    """
    kept = ("kind", "temporal_stride", "spatial_stride", "channels")
    about_tokenizer = {name: getattr(tokenizer, name) for name in kept}
    about_tokenizer |= {
        "scale": float(getattr(tokenizer, "scale", 1.0)),
        "fingerprint": fingerprint(tokenizer),
    }
    if text_encoder is None:
        return {"tokenizer": about_tokenizer, "text_encoder": None}
    about_text = {name: getattr(text_encoder, name) for name in ("kind", "max_tokens", "width")}
    settings = dict(text_encoder.settings())
    settings.pop("folder", None)  # the same encoder may be anywhere
    return {"tokenizer": about_tokenizer, "text_encoder": {**about_text, "settings": settings}}


def finish_if_complete(output: Path, plan: Plan) -> dict[str, Any] | None:
    """Writes the manifest if all shards are complete, and logs how many are not."""
    manifest = finish(output, plan)
    if manifest is None:
        log.info(
            "done here; %d of %d shards are left to other processes, the last of which writes %s; "
            "or run the command again",
            len(missing(output, plan)),
            len(plan.shards),
            MANIFEST,
        )
        return None
    rejected = ""
    if manifest["rejected"]:
        rejected = f"; {manifest['rejected']} rejected, see {output / REJECTED}"
    log.info(
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

    Raises:
        UserError: one of the two is given without the other.
    """
    if (index is None) != (count is None):
        raise UserError("Give --process_index and --process_count together, or neither.")
    if index is not None and count is not None:
        return index, count
    launcher = launch.launched_by(environ)
    if launcher is not None:
        return launcher.process_id, launcher.num_processes
    if launch.on_tpu(jax.config.jax_platforms, environ):
        launch.start()
    if not jax.distributed.is_initialized():
        return 0, 1
    return jax.process_index(), jax.process_count()


def _wait_for_plan(task: Task) -> Plan:
    """The plan that process 0 makes."""
    reported = time.monotonic()
    while not (task.output / PLAN).exists():
        time.sleep(0.5)
        if time.monotonic() - reported > _REPORT_WAITING:
            reported = time.monotonic()
            log.info("waiting for process 0 to write %s", task.output / PLAN)
    plan = load_plan(task.output)
    identities = identify(task.tokenizer, task.text_encoder)
    _refuse_changes(task.output, differences(plan, task.settings, identities))
    return plan


def _refuse_changes(output: Path, changes: Sequence[str]) -> None:
    if not changes:
        return
    lines = [f"  {change}" for change in changes[:_NAMED]]
    if len(changes) > _NAMED:
        lines.append(f"  and {len(changes) - _NAMED} more")
    raise UserError(
        f"{output} was started with something else; name a new folder, or restore what it was:\n"
        + "\n".join(lines)
    )


def _save_model(task: Task) -> None:
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
