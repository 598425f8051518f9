"""What a run measures of itself: metrics read one step late, speed, use of the device, wall time by
stage."""

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from videomar_jax.training.logging import Progress, RunLog, check_finite

PEAK_FLOPS = {
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "L4": 121e12,
    "V100": 125e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6": 918e12,
}
"""Dense 16-bit matmul peaks from the makers' data sheets, by the beginning or a part of the
device's name."""


def peak_flops(device_kind: str) -> float | None:
    """FLOP/s that a device's maker promises in 16 bit, None where we do not know."""
    return next((peak for name, peak in PEAK_FLOPS.items() if name in device_kind), None)


class Meters:
    """Reads the metrics of a step when the next one is already on its way, and writes them every so
    often.

    Numbers are those of one step; losses by frame and by noise level are means over the steps since
    the last line.

    Args:
        every: steps between two lines of the log.
        rate: the learning rate of a step.
    """

    def __init__(self, log: RunLog, progress: Progress, every: int, rate: Callable[[int], Any]):
        self._log, self._progress, self._every, self._rate = log, progress, every, rate
        self._peak = peak_flops(jax.local_devices()[0].device_kind)
        self._pending: tuple | None = None
        self._bins: dict[str, np.ndarray] = {}
        self._waited, self._since = 0.0, time.monotonic()

    def put(
        self,
        step: int,
        stage: str,
        tokens: int,
        flops: float,
        waited: float,
        metrics: dict,
        stop: Any,
    ) -> bool:
        """Takes the metrics of `step` and tells those of the step before; returns whether that one
        is to be the last.

        Args:
            tokens, flops: of the step, over all devices.
            waited: seconds the loop waited for the batch.
            stop: whether any process was asked to stop, on the device or not.
        """
        last = self.flush()
        self._pending = (step, stage, tokens, flops, metrics, stop)
        self._waited += waited
        return last

    def flush(self) -> bool:
        """Tells what is still held back; returns whether a stop was asked for at that step.

        Raises:
            FloatingPointError: a metric is not finite.
        """
        if self._pending is None:
            return False
        step, stage, tokens, flops, metrics, stop = self._pending
        self._pending = None
        metrics, stop = jax.device_get((metrics, stop))
        binned = {name: value for name, value in metrics.items() if isinstance(value, dict)}
        numbers = {name: float(value) for name, value in metrics.items() if name not in binned}
        check_finite(step, numbers)
        self._add(binned)
        self._progress.update(step, numbers["loss"], tokens, stage)
        if step % self._every == 0:
            self._log.write(step, numbers | self._means() | self._speeds(step, flops))
        return bool(stop)

    def _add(self, binned: dict[str, dict[str, np.ndarray]]) -> None:
        for name, bins in binned.items():
            new = np.stack(
                [np.asarray(bins["sum"], np.float64), np.asarray(bins["count"], np.float64)]
            )
            old = self._bins.get(name, np.zeros((2, 0)))
            width = max(old.shape[1], new.shape[1])
            self._bins[name] = sum(np.pad(x, ((0, 0), (0, width - x.shape[1]))) for x in (old, new))

    def _means(self) -> dict[str, float]:
        means = {}
        for name, (total, count) in self._bins.items():
            means |= {
                f"loss_{name}/{i}": total[i] / count[i] for i in range(len(count)) if count[i] > 0
            }
        self._bins = {}
        return means

    def _speeds(self, step: int, flops: float) -> dict[str, float]:
        steps, tokens = self._progress.speed() or (0.0, 0.0)
        now = time.monotonic()
        wait, self._waited = self._waited / max(now - self._since, 1e-9), 0.0
        self._since = now
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
    """Wall time by stage, going on from what earlier starts of the run took."""

    def __init__(self, before: dict[str, float]):
        self._seconds, self._name, self._since = dict(before), None, 0.0

    def enter(self, name: str) -> None:
        self.leave()
        self._name, self._since = name, time.monotonic()

    def leave(self) -> None:
        self._seconds = self.seconds()
        self._name = None

    def seconds(self) -> dict[str, float]:
        if self._name is None:
            return dict(self._seconds)
        spent = self._seconds.get(self._name, 0.0) + time.monotonic() - self._since
        return self._seconds | {self._name: spent}
