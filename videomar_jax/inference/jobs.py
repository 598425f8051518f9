"""Many requests to video files, each with a record from which the video can be generated again.

Ctrl-C and SIGTERM lose nothing that is generated: the videos of the batch are written as far as
they are.
"""

import contextlib
import dataclasses
import errno
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from videomar_jax.checks import Interrupted, UserError
from videomar_jax.inference.images import load_clip
from videomar_jax.inference.metadata import (
    GenerationRecord,
    device,
    differences,
    model_digests,
    read_record,
    request_digest,
    versions,
)
from videomar_jax.inference.pipeline import VideoMARPipeline, VideoSpec
from videomar_jax.inference.requests import JobOptions, Output, Request
from videomar_jax.inference.stream import FrameStream, NotFiniteError, VideoSampler
from videomar_jax.inference.video import Video
from videomar_jax.io.files import atomic_write, sha256
from videomar_jax.io.log import log
from videomar_jax.io.paths import user_path
from videomar_jax.io.signals import postponed
from videomar_jax.parallel.config import AXES, MeshConfig
from videomar_jax.parallel.mesh import make_mesh
from videomar_jax.preparation.progress import Progress
from videomar_jax.pretrained.bundle import ModelBundle, load_bundle, run_folder
from videomar_jax.text_encoders import tokens_cut
from videomar_jax.tokenizers import latent_shape
from videomar_jax.types import UInt8


class LoadedRequest(NamedTuple):
    """A request with its conditioning frames."""

    request: Request
    frames: UInt8[np.ndarray, "G Hp Wp 3"]
    draft: GenerationRecord
    """The record as it is before the video is generated: `frames` is 0."""
    found: GenerationRecord | None = None
    """The record of the same request in the output folder: a finished or an interrupted video."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _JobContext:
    """What all batches of a command share."""

    pipe: VideoMARPipeline
    sampler: VideoSampler
    spec: VideoSpec
    output: Output
    progress: tqdm
    whole_only: bool = False
    """Whether an interrupted video is dropped rather than written as far as it is."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompleteSet:
    """For requests that belong together, of which each must become a whole video."""

    bundle: ModelBundle
    """Of `JobOptions.checkpoint`, as `load_bundle` returns it."""
    check_model: Callable[[GenerationRecord], object]
    """Called with a draft once the model is loaded and before anything is generated; it may raise
    an error."""
    share: tuple[int, int] = (0, 1)
    """(i, n): this process makes the i-th of n shares of the batches, which are the same for all
    n."""


def run_jobs(
    requests: Sequence[Request],
    options: JobOptions,
    output: Output,
    complete: CompleteSet | None = None,
) -> list[str]:
    """Generates one video for each request and writes its files.

    Without `output.overwrite`, requests whose videos are in the folder already, finished, are
    skipped, and interrupted ones are made again: the same command continues a job that was killed.
    Batches are those of an uninterrupted job, so that the videos are the same to the last bit.

    Args:
        complete: the requests belong together: one whose image cannot be read is an error, and of
            an interrupted batch nothing is written.
    Returns:
        what is wrong with requests whose image cannot be read, or whose video is none or cannot be
        written (logged as warnings at once, too); the others are generated.
    Raises:
        UserError: nothing can be generated.
        FileExistsError: a file of a video's name is there and does not come from the same request;
            raised before anything is generated, as are the other errors of the folder.
        Interrupted: Ctrl-C; the frames so far are written, unless the requests belong together.
    """
    if not options.checkpoint:
        raise UserError("Name the model: --checkpoint=DIR, a run's workdir or a converted model.")
    output.check_folder()
    _check_without_record(requests, output)
    mesh = _whole_mesh(options.mesh)
    bundle = complete.bundle if complete else load_bundle(run_folder(options.checkpoint))
    spec = VideoSpec.of(
        bundle,
        options.num_frames,
        options.height,
        options.width,
        preset=options.preset,
        fit=options.fit,
        settings=options.settings,
    )
    base = _base_record(bundle, spec, output, options.weights, mesh)
    loaded, faults = _load_all(requests, bundle, spec, output, base)
    if complete and faults:
        raise UserError("\n".join(["Some requests cannot be met:", *dict.fromkeys(faults)]))
    loaded = [_with_found(one, output) for one in loaded]
    pipe = VideoMARPipeline.from_checkpoint(
        options.checkpoint, options.weights, bundle=bundle, mesh=mesh
    )
    loaded = _of_model(loaded, pipe)
    if complete:
        complete.check_model(loaded[0].draft)
    for one in loaded:
        _check_same_request(one, output)
    shared_by = 1 if mesh is None else mesh.data * mesh.fsdp
    batches = _batches(loaded, options.batch_size, shared_by)
    if complete:
        number, count = complete.share
        batches = batches[number::count]
    faults += _generate_all(batches, pipe, spec, output, whole_only=complete is not None)
    if len(faults) == len(requests):
        raise UserError("No request can be met: " + "; ".join(faults))
    return faults


