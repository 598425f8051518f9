"""Requests fulfilled: images in, video files out, each with a record from which it can be made
again."""

import dataclasses
import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from videomar_jax.inference.batches import Ready, Work, batches, make_batch
from videomar_jax.inference.images import load_clip, load_image
from videomar_jax.inference.metadata import (
    Record,
    differences,
    model_digests,
    read_record,
)
from videomar_jax.inference.pipeline import (
    VideoMARPipeline,
    asked_size,
    changed_sampling,
    check_request,
)
from videomar_jax.inference.requests import Request
from videomar_jax.inference.video import Output, local_path
from videomar_jax.io.files import sha256
from videomar_jax.parallel.config import AXES, MeshConfig
from videomar_jax.parallel.mesh import make_mesh
from videomar_jax.pretrained.bundle import ModelBundle, load_bundle, run_folder
from videomar_jax.sampling.precision import for_sampling
from videomar_jax.text_encoders import tokens_cut
from videomar_jax.tokenizers import latent_shape

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Order:
    """How all requests of a command are met.

    settings: fields of `SamplingConfig` that differ from the model's own, as flags have them: None
        leaves a field as it is, a window of 0 keeps all frames.
    shape: num_frames, height and width in pixels; None as trained.
    batch_size: videos made at a time, rounded up to a multiple of the mesh's data x fsdp.
    mesh: the devices that share the work; None: one.
    """

    checkpoint: str | os.PathLike
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    shape: Mapping[str, int | None] = dataclasses.field(default_factory=dict)
    preset: str | None = None
    fit: str = "resize"
    weights: str = "ema"
    batch_size: int = 4
    mesh: MeshConfig | None = None


def run_jobs(requests: Sequence[Request], order: Order, output: Output) -> list[str]:
    """Makes the videos.

    Returns:
        what is wrong with requests whose image could not be read, told as warnings at once too; the
        others are met.
    Raises:
        ValueError, OSError: nothing can be made at all; told before the model is loaded.
        Stopped: interrupted from the keyboard; the frames so far are written.
    """
    output.check([request.name for request in requests])
    mesh = _sized(order.mesh)
    bundle = load_bundle(run_folder(order.checkpoint))
    config = changed_sampling(bundle, _chosen(order.settings), order.preset)
    size = asked_size(
        bundle, *(order.shape.get(name) for name in ("num_frames", "height", "width"))
    )
    check_request(bundle, config, size)
    given, faults = _read_all(requests, bundle, size, order.fit)
    _tell_cuts([one.request for one in given], bundle)
    pipe = VideoMARPipeline.from_checkpoint(
        order.checkpoint, order.weights, bundle=bundle, mesh=mesh
    )
    new = sum(size[0] - len(one.frames) for one in given)
    with tqdm(total=new, unit="frame", disable=None) as bar:  # no bar where nobody watches
        work = Work(
            pipe=pipe,
            model=for_sampling(pipe.model, config),
            config=config,
            size=size,
            fit=order.fit,
            output=output,
            digests=model_digests(pipe.model, bundle),
            bar=bar,
        )
        planned = batches(given, order.batch_size, 1 if mesh is None else mesh.data * mesh.fsdp)
        for number, (batch, rows) in enumerate(planned):
            make_batch(work, batch, rows)
            _log.info("%d of %d batches done: %s", number + 1, len(planned), output.folder)
    return faults


