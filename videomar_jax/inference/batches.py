"""One batch of videos: drawn together, written one by one, each with its record; Ctrl-C loses
nothing that is drawn."""

import contextlib
import dataclasses
import logging
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from videomar_jax.inference.metadata import Record, device, versions
from videomar_jax.inference.pipeline import VideoMARPipeline, videos_of
from videomar_jax.inference.requests import Request
from videomar_jax.inference.stream import FrameStream
from videomar_jax.inference.video import Output, Video
from videomar_jax.io.files import atomic_write
from videomar_jax.sampling.config import SamplingConfig
from videomar_jax.text_encoders import tokens_cut
from videomar_jax.types import UInt8

_log = logging.getLogger(__name__)


class Stopped(Exception):
    """The user interrupted; the text says what was kept."""


class Ready(NamedTuple):
    """A request whose conditioning frames are read."""

    request: Request
    frames: UInt8[np.ndarray, "G Hp Wp 3"]
    sha256: str  # of the file they come from


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """What all batches share."""

    pipe: VideoMARPipeline
    model: Any
    config: SamplingConfig
    size: tuple[int, int, int]
    fit: str
    output: Output
    digests: dict[str, str]
    bar: tqdm


def batches(
    given: Sequence[Ready], batch_size: int, blocks: int
) -> list[tuple[list[Ready], range]]:
    """Batches of one size, a multiple of `blocks`, for each number of given frames, short ones
    filled up; and which of their rows count."""
    found = []
    for frames in dict.fromkeys(len(one.frames) for one in given):
        group = [one for one in given if len(one.frames) == frames]
        size = -(-min(batch_size, len(group)) // blocks) * blocks
        for start in range(0, len(group), size):
            rows = range(min(size, len(group) - start))
            found.append(([group[(start + i) % len(group)] for i in range(size)], rows))
    return found


def make_batch(
    work: Work, batch: Sequence[Ready], rows: Sequence[int], until: int | None = None
) -> None:
    """Makes one batch and writes the videos of its `rows`, as far as they are when the user
    interrupts."""
    prompts, seeds = [one.request.prompt for one in batch], [one.request.seed for one in batch]
    stream = FrameStream(
        work.model,
        work.pipe.bundle,
        np.stack([one.frames for one in batch]),
        prompts,
        seeds,
        num_frames=work.size[0],
        config=work.config,
    )
    stopped = _advance(
        stream, until or work.size[0], lambda new: _show(work.bar, stream, new * len(rows))
    )
    with _undisturbed() as interrupts:
        if not stopped or stream.new_frames:
            videos = videos_of(
                stream, prompts, seeds, work.config, work.output.fps or work.pipe.bundle.fps
            )
            for row in rows:
                _write(work, batch[row], videos[row], stream, len(batch), row)
    if stopped or interrupts:
        names = ", ".join(batch[row].request.name for row in rows)
        kept = (
            f"kept {len(stream)} of {work.size[0]} frames" if stream.new_frames else "no frame yet"
        )
        raise Stopped(
            f"Interrupted: {kept} of {names} in {work.output.folder}; videos not begun are left out."
        )
    _log.info(
        "first new frame after %.1f s, %.2f frames/s",
        stream.first_frame_s,
        stream.new_frames * len(rows) / stream.seconds,
    )


def _advance(stream: FrameStream, until: int, show: Callable[[int], None]) -> bool:
    """Draws until the videos have `until` frames; True if the user interrupted."""
    try:
        while len(stream) < until:
            show(next(stream).shape[1])
    except KeyboardInterrupt:
        return True
    return False


@contextlib.contextmanager
def _undisturbed() -> Iterator[list[int]]:
    """The first Ctrl-C waits until the block has ended, and stands in the list then; the second one
    does not."""
    interrupts: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # others are not interrupted
        yield interrupts
        return

    def note(number, frame):
        if interrupts:
            raise KeyboardInterrupt
        interrupts.append(number)
        _log.warning(
            "Interrupted: the files of this batch are written first; Ctrl-C again leaves them."
        )

    before = signal.signal(signal.SIGINT, note)
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, before or signal.default_int_handler)


def _show(bar: tqdm, stream: FrameStream, new: int) -> None:
    bar.set_postfix_str(f"first after {stream.first_frame_s:.1f} s", refresh=False)
    bar.update(new)


def _write(
    work: Work, ready: Ready, video: Video, stream: FrameStream, batch_size: int, place: int
) -> None:
    """The files of one video; its record comes last."""
    request = ready.request
    paths = work.output.paths(request.name)
    for format in work.output.formats:
        video.save(paths[format], overwrite=work.output.overwrite)
    pipe, bundle = work.pipe, work.pipe.bundle
    record = Record(
        prompt=request.prompt,
        prompt_tokens_cut=tokens_cut(bundle.text_encoder, [request.prompt])[0],
        seed=request.seed,
        image=str(request.image.absolute()),
        image_sha256=ready.sha256,
        given_frames=request.given_frames,
        fit=work.fit,
        num_frames=work.size[0],
        frames=len(video),
        height=work.size[1],
        width=work.size[2],
        fps=float(video.fps),
        checkpoint=str(pipe.checkpoint),
        step=pipe.step,
        weights=pipe.weights,
        checkpoint_sha256=work.digests,
        sampling=dataclasses.asdict(work.config),
        batch_size=batch_size,
        place=place,
        files=[paths[format].name for format in work.output.formats],
        first_frame_s=stream.first_frame_s,
        seconds=stream.seconds,
        versions=versions(),
        device=device(),
        mesh={} if pipe.mesh is None else dataclasses.asdict(pipe.mesh),
    )
    atomic_write(paths["json"], record.to_json(), overwrite=work.output.overwrite)