def reproduce(
    file: str | os.PathLike,
    output: Output,
    *,
    checkpoint: str | None = None,
    image: str | None = None,
) -> None:
    """Generates the video of a record again, the same to the last bit on the same kind of device.

    Args:
        file: the record, NAME.json.
        output: its formats and rate are by default those of the record.
        checkpoint, image: where they are now, if they were moved.
    Raises:
        FileNotFoundError: the checkpoint or the image is gone.
        UserError: one of them is not what it was.
        Interrupted: as `run_jobs`.
    """
    file = user_path(file, "--from_json")
    record = read_record(file)
    formats = record.formats if output.formats is None else output.formats
    output = dataclasses.replace(output, formats=formats, fps=output.fps or record.fps)
    output.check([file.stem])
    source = user_path(image or record.image)
    if not source.is_file():
        raise FileNotFoundError(
            f"The image of {file} is gone: {source}. Name its new place with --image."
        )
    if sha256(source) != record.image_sha256:
        raise UserError(
            f"{source} is not the image that {file} was made from: its contents have changed."
        )
    path = user_path(checkpoint or record.checkpoint)
    if not path.is_dir():
        raise FileNotFoundError(
            f"The checkpoint of {file} is gone: {path}. Name its new place with --checkpoint."
        )
    mesh = _mesh_of(record)
    pipe = VideoMARPipeline.from_checkpoint(path, record.weights, mesh=mesh)
    spec = VideoSpec(
        config=record.config(),
        num_frames=record.num_frames,
        height=record.height,
        width=record.width,
        fit=record.fit,
    )
    spec.check(pipe.bundle)
    request = Request(
        image=source,
        prompt=record.prompt,
        seed=record.seed,
        name=file.stem,
        given_frames=record.given_frames,
    )
    base = _base_record(pipe.bundle, spec, output, record.weights, mesh)
    (loaded,), _ = _load_all([request], pipe.bundle, spec, output, base)
    (loaded,) = _of_model([loaded], pipe)
    digests = loaded.draft.checkpoint_sha256
    changed = [part for part in digests if digests[part] != record.checkpoint_sha256.get(part)]
    if changed:
        raise UserError(
            f"{path} is not the checkpoint that {file} was made from: {', '.join(changed)} differ."
        )
    if others := differences(record):
        log.warning("The video may differ in its last bits: %s.", "; ".join(others))
    with _job(pipe, spec, output, [loaded], until=record.frames) as job:
        # The batch has its old size, so that sums are taken in the same order.
        batch = [loaded] * record.batch_size
        faults = _generate(job, batch, [record.place], until=record.frames)
    if faults:
        raise UserError(faults[0])


# What is in the folder already


