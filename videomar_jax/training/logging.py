"""What a run reports while it trains: numbers in files, a line for the reader, and a stop at the
first non-finite value.

`RunLog` keeps `WORKDIR/metrics.jsonl`, one JSON object a line, {"step": 100, "loss": 0.41, ...},
which can be read without any tool, and the same numbers with images and texts for TensorBoard in
`WORKDIR/tensorboard`. `Progress` logs how far the run is and how fast it goes. Both take numbers
that are on the host already; reading them from the device, one step late so that it never waits, is
the task of `metrics`.
"""

import json
import math
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, SupportsFloat

import numpy as np
from tensorboardX import SummaryWriter
from tqdm import tqdm

from videomar_jax.io.files import replacing
from videomar_jax.io.log import log
from videomar_jax.io.paths import user_path
from videomar_jax.types import UInt8

SETTLING_UPDATES = 2
"""Updates that the speed leaves out after a start and after a change of stage, because a new shape
is compiled in them."""


class RunLog:
    """The written record of a run. Use it as a context manager, or call `close()`.

    Args:
        workdir: the run's directory, created where needed.
        tensorboard: whether to write for TensorBoard too; without it images and texts are dropped.
        resume_step: the step that the run is continued from; records of later steps are removed,
            because these steps are done again. 0 begins a new record.
        is_writer: True on process 0 only; False makes every method do nothing.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        *,
        tensorboard: bool = True,
        resume_step: int = 0,
        is_writer: bool = True,
    ):
        self._file = self._board = None
        if not is_writer:
            return
        self._folder = user_path(workdir)
        self._tensorboard = tensorboard
        self._start = resume_step
        self._open()

    def _open(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        metrics = self._folder / "metrics.jsonl"
        _remove_later_steps(metrics, self._start)
        # Line buffering: a killed run keeps its lines.
        self._file = open(metrics, "a", encoding="utf-8", buffering=1)
        if self._tensorboard:
            self._board = SummaryWriter(
                str(self._folder / "tensorboard"),
                purge_step=self._start + 1 if self._start else 0,
                # Without a suffix two writers of the same second would share a file.
                filename_suffix=f".{os.getpid()}.{self._start}",
            )

    def restore(self) -> None:
        """Begins the files anew if somebody deleted them; earlier records are lost then."""
        if self._file and not (self._folder / "metrics.jsonl").exists():
            log.warning("%s was deleted: a new one is begun", self._folder / "metrics.jsonl")
            self.close()
            self._open()

    def write(self, step: int, metrics: Mapping[str, SupportsFloat]) -> None:
        """Records numbers under `step`; a value that is not finite becomes null in the file.

        Raises:
            ValueError: a metric is called "step", or is not one number.
        """
        if "step" in metrics:
            raise ValueError("A metric cannot be called 'step': that key holds the step itself.")
        numbers = {name: _number(name, value) for name, value in metrics.items()}
        if self._file:
            line: dict[str, float | None] = {"step": int(step)}
            for name, value in numbers.items():
                line[name] = value if math.isfinite(value) else None
            self._file.write(json.dumps(line, allow_nan=False) + "\n")
        if self._board:
            for name, value in numbers.items():
                self._board.add_scalar(name, value, step)

    def image(self, step: int, name: str, image: UInt8[np.ndarray, "rows columns 3"]) -> None:
        """Shows an RGB image, 0..255, in TensorBoard."""
        if self._board:
            self._board.add_image(name, image, step, dataformats="HWC")

    def text(self, step: int, name: str, text: str) -> None:
        """Shows a text, read as Markdown, in TensorBoard."""
        if self._board:
            self._board.add_text(name, text, step)

    def close(self) -> None:
        """Writes everything to disk."""
        if self._file:
            self._file.close()
        if self._board:
            self._board.close()
        self._file = self._board = None

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class _Sample(NamedTuple):
    time: float
    step: int
    tokens: int  # of all steps until now


class Progress:
    """How far a run is, how fast it goes and when it ends, as one line every so often.

    The speed is the mean over the last `window` updates. The first updates after a start or a new
    stage are left out, so neither compilation counts nor the speed of the previous stage. The time
    left assumes the present speed for all remaining steps.

    Args:
        total_steps: the number of steps of the whole run.
        start_step: the step that the run starts or continues at.
        every_seconds: the least time between two lines of the log.
        window: the number of updates that the speed is measured over.
        live: whether to keep a moving line on stderr too; None: if stderr is a terminal.
        is_writer: True on process 0 only; False makes every method silent.
        clock: seconds that never run backwards.
    """

    def __init__(
        self,
        total_steps: int,
        *,
        start_step: int = 0,
        every_seconds: float = 30.0,
        window: int = 50,
        live: bool | None = None,
        is_writer: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ):
        if not 0 <= start_step <= total_steps:
            raise ValueError(
                f"start_step={start_step} must lie between 0 and total_steps={total_steps}."
            )
        if window < 1:
            raise ValueError(f"window={window} must be at least 1.")
        self._total, self._every = total_steps, every_seconds
        self._clock, self._is_writer = clock, is_writer
        self._samples: deque[_Sample] = deque(maxlen=window + 1)
        self._stage = ""
        self._stage_updates = 0  # since the stage was entered
        self._tokens = 0
        self._last_line = clock()
        self._bar = None
        if is_writer and (sys.stderr.isatty() if live is None else live):
            self._bar = tqdm(
                total=total_steps, initial=start_step, bar_format="{desc} |{bar}|", miniters=1
            )

    def update(self, step: int, loss: float, tokens: int, stage: str = "") -> None:
        """Records that `step` steps are done, and logs a line when it is time.

        Args:
            tokens: how many tokens were trained on since the previous update.
            stage: the name of the curriculum stage.
        """
        if stage != self._stage:
            self._samples.clear()
            self._stage, self._stage_updates = stage, 0
        self._tokens += tokens
        self._stage_updates += 1
        now = self._clock()
        # The last update that is left out is the one where the measurement starts.
        if self._stage_updates >= SETTLING_UPDATES:
            self._samples.append(_Sample(now, step, self._tokens))
        if not self._is_writer:
            return
        if self._bar is not None:
            self._bar.n = step
            self._bar.set_description_str(self.describe(step, loss), refresh=False)
            self._bar.update(0)
        if now - self._last_line >= self._every or step >= self._total:
            self._last_line = now
            # Keeps the log from being written into the moving line.
            with tqdm.external_write_mode(file=sys.stderr):
                log.info(self.describe(step, loss))

    def describe(self, step: int, loss: float) -> str:
        """The line itself, such as
        "step 1200/40000 (3.0%) | short clips | loss 0.4127 | 2.50 steps/s | ..."."""
        words = [f"step {step}/{self._total} ({step / max(self._total, 1):.1%})"]
        if self._stage:
            words.append(self._stage)
        words.append(f"loss {loss:.4f}")
        speed = self.speed()
        if speed is not None:
            steps, tokens = speed
            left = _duration((self._total - step) / steps)
            words += [f"{steps:.2f} steps/s", f"{_short(tokens)} tokens/s", f"{left} left"]
        return " | ".join(words)

    def speed(self) -> tuple[float, float] | None:
        """(steps, tokens) per second over the window; None before there are two samples."""
        if len(self._samples) < 2:
            return None
        first, last = self._samples[0], self._samples[-1]
        seconds = last.time - first.time
        if seconds <= 0 or last.step <= first.step:
            return None
        return (last.step - first.step) / seconds, (last.tokens - first.tokens) / seconds

    def close(self) -> None:
        """Ends the moving line."""
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def check_finite(step: int, metrics: Mapping[str, SupportsFloat]) -> None:
    """Raises FloatingPointError if a metric is NaN or infinite; nothing can be learned after it."""
    faults = []
    for name, value in metrics.items():
        if not math.isfinite(float(value)):
            faults.append(f"{name} = {float(value)}")
    if faults:
        raise FloatingPointError(
            f"Step {step}: {', '.join(faults)}. The run stops here, because its parameters can no "
            f"longer be used. The same command would meet the same batch: start a new run from the "
            f"last checkpoint, with another --workdir, --config.init_from=WORKDIR/checkpoints/STEP "
            f"and a lower learning rate, a longer warm-up or stronger gradient clipping. "
            f"JAX_DEBUG_NANS=1 names the operation that made the value."
        )


def _remove_later_steps(path: Path, last_step: int) -> None:
    """Keeps the complete lines of steps up to `last_step`; none of them if that is 0."""
    if not path.exists():
        return
    with (
        replacing(path) as part,
        open(path, encoding="utf-8", errors="replace") as lines,
        open(part, "w", encoding="utf-8") as kept,
    ):
        for line in lines:
            step = _step_of(line)
            if last_step and step is not None and step <= last_step:
                kept.write(line)


def _step_of(line: str) -> int | None:
    """The step of a line of the record; None for a line that was not written to its end."""
    try:
        return int(json.loads(line)["step"]) if line.endswith("\n") else None
    except (ValueError, KeyError, TypeError):
        return None


def _number(name: str, value: SupportsFloat) -> float:
    if np.ndim(value):
        raise ValueError(
            f"Metric '{name}' has shape {np.shape(value)}; it must be a single number."
        )
    return float(value)


def _duration(seconds: float) -> str:
    minutes, second = divmod(round(max(seconds, 0.0)), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    clock = f"{hour}:{minute:02d}:{second:02d}"
    return f"{days}d {clock}" if days else clock


def _short(number: float) -> str:
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:.3g}{name}"
    return f"{number:.3g}"