def reproduce(
    file: str | os.PathLike,
    output: Output,
    *,
    checkpoint: str | None = None,
    image: str | None = None,
    name: str | None = None,
) -> None:
    """Makes the video of a record again, bit by bit the same on the same kind of device.

    Args:
        checkpoint, image: where they lie now, if not where they were.
    Raises:
        FileNotFoundError: the checkpoint or the image is gone.
        ValueError: one of them is not what it was.
        Stopped: as `run_jobs`.
    """
    file = local_path(file)
    record = read_record(file)
    name = name or Path(file).stem
    output = dataclasses.replace(output, fps=output.fps or record.fps)
    output.check([name])
    source = local_path(image or record.image)
    if not source.is_file():
        raise FileNotFoundError(
            f"The image of {file} is gone: {source}. Name where it lies now with --image."
        )
    if sha256(source) != record.image_sha256:
        raise ValueError(
            f"{source} is not the image that {file} was made from: its contents have changed."
        )
    path = local_path(checkpoint or record.checkpoint)
    if not path.is_dir():
        raise FileNotFoundError(
            f"The checkpoint of {file} is gone: {path}. Name where it lies now with --checkpoint."
        )
    pipe = VideoMARPipeline.from_checkpoint(path, record.weights, mesh=_mesh_of(record))
    digests = model_digests(pipe.model, pipe.bundle)
    changed = [part for part in digests if digests[part] != record.checkpoint_sha256.get(part)]
    if changed:
        raise ValueError(
            f"{path} is not the checkpoint that {file} was made from: {', '.join(changed)} differ."
        )
    if others := differences(record):
        _log.warning("The video may differ in its last bits: %s.", "; ".join(others))
    config, size = record.config(), (record.num_frames, record.height, record.width)
    request = Request(
        image=source,
        prompt=record.prompt,
        seed=record.seed,
        name=name,
        given_frames=record.given_frames,
    )
    ready = _read(request, pipe.bundle, size, record.fit)
    with tqdm(total=record.frames - len(ready.frames), unit="frame", disable=None) as bar:
        work = Work(
            pipe=pipe,
            model=for_sampling(pipe.model, config),
            config=config,
            size=size,
            fit=record.fit,
            output=output,
            digests=digests,
            bar=bar,
        )
        make_batch(work, [ready] * record.batch_size, [record.place], until=record.frames)


def _sized(mesh: MeshConfig | None) -> MeshConfig | None:
    """The mesh with the numbers of devices that there are, or a ValueError."""
    try:
        return None if mesh is None else dataclasses.replace(mesh, **dict(make_mesh(mesh).shape))
    except ValueError as error:
        raise ValueError(f"--data, --fsdp, --tensor and --context: {error}") from error


def _mesh_of(record: Record) -> MeshConfig | None:
    """The mesh that a video was made on; None, and a warning, where it does not fit the devices
    here."""
    mesh = MeshConfig(**record.mesh) if record.mesh else None
    wanted = 1 if mesh is None else math.prod(getattr(mesh, axis) for axis in AXES)
    if wanted <= jax.device_count():
        return mesh
    _log.warning("The video may differ in its last bits: made on %d devices, here on one.", wanted)
    return None


def _chosen(settings: Mapping[str, Any]) -> dict[str, Any]:
    chosen = {name: value for name, value in settings.items() if value is not None}
    return chosen | ({"window": None} if chosen.get("window") == 0 else {})


def _read(request: Request, bundle: ModelBundle, size: tuple[int, int, int], fit: str) -> Ready:
    place = dict(height=size[1], width=size[2], fit=fit)
    if request.given_frames is None:
        return Ready(request, load_image(request.image, **place)[None], sha256(request.image))
    latent_shape(bundle.tokenizer, request.given_frames, *size[1:])
    if request.given_frames >= size[0]:
        raise ValueError(
            f"{request.image}: {request.given_frames} given frames leave nothing of {size[0]} to make."
        )
    clip = load_clip(request.image, request.given_frames, fps=bundle.fps, **place)
    return Ready(request, clip, sha256(request.image))


def _read_all(requests, bundle, size, fit) -> tuple[list[Ready], list[str]]:
    read, faults = [], []
    for request in requests:
        try:
            read.append(_read(request, bundle, size, fit))
        except (ValueError, OSError) as error:
            faults.append(str(error))
            _log.warning("%s", error)
    if not read:
        raise ValueError("No request can be met: " + "; ".join(faults))
    return read, faults


def _tell_cuts(requests: Sequence[Request], bundle: ModelBundle) -> None:
    for request, cut in zip(
        requests, tokens_cut(bundle.text_encoder, [r.prompt for r in requests]), strict=True
    ):
        if cut:
            _log.warning(
                "The prompt of %s is %d tokens longer than the %d that the model reads: they are cut.",
                request.name,
                cut,
                bundle.text_encoder.max_tokens,
            )