def _check_without_record(requests: Sequence[Request], output: Output) -> None:
    """Raises a FileExistsError for files without a record, which are nobody's but the user's."""
    for request in requests:
        paths = output.paths(request.name)
        if not os.path.lexists(paths["json"]):
            output.check_free(paths.values())


def _with_found(one: LoadedRequest, output: Output) -> LoadedRequest:
    """The request with its record in the folder, if there is one.

    Raises:
        FileExistsError: a file in the way does not come from the same request; the model is not
            compared yet.
    """
    paths = output.paths(one.request.name)
    file = paths["json"]
    if output.overwrite or not os.path.lexists(file):
        return one
    try:
        found = read_record(file)
    except (UserError, FileNotFoundError) as error:
        raise output.in_the_way(file, f" {error}") from error
    for path in paths.values():
        if path != file and path.name not in found.files:
            output.check_free([path])
    # Files of formats that are not asked for now remain part of the record.
    names = one.draft.files
    names = [*names, *(name for name in found.files if name not in names)]
    one = one._replace(found=found, draft=dataclasses.replace(one.draft, files=names))
    _check_same_request(one, output, but=("checkpoint_sha256",))
    return one


def _check_same_request(one: LoadedRequest, output: Output, but: Sequence[str] = ()) -> None:
    """Raises a FileExistsError if the record in the folder is of another request."""
    if one.found is None:
        return
    there, here = one.found.asked(), one.draft.asked()
    differing = [name for name in here if name not in but and here[name] != there[name]]
    if differing:
        raise output.in_the_way(
            output.paths(one.request.name)["json"],
            f" It comes from another request: {', '.join(differing)} differ.",
        )


def _is_finished(one: LoadedRequest, output: Output) -> bool:
    """Whether the video is in the folder, whole and in all formats that are asked for."""
    found = one.found
    if found is None or found.frames < found.num_frames:
        return False
    if request_digest(found) != request_digest(one.draft):
        return False
    return all(path.is_file() for path in output.paths(one.request.name).values())


# Generating


class _Batch(NamedTuple):
    """Videos that are computed together."""

    requests: Sequence[LoadedRequest]
    rows: Sequence[int]
    """Those whose videos are written."""


def _generate_all(
    batches: Sequence[_Batch],
    pipe: VideoMARPipeline,
    spec: VideoSpec,
    output: Output,
    *,
    whole_only: bool,
) -> list[str]:
    """Generates what is not in the folder yet of the batches; returns and errors as `run_jobs`."""
    asked = sum(len(batch.rows) for batch in batches)
    batches = [_unfinished(batch, output) for batch in batches]
    batches = [batch for batch in batches if batch.rows]
    left = [batch.requests[row] for batch in batches for row in batch.rows]
    if len(left) < asked:
        log.info(
            "%d of %d videos are finished already and are skipped%s.",
            asked - len(left),
            asked,
            "" if whole_only else "; --overwrite makes them anew",
        )
    faults = []
    videos = Progress("videos", len(left))
    with _job(pipe, spec, output, left, whole_only=whole_only) as job:
        for number, (batch, rows) in enumerate(batches):
            faults += _generate(job, batch, rows)
            videos.done += len(rows)
            log.info(
                "%d of %d batches done (%s): %s",
                number + 1,
                len(batches),
                videos.line(),
                output.folder,
            )
    return faults


def _unfinished(batch: _Batch, output: Output) -> _Batch:
    """The same batch, with the rows whose videos are not in the folder yet.

    The others are computed with it: each row is the same to the last bit only in its old place in a
    batch of the old size.
    """
    rows = [row for row in batch.rows if not _is_finished(batch.requests[row], output)]
    return _Batch(batch.requests, rows)


