"""What a run says while it trains: numbers in files, a line for the reader, and a stop at the first
non-finite value.

`RunLog` keeps `WORKDIR/metrics.jsonl`, one JSON object a line, {"step": 100, "loss": 0.41, ...},
which needs no tool to be read, and the same numbers with images and texts for TensorBoard in
`WORKDIR/tensorboard`. `Progress` says how far
and how fast through the standard `logging` module. The functions take numbers that are on the host
    already: reading
them from the device, one step late so that it never waits, is the loop's business.
"""

import json
import logging
import math
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import SupportsFloat

import numpy as np
from tensorboardX import SummaryWriter
from tqdm import tqdm

from videomar_jax.io.files import replacing
from videomar_jax.types import UInt8

_log = logging.getLogger(__name__)


class RunLog:
    """The written record of a run. Use it as a context manager, or call `close()`.

    Args:
      workdir: the run's directory, created where needed.
      tensorboard: whether to write for TensorBoard too; without it images and texts go nowhere.
      resume_step: the step the run goes on from. What was recorded beyond it is taken back, for it
          will be done again;
        0 begins a new record.
      is_writer: False makes every method do nothing; True on process 0 only.
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
        folder = Path(workdir).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        _cut_back(folder / "metrics.jsonl", resume_step)
        self._file = open(
            folder / "metrics.jsonl", "a", encoding="utf-8", buffering=1
        )  # a killed run keeps its lines
        if tensorboard:
            hidden_from = resume_step + 1 if resume_step else 0
            own = (
                f".{os.getpid()}.{resume_step}"  # two writers of the same second would share a file
            )
            self._board = SummaryWriter(
                str(folder / "tensorboard"), purge_step=hidden_from, filename_suffix=own
            )

    def write(self, step: int, metrics: Mapping[str, SupportsFloat]) -> None:
        """Records numbers under `step`; a value that is not finite becomes null in the file.

        Raises:
          ValueError: a metric is called "step", or is not one number.
        """
        if "step" in metrics:
            raise ValueError("A metric cannot be called 'step': that key holds the step itself.")
        numbers = {name: _number(name, value) for name, value in metrics.items()}
        if self._file:
            finite = {
                name: value if math.isfinite(value) else None for name, value in numbers.items()
            }
            self._file.write(json.dumps({"step": int(step), **finite}, allow_nan=False) + "\n")
        if self._board:
            for name, value in numbers.items():
                self._board.add_scalar(name, value, step)

    def image(self, step: int, name: str, image: UInt8[np.ndarray, "rows columns 3"]) -> None:
        """Shows an RGB image, 0..255."""
        if self._board:
            self._board.add_image(name, image, step, dataformats="HWC")

    def text(self, step: int, name: str, text: str) -> None:
        """Shows a text, read as Markdown."""
        if self._board:
            self._board.add_text(name, text, step)

    def close(self) -> None:
        """Brings everything to disk."""
        if self._file:
            self._file.close()
        if self._board:
            self._board.close()
        self._file = self._board = None

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Progress:
    """How far a run is, how fast it goes and when it ends, as one line every so often.

    The speed is the mean over the last `window` updates. Updates that follow a start or a change of
    row are left out of it, so compiling does not count, nor does the speed of the last row for the
    next. The time left supposes that the rest goes at the present speed.

    Args:
      total_steps: the number of steps of the whole run.
      start_step: the step the run starts or goes on from.
      every_seconds: the least time between two lines of the log.
      window: the number of updates the speed is taken over.
      settle: the number of updates left out after a start and after a change of row.
      live: whether to keep a moving line on stderr too; None where stderr is a terminal.
      is_writer: False makes every method silent; True on process 0 only.
      clock: seconds that never run backwards.
    """

    def __init__(
        self,
        total_steps: int,
        *,
        start_step: int = 0,
        every_seconds: float = 30.0,
        window: int = 50,
        settle: int = 2,
        live: bool | None = None,
        is_writer: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ):
        if not 0 <= start_step <= total_steps:
            raise ValueError(
                f"start_step={start_step} must lie between 0 and total_steps={total_steps}."
            )
        if window < 1 or settle < 1:
            raise ValueError(f"window={window} and settle={settle} must be at least 1.")
        self._total, self._every, self._settle, self._clock = (
            total_steps,
            every_seconds,
            settle,
            clock,
        )
        self._samples: deque[tuple[float, int, int]] = deque(
            maxlen=window + 1
        )  # (time, step, tokens so far)
        self._row, self._since_row, self._tokens = "", 0, 0
        self._last_line, self._is_writer = clock(), is_writer
        live = is_writer and (sys.stderr.isatty() if live is None else live)
        self._bar = (
            tqdm(total=total_steps, initial=start_step, bar_format="{desc} |{bar}|", miniters=1)
            if live
            else None
        )

    def update(self, step: int, loss: float, tokens: int, row: str = "") -> None:
        """Takes note that `step` steps are done, and says so when it is time.

        Args:
          tokens: how many tokens were trained on since the previous update.
          row: the name of the curriculum row in use.
        """
        if row != self._row:
            self._samples.clear()
            self._row, self._since_row = row, 0
        self._tokens += tokens
        self._since_row += 1
        now = self._clock()
        if self._since_row >= self._settle:  # the last update left out is where the clock starts
            self._samples.append((now, step, self._tokens))
        if not self._is_writer:
            return
        if self._bar is not None:
            self._bar.n = step
            self._bar.set_description_str(self.describe(step, loss), refresh=False)
            self._bar.update(0)
        if now - self._last_line >= self._every or step >= self._total:
            self._last_line = now
            with tqdm.external_write_mode(file=sys.stderr):
                _log.info(self.describe(step, loss))

    def describe(self, step: int, loss: float) -> str:
        """The line itself, for example `step 1200/40000 (3.0%) | short clips | loss 0.4127 | 2.50
        steps/s | ...`."""
        parts = [
            f"step {step}/{self._total} ({step / max(self._total, 1):.1%})",
            self._row,
            f"loss {loss:.4f}",
        ]
        if (speed := self.speed()) is not None:
            steps, tokens = speed
            left = _duration((self._total - step) / steps)
            parts += [f"{steps:.2f} steps/s", f"{_short(tokens)} tokens/s", f"{left} left"]
        return " | ".join(part for part in parts if part)

    def speed(self) -> tuple[float, float] | None:
        """(steps, tokens) per second over the window, None before anything can be told."""
        if len(self._samples) < 2:
            return None
        (start, first_step, first_tokens), (end, step, tokens) = self._samples[0], self._samples[-1]
        if end <= start or step <= first_step:
            return None
        return (step - first_step) / (end - start), (tokens - first_tokens) / (end - start)

    def close(self) -> None:
        """Ends the moving line."""
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def check_finite(step: int, metrics: Mapping[str, SupportsFloat]) -> None:
    """Raises FloatingPointError where a metric is NaN or infinite: from there on nothing can be
    learned."""
    bad = [
        f"{name} = {float(value)}"
        for name, value in metrics.items()
        if not math.isfinite(float(value))
    ]
    if bad:
        raise FloatingPointError(
            f"Step {step}: {', '.join(bad)}. The run stops here, for its parameters are of no more use. The same "
            f"command would meet the same batch: begin a run of its own from the last checkpoint, with another "
            f"--workdir, --config.init_from=WORKDIR/checkpoints/STEP and a lower learning rate, a longer warm-up or "
            f"stronger gradient clipping. JAX_DEBUG_NANS=1 names the operation that made the value."
        )


def _cut_back(path: Path, resume_step: int) -> None:
    """Leaves the whole lines of steps up to `resume_step` (none for 0), replacing the file in one
    move."""
    if not path.exists():
        return
    with (
        replacing(path) as rest,
        open(path, encoding="utf-8", errors="replace") as lines,
        open(rest, "w", encoding="utf-8") as kept,
    ):
        for line in lines:
            step = _step_of(line)
            if resume_step and step is not None and step <= resume_step:
                kept.write(line)


def _step_of(line: str) -> int | None:
    """The step of a line of the record, None for one that was not written to its end."""
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
    return (f"{days}d " if days else "") + f"{hour}:{minute:02d}:{second:02d}"


def _short(number: float) -> str:
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:.3g}{name}"
    return f"{number:.3g}"
