"""What the log says of footage before a run trains on it: what there is, how much moves, and what
scores mean on it.

A sample of training windows of the last stage's shape is read one at a time, for some seconds at
most; nothing is kept of a window but its numbers.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import numpy as np

from videomar_jax.data.loader import fixed_clips
from videomar_jax.data.sources import ClipShape, ClipSource, clips_for
from videomar_jax.data.transforms import cover_size
from videomar_jax.evaluation.metrics import changed_pixels, copy_first, psnr
from videomar_jax.io.log import log
from videomar_jax.tokenizers import Tokenizer, to_pixels, to_video
from videomar_jax.types import Bool, Float, UInt8

# How many windows are looked at, and for how long.
_SAMPLE, _LEAST, _SECONDS = 64, 4, 8.0
# Clips fewer than this are few.
_FEW = 10
# A window of which a smaller share of pixels changes hardly moves.
_STILL = 0.01
# Grey levels: what a bar may have at most; between frames, what a slide may change; and a jump.
_BLACK, _RESTS, _JUMPS = 24, 0.3, 8.0
# The narrowest bar, in shares of a frame's side, and the share of the clips that have one.
_NARROWEST, _SHARE = 0.03, 0.2


class Row(NamedTuple):
    """One line of what to expect."""

    name: str
    text: str


class Bars(NamedTuple):
    """Black rows and columns at the edges of a window."""

    top: int
    bottom: int
    left: int
    right: int


@dataclass(frozen=True, kw_only=True)
class WindowFacts:
    """What is measured of one window, continued from its first frame."""

    difference: float
    """Mean absolute difference between neighbouring frames, in grey levels."""
    changed: float
    """Share of the pixels of later frames that differ from the first by more than 10 levels."""
    copy: float
    """PSNR of repeating the first frame, in dB."""
    ceiling: float
    """PSNR of what the tokenizer gives back, in dB, without the first frame."""
    is_slides: bool
    """Everything rests but for jumps."""
    bars: Bars


def describe_footage(
    source: ClipSource,
    tokenizer: Tokenizer,
    shape: ClipShape,
    linear: Mapping[str, float] | None = None,
) -> list[Row]:
    """Logs what to expect of training on these clips, and warns of what will disappoint.

    Args:
        source: training clips with pixels, without random zoom and flips.
        shape: of the last stage's clips.
        linear: PSNR in dB of the linear predictor and of repeating ("copy") on the clips that its
            fit left out; None: it was not fitted.
    Returns:
        What was logged, warnings last.
    """
    indices = clips_for(source, shape, ((shape.height, shape.width),))
    if not len(indices) or shape.num_frames < 2:
        return []
    facts = list(_sampled(source, tokenizer, shape, indices))
    rows = [*_what_there_is(source, shape, indices), *_scores(facts, linear)]
    warnings = [*_warnings_of_clips(source, shape, indices), *_warnings_of_windows(facts, shape)]
    log.info("footage: %s", "; ".join(f"{name} {text}" for name, text in rows))
    for warning in warnings:
        log.warning("footage: %s", warning)
    return rows + [Row("warning", warning) for warning in warnings]


# Numbers


def _sampled(
    source: ClipSource, tokenizer: Tokenizer, shape: ClipShape, indices: np.ndarray
) -> Iterator[WindowFacts]:
    """Yields the facts of random windows of evenly spread clips."""
    started = time.monotonic()
    for number in range(_SAMPLE):
        if number >= _LEAST and time.monotonic() > started + _SECONDS:
            return
        index = int(indices[number * len(indices) // _SAMPLE])
        video = fixed_clips(source, [index], shape=shape, seed=number)["video"]
        yield _facts(tokenizer, video)


def _facts(tokenizer: Tokenizer, video: UInt8[np.ndarray, "1 F Hp Wp 3"]) -> WindowFacts:
    steps = np.abs(np.diff(video[0].astype(np.int16), axis=0)).mean(axis=(1, 2, 3))
    again = np.asarray(_reconstructed(tokenizer, video))
    return WindowFacts(
        difference=float(steps.mean()),
        changed=float(changed_pixels(video[:, 1:], video[:, :1]).mean()),
        copy=float(psnr(copy_first(video)[:, 1:], video[:, 1:])[0]),
        ceiling=float(psnr(again[:, 1:], video[:, 1:])[0]),
        is_slides=bool(np.median(steps) < _RESTS and steps.max() >= _JUMPS),
        bars=_bars(video[0]),
    )


@jax.jit
def _reconstructed(tokenizer: Tokenizer, video: UInt8[jax.Array, "1 F Hp Wp 3"]):
    return to_video(tokenizer.decode(tokenizer.encode(to_pixels(video))))


def _bars(video: UInt8[np.ndarray, "F Hp Wp 3"]) -> Bars:
    bright = video.max(axis=3) > _BLACK
    return Bars(*_edges(bright), *_edges(bright.transpose(0, 2, 1)))


def _edges(bright: Bool[np.ndarray, "F lines places"]) -> tuple[int, int]:
    """How many lines are dark before the first bright one, and after the last.

    A line that is bright in less than half of its places in every frame is that of an object on a
    dark ground, which has no edge there.
    """
    return _dark_before(bright), _dark_before(bright[:, ::-1])


def _dark_before(bright: Bool[np.ndarray, "F lines places"]) -> int:
    number = int(np.argmax(bright.any(axis=(0, 2))))
    return number if bright[:, number].mean(axis=1).max() >= 0.5 else 0


# Words


def _what_there_is(source: ClipSource, shape: ClipShape, indices: np.ndarray) -> Iterator[Row]:
    yield Row("clips", str(len(indices)))
    lengths = getattr(source, "lengths", None)
    if lengths is not None:
        windows = int((lengths[indices] // shape.num_frames).sum())
        yield Row("windows", f"{windows} of {shape.num_frames} frames, end to end")
    captions = getattr(source, "captions", None)
    if captions is not None:
        given = [captions[index] for index in indices if captions[index]]
        yield Row("captions", f"{len(set(given))} different, {len(indices) - len(given)} empty")


def _scores(facts: Sequence[WindowFacts], linear: Mapping[str, float] | None) -> Iterator[Row]:
    yield Row("motion", f"{_mean(facts, 'difference'):.1f} grey levels a frame")
    changed = 100 * _mean(facts, "changed")
    yield Row("changed pixels", f"{changed:.1f} % by more than 10 levels from the first frame")
    yield Row("repeating the first frame", f"{_mean(facts, 'copy'):.1f} dB")
    if linear:
        best = max(value for kind, value in linear.items() if kind != "copy")
        text = f"{best:.1f} dB, where repeating scores {linear['copy']:.1f} dB"
        yield Row("the linear predictor", text)
    yield Row("the tokenizer's ceiling", f"{_mean(facts, 'ceiling'):.1f} dB")


def _mean(facts: Sequence[WindowFacts], name: str) -> float:
    return float(np.mean([getattr(each, name) for each in facts]))


def _warnings_of_clips(source: ClipSource, shape: ClipShape, indices: np.ndarray) -> Iterator[str]:
    if len(indices) == 1:
        yield (
            "there is a single clip: it will be learnt by heart, and scores tell only how it goes "
            "on; more clips, or data.zoom and data.flip, help"
        )
    elif len(indices) < _FEW:
        yield (
            f"there are {len(indices)} clips only: they will be learnt by heart unless data.zoom "
            "and data.flip make more of them"
        )
    captions = getattr(source, "captions", None)
    if captions is not None and not any(captions[index] for index in indices):
        yield "no clip has a caption: prompts will change nothing (docs/data.md says where they go)"
    yield from _warnings_of_sizes(source, shape, indices)
    rates = getattr(source, "rates", None)
    if rates is not None:
        slower = int((rates[indices] < 0.95 * source.fps).sum())
        if slower:
            yield (
                f"{slower} of {len(indices)} clips have fewer frames a second than data.fps="
                f"{source.fps:g}, at least {rates[indices].min():.3g}: frames are repeated, which "
                "the model will learn to do; lower data.fps"
            )
        if rates[indices].max() > 1.5 * rates[indices].min():
            yield (
                f"clips have {rates[indices].min():.3g} to {rates[indices].max():.3g} frames a "
                f"second; all are taken at {source.fps:g}"
            )


def _warnings_of_sizes(source: ClipSource, shape: ClipShape, indices: np.ndarray) -> Iterator[str]:
    sizes = getattr(source, "sizes", None)
    if sizes is None:
        return
    height, width = shape.height, shape.width
    lost, smaller = [], 0
    for rows, columns in np.asarray(sizes)[indices].tolist():
        covering = cover_size(rows, columns, height, width)
        lost.append(1 - height * width / (covering[0] * covering[1]))
        smaller += rows < height or columns < width
    if np.mean(lost) > _SHARE:
        yield (
            f"cropping to {height}x{width} leaves out {100 * np.mean(lost):.0f} % of a frame on "
            "average: choose a size of the clips' proportions"
        )
    if max(lost) - min(lost) > _SHARE:
        different = len({tuple(size) for size in np.asarray(sizes)[indices].tolist()})
        yield (
            f"clips have {different} sizes of different proportions, and cropping leaves out "
            f"{100 * min(lost):.0f} to {100 * max(lost):.0f} % of a frame"
        )
    if smaller:
        yield (
            f"{smaller} of {len(indices)} clips are smaller than {height}x{width} and are "
            "enlarged, so they are soft"
        )


def _warnings_of_windows(facts: Sequence[WindowFacts], shape: ClipShape) -> Iterator[str]:
    count = len(facts)
    still = sum(each.changed < _STILL for each in facts)
    slides = sum(each.is_slides for each in facts)
    if still > count / 2:
        yield (
            f"{still} of {count} windows hardly move: repeating the first frame is hard to beat "
            "there; a lower data.fps or longer clips show more motion"
        )
    elif still > _SHARE * count:
        yield f"{still} of {count} windows hardly move, and teach little but to repeat a frame"
    if slides > _SHARE * count / 4:
        yield (
            f"{slides} of {count} windows rest but for jumps, as slides and cuts do, which nothing "
            "can foresee; data.split_cuts=True keeps windows from running across them"
        )
    yield from _warnings_of_bars(facts, shape)
    ceiling, copy = _mean(facts, "ceiling"), _mean(facts, "copy")
    if ceiling < copy + 3:
        yield (
            f"what the tokenizer gives back ({ceiling:.1f} dB) is hardly better than repeating the "
            f"first frame ({copy:.1f} dB), so no model can be much better: set more "
            "tokenizer.channels and model.latent_channels"
        )


def _warnings_of_bars(facts: Sequence[WindowFacts], shape: ClipShape) -> Iterator[str]:
    bars: Float[np.ndarray, "N 4"] = np.array([each.bars for each in facts], float)
    height, width = shape.height, shape.width
    sides = (
        ("rows above and below", bars[:, 0] + bars[:, 1], height),
        ("columns at the left and right", bars[:, 2] + bars[:, 3], width),
    )
    for name, dark, side in sides:
        has = dark >= max(_NARROWEST * side, 1)
        if has.mean() > _SHARE:
            yield (
                f"{int(has.sum())} of {len(facts)} windows have black bars, "
                f"{np.median(dark[has]):g} of {side} {name}: they take tokens and flatter every "
                "score; crop the videos first (ffmpeg's cropdetect and crop filters)"
            )