@contextlib.contextmanager
def _job(
    pipe: VideoMARPipeline,
    spec: VideoSpec,
    output: Output,
    left: Sequence[LoadedRequest],
    until: int | None = None,
    *,
    whole_only: bool = False,
) -> Iterator[_JobContext]:
    """The context of a command, with a progress bar over the new frames where somebody watches.

    Args:
        left: the requests that are to be generated.
        until: pixel frames to stop after; None: all.
        whole_only: as in `_JobContext`.
    """
    new_frames = sum((until or spec.num_frames) - len(one.frames) for one in left)
    with tqdm(total=new_frames, unit="frame", disable=None) as progress:
        yield _JobContext(
            pipe=pipe,
            sampler=VideoSampler.from_bundle(pipe.model, pipe.bundle, spec.config),
            spec=spec,
            output=output,
            progress=progress,
            whole_only=whole_only,
        )


def _generate(
    job: _JobContext, batch: Sequence[LoadedRequest], rows: Sequence[int], until: int | None = None
) -> list[str]:
    """Generates one batch and writes the videos of its `rows`.

    Args:
        until: pixel frames to stop after; None: all.
    Returns:
        what is wrong with videos that hold NaN or cannot be written.
    Raises:
        Interrupted: Ctrl-C; the frames so far are written.
    """
    try:
        stream = job.sampler.stream(
            np.stack([one.frames for one in batch]),
            [one.request.prompt for one in batch],
            [one.request.seed for one in batch],
            job.spec.num_frames,
            skip_faulty=True,
        )
        return _finish(job, batch, rows, stream, until or job.spec.num_frames)
    except NotFiniteError as error:  # of all videos
        return [_fault(batch[row].request, error) for row in rows]


def _finish(
    job: _JobContext,
    batch: Sequence[LoadedRequest],
    rows: Sequence[int],
    stream: FrameStream,
    until: int,
) -> list[str]:
    """Generates and writes a batch that is started; errors as `_generate`."""
    kind = "videos" if job.whole_only else "frames so far"
    # Until the first new frame there is nothing to keep of this batch.
    with postponed(f"the {kind} of this batch are written", at_once=True) as stop:
        while stream.given_frames + stream.new_frames < until:
            new = next(stream).shape[1]
            stop.at_once = job.whole_only and stream.given_frames + stream.new_frames < until
            job.progress.set_postfix_str(f"first after {stream.first_frame_s:.1f} s", refresh=False)
            job.progress.update(new * len(rows))
            if stop.asked:
                break
        if job.whole_only and stream.given_frames + stream.new_frames < until:
            raise Interrupted(
                f"Interrupted: the videos of this batch are left out; the same command continues "
                f"in {job.output.folder}."
            )
        faults = []
        videos = stream.videos(job.output.fps or job.pipe.bundle.fps)
        for row in rows:
            if row in stream.faults:
                faults.append(_fault(batch[row].request, stream.faults[row]))
            else:
                faults += _save(job, batch, row, videos[row], stream)
    if stop.asked:
        names = ", ".join(batch[row].request.name for row in rows)
        kept = f"kept {stream.given_frames + stream.new_frames} of {job.spec.num_frames} frames"
        raise Interrupted(
            f"Interrupted: {kept} of {names} in {job.output.folder}; videos that were not started "
            f"are left out."
        )
    log.info(
        "first new frame after %.1f s, %.2f frames/s",
        stream.first_frame_s,
        stream.new_frames * len(rows) / stream.seconds,
    )
    return faults


def _fault(request: Request, reason: object) -> str:
    """What is wrong with one request, also as a warning."""
    text = f"{request.name}: {reason}"
    log.warning("%s", text)
    return text


def _save(
    job: _JobContext, batch: Sequence[LoadedRequest], row: int, video: Video, stream: FrameStream
) -> list[str]:
    """Writes the files of one video, and returns what went wrong, if anything.

    Raises:
        OSError: the disk takes no more, so the next video would not be written either.
    """
    record = dataclasses.replace(
        batch[row].draft,
        frames=len(video),
        batch_size=len(batch),
        place=row,
        first_frame_s=stream.first_frame_s,
        seconds=stream.seconds,
    )
    try:
        _write(job, batch[row], video, record)
    except (UserError, OSError) as error:
        if getattr(error, "errno", None) in _DISK_ERRORS:
            raise
        return [_fault(batch[row].request, error)]
    return []


