"""Many requests to video files, each with a record from which the video can be generated again.

Ctrl-C and SIGTERM lose nothing that is generated: the videos of the batch are written as far as
they are.
"""

import contextlib
import dataclasses
import math
import os
from collections.abc import Iterator, Sequence
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
    versions,
)
from videomar_jax.inference.pipeline import VideoMARPipeline, VideoSpec
from videomar_jax.inference.requests import JobOptions, Output, Request
from videomar_jax.inference.stream import FrameStream, VideoSampler
from videomar_jax.inference.video import Video
from videomar_jax.io.files import atomic_write, sha256
from videomar_jax.io.log import log
from videomar_jax.io.paths import user_path
from videomar_jax.io.signals import postponed
from videomar_jax.parallel.config import AXES, MeshConfig
from videomar_jax.parallel.mesh import make_mesh
from videomar_jax.pretrained.bundle import ModelBundle, load_bundle, run_folder
from videomar_jax.text_encoders import tokens_cut
from videomar_jax.tokenizers import latent_shape
from videomar_jax.types import UInt8


class LoadedRequest(NamedTuple):
    """A request with its conditioning frames."""

    request: Request
    frames: UInt8[np.ndarray, "G Hp Wp 3"]
    sha256: str  # of the file that the frames come from


@dataclasses.dataclass(frozen=True, kw_only=True)
class _JobContext:
    """What all batches of a command share."""

    pipe: VideoMARPipeline
    sampler: VideoSampler
    spec: VideoSpec
    output: Output
    digests: dict[str, str]
    """SHA-256 of the model's parts, for the records."""
    progress: tqdm


def run_jobs(requests: Sequence[Request], options: JobOptions, output: Output) -> list[str]:
    """Generates one video for each request and writes its files.

    Returns:
        what is wrong with requests whose image cannot be read (logged as warnings at once, too);
        the others are generated.
    Raises:
        UserError, OSError: nothing can be generated; raised before the parameters are loaded.
        Interrupted: Ctrl-C; the frames so far are written.
    """
    if not options.checkpoint:
        raise UserError("Name the model: --checkpoint=DIR, a run's workdir or a converted model.")
    output.check([request.name for request in requests])
    mesh = _whole_mesh(options.mesh)
    bundle = load_bundle(run_folder(options.checkpoint))
    spec = VideoSpec.of(
        bundle,
        options.num_frames,
        options.height,
        options.width,
        preset=options.preset,
        fit=options.fit,
        settings=options.settings,
    )
    loaded, faults = _load_all(requests, bundle, spec)
    _warn_of_cuts([one.request for one in loaded], bundle)
    pipe = VideoMARPipeline.from_checkpoint(
        options.checkpoint, options.weights, bundle=bundle, mesh=mesh
    )
    new = sum(spec.num_frames - len(one.frames) for one in loaded)
    with _job(pipe, spec, output, new) as job:
        shared_by = 1 if mesh is None else mesh.data * mesh.fsdp
        batches = _batches(loaded, options.batch_size, shared_by)
        for number, (batch, rows) in enumerate(batches):
            _generate(job, batch, rows)
            log.info("%d of %d batches done: %s", number + 1, len(batches), output.folder)
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
    pipe = VideoMARPipeline.from_checkpoint(path, record.weights, mesh=_mesh_of(record))
    spec = VideoSpec(
        config=record.config(),
        num_frames=record.num_frames,
        height=record.height,
        width=record.width,
        fit=record.fit,
    )
    request = Request(
        image=source,
        prompt=record.prompt,
        seed=record.seed,
        name=file.stem,
        given_frames=record.given_frames,
    )
    loaded = _load(request, pipe.bundle, spec)
    with _job(pipe, spec, output, record.frames - len(loaded.frames)) as job:
        digests = job.digests
        changed = [part for part in digests if digests[part] != record.checkpoint_sha256.get(part)]
        if changed:
            raise UserError(
                f"{path} is not the checkpoint that {file} was made from: "
                f"{', '.join(changed)} differ."
            )
        if others := differences(record):
            log.warning("The video may differ in its last bits: %s.", "; ".join(others))
        # The batch has its old size, so that sums are taken in the same order.
        _generate(job, [loaded] * record.batch_size, [record.place], until=record.frames)


@contextlib.contextmanager
def _job(
    pipe: VideoMARPipeline, spec: VideoSpec, output: Output, new_frames: int
) -> Iterator[_JobContext]:
    """The context of a command, with a progress bar over `new_frames` where somebody watches."""
    with tqdm(total=new_frames, unit="frame", disable=None) as progress:
        yield _JobContext(
            pipe=pipe,
            sampler=VideoSampler.from_bundle(pipe.model, pipe.bundle, spec.config),
            spec=spec,
            output=output,
            digests=model_digests(pipe.model, pipe.bundle),
            progress=progress,
        )


