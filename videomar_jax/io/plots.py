"""Curves over the steps of a run, as a picture: enough for a report, without a plotting library.

Panels of one width stand below each other, each with its own scale, some curves and their legend.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from videomar_jax.checks import UserError
from videomar_jax.types import UInt8

_PAGE, _INK, _GRID = (255, 255, 255), (40, 40, 44), (226, 226, 226)
# Distinguishable for most colour-blind people (Okabe and Ito 2008).
_COLOURS = ((0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (230, 159, 0), (0, 0, 0))
_WIDTH, _PANEL = 900, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 80, 20, 44, 30
_FONT_SIZE = 14
_DRAWN_TWICE = 2  # and halved afterwards, which smooths the lines


class Curve(NamedTuple):
    """Values over steps."""

    steps: Sequence[float]
    values: Sequence[float]
    """As many; those that are not finite leave a gap."""
    dots: bool = False
    """Mark the values, which suits a few of them."""


class Panel(NamedTuple):
    """Curves with one scale."""

    title: str
    curves: Mapping[str, Curve]
    """By name."""
    logarithmic: bool = False
    """Of values above 0."""


def plot(panels: Sequence[Panel]) -> UInt8[np.ndarray, "rows columns 3"]:
    """A picture of the panels, 900 pixels wide.

    Raises:
        UserError: no panel, or a curve with another number of steps than values.
    """
    if not panels:
        raise UserError("A plot needs at least one panel.")
    scale = _DRAWN_TWICE
    page = Image.new("RGB", (_WIDTH * scale, _PANEL * len(panels) * scale), _PAGE)
    for number, panel in enumerate(panels):
        _draw(ImageDraw.Draw(page), panel, float(number * _PANEL * scale))
    size = (_WIDTH, _PANEL * len(panels))
    return np.asarray(page.resize(size, Image.Resampling.LANCZOS))


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers within [low, high]: steps of 1, 2 or 5 times a power of ten."""
    if not high > low:
        return [low]
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


class _Scale(NamedTuple):
    """From values to a pixel along one axis."""

    low: float
    high: float
    start: float
    end: float

    def place(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def _scale_of(values: list[float], start: float, end: float, margin: float) -> _Scale:
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if high == low:
        # A level curve lies in the middle.
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
    extra = margin * (high - low)
    return _Scale(low - extra, high + extra, start, end)


def _points(panel: Panel, curve: Curve) -> list[list[tuple[float, float]]]:
    """The stretches of (step, value) without a gap, values in their logarithm where asked for."""
    if len(curve.steps) != len(curve.values):
        raise UserError(
            f"A curve of {panel.title!r} has {len(curve.steps)} steps and {len(curve.values)} "
            f"values."
        )
    stretches: list[list[tuple[float, float]]] = [[]]
    for step, value in zip(curve.steps, curve.values, strict=True):
        if math.isfinite(value) and (value > 0 or not panel.logarithmic):
            height = math.log10(value) if panel.logarithmic else float(value)
            stretches[-1].append((float(step), height))
        elif stretches[-1]:
            stretches.append([])
    return [stretch for stretch in stretches if stretch]


def _draw(draw: ImageDraw.ImageDraw, panel: Panel, top: float) -> None:
    unit = _DRAWN_TWICE
    lines = {name: _points(panel, curve) for name, curve in panel.curves.items()}
    everything = [point for stretches in lines.values() for line in stretches for point in line]
    edges = float(_LEFT * unit), float((_WIDTH - _RIGHT) * unit)
    across = _scale_of([x for x, _ in everything], *edges, 0.0)
    down = _scale_of(
        [y for _, y in everything], top + (_PANEL - _BOTTOM) * unit, top + _TOP * unit, 0.05
    )
    font = ImageFont.load_default(_FONT_SIZE * unit)
    _draw_grid(draw, across, down, font, panel.logarithmic)
    draw.text((_LEFT * unit, top + 6 * unit), panel.title, fill=_INK, font=font)
    right = edges[1]
    # The legend is set from the right.
    for number, (name, stretches) in reversed(list(enumerate(lines.items()))):
        colour = _COLOURS[number % len(_COLOURS)]
        right -= font.getlength(name)
        draw.text((right, top + 6 * unit), name, fill=colour, font=font)
        right -= 16 * unit
        for line in stretches:
            places = [(across.place(x), down.place(y)) for x, y in line]
            draw.line(places, fill=colour, width=2 * unit, joint="curve")
            if panel.curves[name].dots or len(places) == 1:
                for x, y in places:
                    radius = 3 * unit
                    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)


def _draw_grid(
    draw: ImageDraw.ImageDraw,
    across: _Scale,
    down: _Scale,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    logarithmic: bool,
) -> None:
    gap = 6 * _DRAWN_TWICE
    for value in ticks(down.low, down.high, 5):
        y = down.place(value)
        draw.line([(across.start, y), (across.end, y)], fill=_GRID, width=_DRAWN_TWICE)
        label = f"{10**value:.3g}" if logarithmic else f"{value:.6g}"
        draw.text((across.start - gap, y), label, fill=_INK, font=font, anchor="rm")
    for step in ticks(across.low, across.high, 8):
        if step != round(step):
            continue  # there are no half steps
        x = across.place(step)
        draw.line([(x, down.start), (x, down.end)], fill=_GRID, width=_DRAWN_TWICE)
        draw.text((x, down.start + gap), f"{step:.6g}", fill=_INK, font=font, anchor="ma")