def _write(job: _JobContext, loaded: LoadedRequest, video: Video, record: GenerationRecord) -> None:
    """Writes the files of one video.

    A record of no frames comes first, so that files of a job that is killed are known as its own,
    and the record of the video last, so that it means that all is there.
    """
    replace = job.output.overwrite or loaded.found is not None
    paths = job.output.paths(loaded.request.name)
    job.output.folder.mkdir(parents=True, exist_ok=True)
    paths["json"].parent.mkdir(parents=True, exist_ok=True)
    atomic_write(paths["json"], loaded.draft.to_json(), overwrite=replace)
    for kind, path in paths.items():
        if kind != "json":
            video.save(path, overwrite=replace)
    atomic_write(paths["json"], record.to_json())


_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


def _base_record(
    bundle: ModelBundle, spec: VideoSpec, output: Output, weights: str, mesh: MeshConfig | None
) -> GenerationRecord:
    """What the records of one command have in common."""
    return GenerationRecord(
        prompt="",
        prompt_tokens_cut=0,
        seed=0,
        image="",
        image_sha256="",
        given_frames=None,
        fit=spec.fit,  # type: ignore[arg-type]
        num_frames=spec.num_frames,
        frames=0,
        height=spec.height,
        width=spec.width,
        fps=float(output.fps or bundle.fps),
        checkpoint="",
        step=0,
        weights=weights,  # type: ignore[arg-type]
        checkpoint_sha256={},
        sampling=dataclasses.asdict(spec.config),
        batch_size=1,
        place=0,
        files=[],
        first_frame_s=None,
        seconds=0.0,
        versions=versions(),
        device=device(),
        mesh={} if mesh is None else dataclasses.asdict(mesh),
        sources=bundle.sources,
    )


def _of_model(loaded: Sequence[LoadedRequest], pipe: VideoMARPipeline) -> list[LoadedRequest]:
    """The requests with the model that they are asked of in their drafts."""
    model = dict(
        checkpoint=str(pipe.checkpoint),
        step=pipe.step,
        checkpoint_sha256=model_digests(pipe.model, pipe.bundle),
    )
    return [one._replace(draft=dataclasses.replace(one.draft, **model)) for one in loaded]


def _batches(loaded: Sequence[LoadedRequest], batch_size: int, shared_by: int) -> list[_Batch]:
    """Batches, and which of their rows count.

    Each number of given frames has batches of one size, a multiple of `shared_by`; a short one is
    filled up with requests that are there anyway.
    """
    batches = []
    for frames in dict.fromkeys(len(one.frames) for one in loaded):
        group = [one for one in loaded if len(one.frames) == frames]
        size = math.ceil(min(batch_size, len(group)) / shared_by) * shared_by
        for start in range(0, len(group), size):
            batch = [group[(start + i) % len(group)] for i in range(size)]
            batches.append(_Batch(batch, range(min(size, len(group) - start))))
    return batches


def _load(request: Request, bundle: ModelBundle, spec: VideoSpec) -> tuple[np.ndarray, str]:
    """The conditioning frames of a request, and SHA-256 of the file that they come from.

    Raises:
        UserError, OSError: the image cannot be read, or the clip is too short or too long.
    """
    if request.given_frames is None:
        frames = spec.fitted(request.image)
    else:
        latent_shape(bundle.tokenizer, request.given_frames, spec.height, spec.width)
        if request.given_frames >= spec.num_frames:
            raise UserError(
                f"{request.image}: {request.given_frames} given frames leave nothing of "
                f"{spec.num_frames} to generate."
            )
        frames = load_clip(
            request.image,
            request.given_frames,
            fps=bundle.fps,
            height=spec.height,
            width=spec.width,
            fit=spec.fit,
        )
    return frames, sha256(request.image)