def _generate(
    job: _JobContext, batch: Sequence[LoadedRequest], rows: Sequence[int], until: int | None = None
) -> None:
    """Generates one batch and writes the videos of its `rows`.

    Args:
        until: pixel frames to stop after; None: all.
    Raises:
        Interrupted: Ctrl-C; the frames so far are written.
    """
    stream = job.sampler.stream(
        np.stack([one.frames for one in batch]),
        [one.request.prompt for one in batch],
        [one.request.seed for one in batch],
        job.spec.num_frames,
    )
    promise = "the frames so far of this batch are written"
    # Until the first new frame there is nothing to keep of this batch.
    with postponed(promise, at_once=True) as stop:
        while stream.given_frames + stream.new_frames < (until or job.spec.num_frames):
            new = next(stream).shape[1]
            stop.at_once = False
            job.progress.set_postfix_str(f"first after {stream.first_frame_s:.1f} s", refresh=False)
            job.progress.update(new * len(rows))
            if stop.asked:
                break
        videos = stream.videos(job.output.fps or job.pipe.bundle.fps)
        for row in rows:
            _write(job, batch[row], videos[row], _record(job, batch, row, stream))
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


def _write(job: _JobContext, loaded: LoadedRequest, video: Video, record: GenerationRecord) -> None:
    """Writes the files of one video; its record comes last, so that a record means all is there."""
    for kind, path in job.output.paths(loaded.request.name).items():
        if kind == "json":
            atomic_write(path, record.to_json(), overwrite=job.output.overwrite)
        else:
            video.save(path, overwrite=job.output.overwrite)


def _record(
    job: _JobContext, batch: Sequence[LoadedRequest], row: int, stream: FrameStream
) -> GenerationRecord:
    """The record of one video of a batch."""
    request, pipe, spec = batch[row].request, job.pipe, job.spec
    paths = job.output.paths(request.name)
    return GenerationRecord(
        prompt=request.prompt,
        prompt_tokens_cut=tokens_cut(pipe.bundle.text_encoder, [request.prompt])[0],
        seed=request.seed,
        image=str(request.image.absolute()),
        image_sha256=batch[row].sha256,
        given_frames=request.given_frames,
        fit=spec.fit,
        num_frames=spec.num_frames,
        frames=stream.given_frames + stream.new_frames,
        height=spec.height,
        width=spec.width,
        fps=float(job.output.fps or pipe.bundle.fps),
        checkpoint=str(pipe.checkpoint),
        step=pipe.step,
        weights=pipe.weights,
        checkpoint_sha256=job.digests,
        sampling=dataclasses.asdict(spec.config),
        batch_size=len(batch),
        place=row,
        files=[path.name for kind, path in paths.items() if kind != "json"],
        first_frame_s=stream.first_frame_s,
        seconds=stream.seconds,
        versions=versions(),
        device=device(),
        mesh={} if pipe.mesh is None else dataclasses.asdict(pipe.mesh),
    )


def _batches(
    loaded: Sequence[LoadedRequest], batch_size: int, shared_by: int
) -> list[tuple[list[LoadedRequest], range]]:
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
            batches.append((batch, range(min(size, len(group) - start))))
    return batches


def _load(request: Request, bundle: ModelBundle, spec: VideoSpec) -> LoadedRequest:
    """Reads the conditioning frames of a request.

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
    return LoadedRequest(request, frames, sha256(request.image))


def _load_all(
    requests: Sequence[Request], bundle: ModelBundle, spec: VideoSpec
) -> tuple[list[LoadedRequest], list[str]]:
    """The requests that can be read, and what is wrong with the others.

    Raises:
        UserError: none can be read.
    """
    loaded, faults = [], []
    for request in requests:
        try:
            loaded.append(_load(request, bundle, spec))
        except (ValueError, OSError) as error:
            faults.append(str(error))
            log.warning("%s", error)
    if not loaded:
        raise UserError("No request can be met: " + "; ".join(faults))
    return loaded, faults


def _warn_of_cuts(requests: Sequence[Request], bundle: ModelBundle) -> None:
    """Warns of prompts that are longer than what the model reads."""
    encoder = bundle.text_encoder
    cuts = tokens_cut(encoder, [request.prompt for request in requests])
    for request, cut in zip(requests, cuts, strict=True):
        if cut:
            log.warning(
                "The prompt of %s is %d tokens longer than the %d that the model reads: "
                "they are cut.",
                request.name,
                cut,
                encoder.max_tokens,
            )


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
