"""What a run measures of itself: metrics read one step late, speed, device use, time by stage."""

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from videomar_jax.accelerators.chips import chip_of
from videomar_jax.training.logging import Progress, RunLog, check_finite


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepReport:
    """What is known of one training step when it has been dispatched."""

    step: int
    """The number of updates, this one included."""
    stage: str
    """The name of the curriculum stage."""
    tokens: int
    """Tokens of the batch, over all devices."""
    flops: float
    """Floating-point operations of the update, over all devices."""
    data_wait: float
    """Seconds that the loop waited for the batch."""
    metrics: Mapping[str, Any]
    """Numbers, and binned losses {"sum": [n], "count": [n]}; on the device, perhaps not ready."""
    stop: Any
    """Whether any process was asked to stop; a bool, or an array like the metrics."""


class Meters:
    """Reads the metrics of a step once the next one has been dispatched, and logs them.

    Numbers are those of one step; losses by frame and by noise level are means over the steps since
    the last line.

    Args:
        log: takes a line every `every` steps.
        progress: is updated after every step.
        rate: the learning rate as a function of the step.
    """

    def __init__(self, log: RunLog, progress: Progress, every: int, rate: Callable[[int], Any]):
        self._log, self._progress, self._every, self._rate = log, progress, every, rate
        chip = chip_of(jax.local_devices()[0].device_kind)
        self._peak = None if chip is None else chip.flops
        self._pending: StepReport | None = None
        # For each binned loss an array [2, n] of sums and counts since the last line.
        self._bins: dict[str, np.ndarray] = {}
        self._waited = 0.0
        self._last_line = time.monotonic()

    def put(self, report: StepReport) -> bool:
        """Keeps a step's report and logs that of the step before.

        Returns:
            Whether a stop was asked for at the step before.
        """
        # The device already works on the new step: reading the old one does not make it idle.
        stop = self.flush()
        self._pending = report
        self._waited += report.data_wait
        return stop

    def flush(self) -> bool:
        """Logs the report that is kept, if any; returns whether a stop was asked for at its step.

        Raises:
            FloatingPointError: a metric is not finite.
        """
        report, self._pending = self._pending, None
        if report is None:
            return False
        metrics, stop = jax.device_get((dict(report.metrics), report.stop))
        binned = {name: value for name, value in metrics.items() if isinstance(value, dict)}
        numbers = {name: float(value) for name, value in metrics.items() if name not in binned}
        check_finite(report.step, numbers)
        for name, bins in binned.items():
            self._add_bins(name, bins)
        self._progress.update(report.step, numbers["loss"], report.tokens, report.stage)
        if report.step % self._every == 0:
            line = numbers | self._mean_bins() | self._speeds(report.step, report.flops)
            self._log.write(report.step, line)
        return bool(stop)

    def _add_bins(self, name: str, bins: Mapping[str, np.ndarray]) -> None:
        new = np.stack([np.asarray(bins["sum"], np.float64), np.asarray(bins["count"], np.float64)])
        old = self._bins.get(name, np.zeros((2, 0)))
        # Batches of another number of frames have another number of bins.
        total = np.zeros((2, max(old.shape[1], new.shape[1])))
        total[:, : old.shape[1]] += old
        total[:, : new.shape[1]] += new
        self._bins[name] = total

    def _mean_bins(self) -> dict[str, float]:
        means = {}
        for name, (total, count) in self._bins.items():
            for number in np.flatnonzero(count > 0):
                means[f"loss_{name}/{number}"] = total[number] / count[number]
        self._bins = {}
        return means

    def _speeds(self, step: int, flops: float) -> dict[str, float]:
        steps, tokens = self._progress.speed() or (0.0, 0.0)
        now = time.monotonic()
        wait = self._waited / max(now - self._last_line, 1e-9)
        self._waited, self._last_line = 0.0, now
        speeds = {
            "learning_rate": float(self._rate(step - 1)),
            "steps_per_second": steps,
            "tokens_per_second": tokens,
            "data_wait": min(wait, 1.0),
            "model_flops_per_second": flops * steps,
        }
        if self._peak:
            speeds["mfu"] = flops * steps / (self._peak * jax.device_count())
        memory = jax.local_devices()[0].memory_stats() or {}
        if "peak_bytes_in_use" in memory:
            speeds["device_memory_peak_gb"] = memory["peak_bytes_in_use"] / 1e9
        return speeds


class StageClock:
    """Wall time by stage, added to that of earlier starts of the run.

    Args:
        before: seconds by stage of the earlier starts.
    """

    def __init__(self, before: Mapping[str, float]):
        self._seconds = dict(before)
        self._name: str | None = None
        self._since = 0.0

    def enter(self, name: str | None) -> None:
        """Counts the time from now on to the stage `name`; None counts it to no stage."""
        if name != self._name:
            self._seconds = self.seconds()
            self._name, self._since = name, time.monotonic()

    def seconds(self) -> dict[str, float]:
        """Seconds by stage until now, in the order in which the stages were first entered."""
        if self._name is None:
            return dict(self._seconds)
        spent = self._seconds.get(self._name, 0.0) + time.monotonic() - self._since
        return self._seconds | {self._name: spent}
