"""The loss curve of a run, from its metrics.jsonl."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from videomar_jax.io.plots import Curve, Panel, plot
from videomar_jax.types import UInt8

LOSS, VALIDATION = "loss", "validation_loss"
_SMOOTHED = 50
"""Parts of the run that the smoothed curve has a mean for."""


def read_metrics(path: Path) -> dict[str, Curve]:
    """Every metric of a run over its steps; {} if the file is missing.

    A last line that a kill cut short is left out; values that were not finite become NaN.
    """
    if not path.exists():
        return {}
    found: dict[str, list[tuple[int, float]]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            numbers: Mapping[str, float | None] = json.loads(line)
        except ValueError:
            continue
        step = numbers.get("step")
        for name, value in numbers.items():
            if name != "step" and step is not None:
                entry = (int(step), float("nan") if value is None else float(value))
                found.setdefault(name, []).append(entry)
    return {name: Curve(*zip(*entries, strict=True)) for name, entries in found.items()}


def loss_curve(metrics: Mapping[str, Curve]) -> UInt8[np.ndarray, "rows columns 3"] | None:
    """A picture of the training loss, its running mean and the validation loss; None without any
    of them."""
    curves = {}
    if LOSS in metrics:
        curves["training"] = metrics[LOSS]
        if len(metrics[LOSS].steps) > 2 * _SMOOTHED:
            curves["mean"] = smoothed(metrics[LOSS])
    if VALIDATION in metrics:
        curves["validation"] = metrics[VALIDATION]._replace(dots=True)
    if not curves:
        return None
    values = np.concatenate([np.asarray(curve.values, np.float64) for curve in curves.values()])
    is_positive = bool((values[np.isfinite(values)] > 0).all())
    title = "loss over steps" + (" (logarithmic)" if is_positive else "")
    panels = [Panel(title, curves, logarithmic=is_positive)]
    if "learning_rate" in metrics:
        panels.append(Panel("learning rate", {"learning rate": metrics["learning_rate"]}))
    return plot(panels)


def smoothed(curve: Curve) -> Curve:
    """Means over stretches of the run, each at the middle of its steps."""
    steps = np.array_split(np.asarray(curve.steps, np.float64), _SMOOTHED)
    values = np.array_split(np.asarray(curve.values, np.float64), _SMOOTHED)
    middles = [float(part.mean()) for part in steps]
    means = [float(part[np.isfinite(part)].mean()) for part in values if np.isfinite(part).any()]
    if len(means) < len(middles):
        return curve
    return Curve(middles, means)
