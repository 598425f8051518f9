"""Whether the videos of a suite are all there and whole. Needs no JAX."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from videomar_jax.checks import UserError
from videomar_jax.data.decode import check_decodes, probe
from videomar_jax.experiment.suite_prompts import SuitePrompt, some_of
from videomar_jax.io.files import clear_leftovers
from videomar_jax.io.log import log
from videomar_jax.preparation.progress import Progress, read_ahead

FPS = 12.0
"""Of the files. Dynamic degree takes every round(fps / 8)-th frame, so it is part of the number."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoForm:
    """What every video of the suite must be like."""

    num_frames: int
    height: int
    """Pixel rows of the file."""
    width: int
    """Pixel columns of the file."""

    def fault(self, file: Path) -> str | None:
        """What is wrong with a file, after decoding all of it; None: nothing."""
        if not file.is_file():
            return "it is missing"
        try:
            found = probe(file)
            check_decodes(file)
        except (UserError, OSError) as error:
            return str(error)
        size = (found.height, found.width)
        if len(found.times) != self.num_frames:
            return f"it has {len(found.times)} frames, not {self.num_frames}"
        if size != (self.height, self.width):
            return f"its frames are {size[0]}x{size[1]}, not {self.height}x{self.width}"
        if abs(found.fps - FPS) > 0.01:
            return f"it has {found.fps:g} frames per second, not {FPS:g}"
        return None


def check_videos(folder: Path, names: Sequence[str], form: VideoForm) -> list[str]:
    """What is wrong with the videos of these names: missing, damaged, short, of another form.

    Logs how far it has come.
    """

    def fault(name: str) -> str | None:
        found = form.fault(folder / f"{name}.mp4")
        return None if found is None else f"{name}.mp4: {found}"

    threads = min(8, os.cpu_count() or 1)
    progress = Progress("videos checked", len(names), every=30.0)
    faults = []
    for found in read_ahead(fault, names, threads=threads, ahead=64):
        progress.add()
        if found is not None:
            faults.append(found)
    return faults


def check_set(
    folder: Path, names: Sequence[str], prompts: Sequence[SuitePrompt], form: VideoForm
) -> bool:
    """Checks the videos of the suite, and returns whether all are there.

    Raises:
        UserError: videos are damaged, or there is something else in their folder.
    """
    there = [name for name in names if (folder / f"{name}.mp4").is_file()]
    if len(there) < len(names):
        log.info(
            "%d of %d videos are there: the other shares make the rest. The same command without "
            "--share checks the whole.",
            len(there),
            len(names),
        )
        return False
    clear_leftovers(folder)  # nobody is writing any more
    known = {f"{name}.mp4" for prompt in prompts for name in prompt.names}
    others = sorted({path.name for path in folder.iterdir()} - known)
    if others:
        raise UserError(
            f"{folder} must hold the videos of the suite alone, since the evaluator would be "
            f"misled by others: move {some_of(others)} elsewhere."
        )
    log.info("checking %d videos", len(names))
    faults = check_videos(folder, names, form)
    if faults:
        raise UserError(
            f"{len(faults)} videos in {folder} cannot be used; remove them and give the same "
            f"command again, which makes them anew: {some_of(faults)}."
        )
    return True