def _load_all(
    requests: Sequence[Request],
    bundle: ModelBundle,
    spec: VideoSpec,
    output: Output,
    base: GenerationRecord,
) -> tuple[list[LoadedRequest], list[str]]:
    """The requests that can be read, and what is wrong with the others.

    Raises:
        UserError: none can be read.
    """
    loaded, faults = [], []
    # Requests often share an image: it is read once, and is in memory once.
    sources: dict[tuple[Path, int | None], tuple[np.ndarray, str] | str] = {}
    cuts = tokens_cut(bundle.text_encoder, [request.prompt for request in requests])
    for request, cut in zip(requests, cuts, strict=True):
        try:
            output.check_lengths(request.name)
        except UserError as error:
            faults.append(_fault(request, error))
            continue
        key = (request.image, request.given_frames)
        if key not in sources:
            sources[key] = _load_or_fault(request, bundle, spec)
        source = sources[key]
        if isinstance(source, str):
            faults.append(source)
            continue
        frames, digest = source
        paths = output.paths(request.name)
        draft = dataclasses.replace(
            base,
            prompt=request.prompt,
            prompt_tokens_cut=cut,
            seed=request.seed,
            image=str(request.image.absolute()),
            image_sha256=digest,
            given_frames=request.given_frames,
            files=[path.name for kind, path in paths.items() if kind != "json"],
        )
        loaded.append(LoadedRequest(request, frames, draft))
    if not loaded:
        raise UserError("No request can be met: " + "; ".join(faults))
    _warn_of_cuts(loaded, bundle)
    return loaded, faults


def _load_or_fault(
    request: Request, bundle: ModelBundle, spec: VideoSpec
) -> tuple[np.ndarray, str] | str:
    """As `_load`, or what is wrong with the image, also as a warning."""
    try:
        return _load(request, bundle, spec)
    except MemoryError:
        text = f"{request.image} takes more memory than there is; make it smaller."
    except (ValueError, OSError) as error:
        text = str(error)
    log.warning("%s", text)
    return text


def _warn_of_cuts(loaded: Sequence[LoadedRequest], bundle: ModelBundle) -> None:
    """Warns of prompts that are longer than what the model reads, of the first few by name."""
    cut = [one for one in loaded if one.draft.prompt_tokens_cut]
    for one in cut[:_MOST_NAMED]:
        log.warning(
            "The prompt of %s is %d tokens longer than the %d that the model reads: they are cut.",
            one.request.name,
            one.draft.prompt_tokens_cut,
            bundle.text_encoder.max_tokens,
        )
    if len(cut) > _MOST_NAMED:
        log.warning("So are the prompts of %d other videos.", len(cut) - _MOST_NAMED)


_MOST_NAMED = 10


def _whole_mesh(mesh: MeshConfig | None) -> MeshConfig | None:
    """The mesh with the numbers of devices that there are; None for a single device.

    Raises:
        UserError: it does not fit the devices.
    """
    if mesh is None or all(getattr(mesh, axis) == 1 for axis in AXES):
        return None
    try:
        return dataclasses.replace(mesh, **dict(make_mesh(mesh).shape))
    except ValueError as error:
        raise UserError(f"--data, --fsdp, --tensor and --context: {error}") from error


def _mesh_of(record: GenerationRecord) -> MeshConfig | None:
    """The mesh that a video was generated on; None, with a warning, where devices are lacking."""
    if not record.mesh:
        return None
    mesh = MeshConfig(**record.mesh)
    devices = math.prod(getattr(mesh, axis) for axis in AXES)
    if devices <= jax.device_count():
        return mesh
    log.warning("The video may differ in its last bits: made on %d devices, here on one.", devices)
    return None
