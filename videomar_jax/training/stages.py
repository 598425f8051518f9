"""One row of the curriculum: which batches a stage trains on, for how many steps and how fast.

Every batch has one shape: images, or videos of one length and one size. A stage mixes entries e of
    weight w_e, each of
one length and of one or several sizes i; n_ei clips of the data belong to size i (those whose own
aspect ratio is nearest to it). A step takes a batch of shape (e, i) with probability

    P(e, i) = w_e / sum_e w_e * n_ei / sum_i n_ei,

so a weight is a share of steps, and an entry sees each of its clips equally often. The shape of
step s follows from (seed, stage number, s) alone, and its place in the data from the number of
earlier steps of that shape.
"""

import dataclasses
import difflib
import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from videomar_jax.types import Float, Int

ROW = ("name", "num_frames", "height", "width", "batch_size", "steps", "learning_rate")
MIXED_ROW = ("name", "mix", "steps", "learning_rate")
ENTRY = ("num_frames", "sizes", "batch_size", "weight")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchShape:
    """Pixel frames F, rows Hp and columns Wp of a clip, and the clips of the global batch."""

    num_frames: int
    height: int
    width: int
    batch_size: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mix:
    """An entry of a stage's mix.

    Attributes:
      num_frames: pixel frames F of a clip, 1 for images.
      sizes: pixel (rows, columns) that clips are cut to, each to the one nearest in aspect ratio;
          the main one first.
      batch_size: clips in the global batch, over all processes and devices.
      weight: the entry's share of the stage's steps is its weight over the sum of weights.

    Raises:
      ValueError: a value that cannot be, by name.
    """

    num_frames: int
    sizes: Sequence[Sequence[int]]
    batch_size: int
    weight: float = 1.0

    def __post_init__(self):
        _whole("num_frames", self.num_frames)
        _whole("batch_size", self.batch_size)
        _positive("weight", self.weight)
        if isinstance(self.sizes, str) or not isinstance(self.sizes, Sequence) or not self.sizes:
            raise ValueError(f"sizes must be pairs of height and width, got {self.sizes!r}.")
        for size in self.sizes:
            if isinstance(size, str) or not isinstance(size, Sequence) or len(size) != 2:
                raise ValueError(f"sizes must be pairs of height and width, got {size!r}.")
            for name, side in zip(("height", "width"), size, strict=True):
                _whole(name, side)
        object.__setattr__(self, "sizes", tuple(tuple(size) for size in self.sizes))
        if len(set(self.sizes)) < len(self.sizes):
            raise ValueError(f"sizes {self.sizes} name one size twice.")

    @property
    def shapes(self) -> tuple[BatchShape, ...]:
        """The shapes of its batches, in the order of `sizes`."""
        own = dict(num_frames=self.num_frames, batch_size=self.batch_size)
        return tuple(BatchShape(height=height, width=width, **own) for height, width in self.sizes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """One row.

    Attributes:
      name: how the stage is called in logs; unique in a curriculum.
      mix: what its batches are drawn from.
      steps: updates made in this stage.
      learning_rate: the peak in this stage, as the optimizer takes it.

    num_frames, height, width and batch_size are those of `main`.
    """

    name: str
    mix: Sequence[Mix]
    steps: int
    learning_rate: float

    def __post_init__(self):
        if not isinstance(self.name, str) or not self.name.strip():
            raise ValueError(
                f"A curriculum stage needs a name that can be read in the logs, got {self.name!r}."
            )
        try:
            _whole("steps", self.steps)
            _positive("learning_rate", self.learning_rate)
            self._check_mix()
        except ValueError as error:
            raise ValueError(f"Stage '{self.name}': {error}") from error
        object.__setattr__(self, "mix", tuple(self.mix))

    def _check_mix(self) -> None:
        if not self.mix:
            raise ValueError("mix must have at least one entry.")
        clips = [(entry.num_frames, *size) for entry in self.mix for size in entry.sizes]
        if twice := sorted({clip for clip in clips if clips.count(clip) > 1}):
            told = ", ".join(
                f"{frames} frames of {height}x{width}" for frames, height, width in twice
            )
            raise ValueError(
                f"mix has {told} in more than one entry; join these, and their weights."
            )

    @property
    def shapes(self) -> tuple[BatchShape, ...]:
        """Every shape that its batches have, entry by entry; all are different."""
        return tuple(shape for entry in self.mix for shape in entry.shapes)

    @property
    def main(self) -> BatchShape:
        """The shape that stands for the stage in previews, tokenizer fits and scores: of the entry
        whose clips are largest, the first size."""
        return max(
            (entry.shapes[0] for entry in self.mix), key=lambda s: s.num_frames * s.height * s.width
        )

    @property
    def num_frames(self) -> int:
        return self.main.num_frames

    @property
    def height(self) -> int:
        return self.main.height

    @property
    def width(self) -> int:
        return self.main.width

    @property
    def batch_size(self) -> int:
        return self.main.batch_size

    def shares(self, clips: Sequence[int]) -> Float[np.ndarray, "shapes"]:
        """The probability of each of `shapes`, of whose clips there are so many.

        Raises:
          ValueError: an entry has no clip at all.
        """
        shares, start, total = [], 0, sum(entry.weight for entry in self.mix)
        for entry in self.mix:
            own = np.asarray(clips[start : start + len(entry.sizes)], np.float64)
            if not own.sum():
                sizes = ", ".join(f"{height}x{width}" for height, width in entry.sizes)
                raise ValueError(
                    f"Stage '{self.name}': no clip is there for the entry of {entry.num_frames} frames of {sizes}; "
                    f"take it out, or add clips that are long enough."
                )
            shares.append(entry.weight / total * own / own.sum())
            start += len(own)
        return np.concatenate(shares)


def draw_shapes(
    stage: Stage, clips: Sequence[int], *, seed: int, index: int
) -> Int[np.ndarray, "steps"]:
    """For each step of stage number `index` the number of its batch's shape in `stage.shapes`.

    The first choices stay as they are when the stage is made longer. Arguments and errors as
    `Stage.shares`.
    """
    levels = np.cumsum(stage.shares(clips))
    draws = np.random.default_rng(np.random.SeedSequence((seed, index), spawn_key=(1,))).random(
        stage.steps
    )
    return np.searchsorted(levels / levels[-1], draws, side="right")


def stage_of_row(index: int, row: Mapping[str, Any]) -> Stage:
    """The stage of row number `index`: plain (`ROW`), or with a `mix` (`MIXED_ROW`) of entries
    (`ENTRY`).

    Raises:
      ValueError: the row lacks a key, has one that no stage knows, or a value that cannot be; the
          row is named.
    """
    place = (
        f"Curriculum row {index} ('{row['name']}')" if "name" in row else f"Curriculum row {index}"
    )
    if "mix" in row:
        if both := [key for key in ROW if key in row and key not in MIXED_ROW]:
            raise ValueError(
                f"{place} has a mix and {', '.join(both)}: these belong into the entries of the mix."
            )
        _check_keys(place, row, MIXED_ROW)
        mix = _mix(place, row["mix"])
    else:
        _check_keys(place, row, ROW, also=("mix",))
        sizes = ((row["height"], row["width"]),)
        mix = (
            _entry(
                f"Stage '{row['name']}'",
                dict(num_frames=row["num_frames"], sizes=sizes, batch_size=row["batch_size"]),
            ),
        )
    rate = row["learning_rate"]
    rate = float(rate) if type(rate) is int else rate
    return Stage(name=row["name"], mix=mix, steps=row["steps"], learning_rate=rate)


def _mix(place: str, entries: Any) -> tuple[Mix, ...]:
    if isinstance(entries, str | Mapping) or not isinstance(entries, Sequence):
        raise ValueError(
            f"{place}: mix must be a sequence of entries with {', '.join(ENTRY)}, got {entries!r}."
        )
    mix = []
    for number, entry in enumerate(entries):
        where = f"{place}, mix[{number}]"
        if not isinstance(entry, Mapping):
            raise ValueError(f"{where} must be an entry with {', '.join(ENTRY)}, got {entry!r}.")
        entry = dict(entry)
        if "sizes" not in entry and ("height" in entry or "width" in entry):
            _check_keys(
                where,
                entry,
                ("num_frames", "height", "width", "batch_size", "weight"),
                optional=("weight",),
            )
            entry["sizes"] = ((entry.pop("height"), entry.pop("width")),)
        _check_keys(where, entry, ENTRY, optional=("weight",), also=("height", "width"))
        if both := [key for key in ("height", "width") if key in entry]:
            raise ValueError(f"{where} has sizes and {' and '.join(both)}: give one or the other.")
        mix.append(_entry(where, entry))
    return tuple(mix)


def _entry(place: str, values: dict[str, Any]) -> Mix:
    weight = values.get("weight", 1.0)
    try:
        return Mix(**values | {"weight": float(weight) if type(weight) is int else weight})
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error


def _check_keys(
    place: str,
    values: Mapping[str, Any],
    known: Sequence[str],
    *,
    optional: Sequence[str] = (),
    also: Sequence[str] = (),
) -> None:
    """`also` are keys that are told about elsewhere."""
    for key in values:
        if key not in known and key not in also:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"the keys are {', '.join(known)}."
            raise ValueError(f"{place} has an unknown key '{key}': {hint}")
    if missing := [key for key in known if key not in values and key not in optional]:
        raise ValueError(f"{place} lacks {', '.join(missing)}.")


def _whole(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}.")


def _positive(name: str, value: Any) -> None:
    if (
        isinstance(value, bool)
        or not isinstance(value, numbers.Real)
        or not (math.isfinite(value) and value > 0)
    ):
        raise ValueError(f"{name} must be a positive number, got {value!r}.")
