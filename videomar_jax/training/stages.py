"""One row of the curriculum: which batches a stage trains on, for how many steps and how fast.

Every batch has one shape: images, or videos of one length and one size. A stage mixes entries e of
weight w_e, each of one length and of one or several sizes i; n_ei clips of the data belong to size
i (those whose own aspect ratio is nearest to it). A step takes a batch of shape (e, i) with
probability

    P(e, i) = w_e / sum_e w_e * n_ei / sum_i n_ei,

so a weight is a share of steps, and an entry sees each of its clips equally often. The shape of
step s follows from (seed, stage number, s) alone, and its place in the data from the number of
earlier steps of that shape.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from videomar_jax.checks import Positive, UserError, at_least, check_value, known_keys
from videomar_jax.types import Float, Int

ROW = ("name", "num_frames", "height", "width", "batch_size", "steps", "learning_rate")
"""The keys of a plain row."""
MIXED_ROW = ("name", "mix", "steps", "learning_rate")
"""The keys of a row with a mix."""
ENTRY = ("num_frames", "sizes", "batch_size", "weight")
"""The keys of an entry of a mix."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchShape:
    """The shape of the clips of a batch, and their number."""

    num_frames: int
    """Pixel frames F of a clip, 1 for images."""
    height: int
    """Pixel rows Hp."""
    width: int
    """Pixel columns Wp."""
    batch_size: int
    """Clips in the global batch, over all processes and devices."""


def describe_shape(shape: BatchShape) -> str:
    """A shape in words, such as "9 frames of 32x48"."""
    return f"{shape.num_frames} frames of {shape.height}x{shape.width}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mix:
    """An entry of a stage's mix.

    Raises:
        UserError: a value that is not possible, by name.
    """

    num_frames: int
    """Pixel frames F of a clip, 1 for images."""
    sizes: Sequence[Sequence[int]]
    """Pixel (rows, columns) that clips are cut to, each clip to the nearest in aspect ratio; the
    main size first."""
    batch_size: int
    """Clips in the global batch, over all processes and devices."""
    weight: float = 1.0
    """The entry's share of the stage's steps is its weight over the sum of all weights."""

    def __post_init__(self):
        at_least("num_frames", self.num_frames, 1)
        at_least("batch_size", self.batch_size, 1)
        check_value("weight", self.weight, Positive)
        if not _is_sequence(self.sizes) or not self.sizes:
            raise UserError(f"sizes must be pairs of height and width, not {self.sizes!r}.")
        for size in self.sizes:
            if not _is_sequence(size) or len(size) != 2:
                raise UserError(f"sizes must be pairs of height and width, not {size!r}.")
            at_least("height", size[0], 1)
            at_least("width", size[1], 1)
        object.__setattr__(self, "sizes", tuple(tuple(size) for size in self.sizes))
        if len(set(self.sizes)) < len(self.sizes):
            raise UserError(f"sizes {self.sizes} name one size twice.")

    @property
    def shapes(self) -> tuple[BatchShape, ...]:
        """The shapes of its batches, in the order of `sizes`."""
        shapes = []
        for height, width in self.sizes:
            shapes.append(
                BatchShape(
                    num_frames=self.num_frames,
                    height=height,
                    width=width,
                    batch_size=self.batch_size,
                )
            )
        return tuple(shapes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """One row of the curriculum.

    num_frames, height, width and batch_size are those of `main`.

    Raises:
        UserError: a value that is not possible, with the stage's name.
    """

    name: str
    """What the stage is called in logs; unique in a curriculum."""
    mix: Sequence[Mix]
    """What its batches are drawn from."""
    steps: int
    """The number of updates."""
    learning_rate: float
    """The peak in this stage, as the optimizer takes it."""

    def __post_init__(self):
        if not isinstance(self.name, str) or not self.name.strip():
            raise UserError(
                f"A curriculum stage needs a name that can be read in the logs, not {self.name!r}."
            )
        try:
            at_least("steps", self.steps, 1)
            check_value("learning_rate", self.learning_rate, Positive)
            self._check_mix()
        except UserError as error:
            raise UserError(f"Stage '{self.name}': {error}") from error
        object.__setattr__(self, "mix", tuple(self.mix))

    def _check_mix(self) -> None:
        if not self.mix:
            raise UserError("mix must have at least one entry.")
        seen = set()
        for entry in self.mix:
            for shape in entry.shapes:
                # Shapes that differ only in their batch size would be trained on as one.
                clip = describe_shape(shape)
                if clip in seen:
                    raise UserError(
                        f"mix has {clip} in more than one entry; join these, and their weights."
                    )
                seen.add(clip)

    @property
    def shapes(self) -> tuple[BatchShape, ...]:
        """Every shape that its batches have, entry by entry; all are different."""
        return tuple(shape for entry in self.mix for shape in entry.shapes)

    @property
    def main(self) -> BatchShape:
        """The shape that represents the stage in previews, tokenizer fits and scores.

        It is the first size of the entry whose clips have the most pixels.
        """

        def pixels(shape: BatchShape) -> int:
            return shape.num_frames * shape.height * shape.width

        return max((entry.shapes[0] for entry in self.mix), key=pixels)

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
        """The probability P(e, i) of each of `shapes`.

        Args:
            clips: the number of clips of each shape.
        Raises:
            UserError: an entry has no clips at all.
        """
        shares = []
        start = 0
        total = sum(entry.weight for entry in self.mix)
        for entry in self.mix:
            counts = np.asarray(clips[start : start + len(entry.sizes)], np.float64)
            if not counts.sum():
                sizes = ", ".join(f"{height}x{width}" for height, width in entry.sizes)
                raise UserError(
                    f"Stage '{self.name}': there is no clip for the entry of {entry.num_frames} "
                    f"frames of {sizes}; remove it, or add clips that are long enough."
                )
            shares.append(entry.weight / total * counts / counts.sum())
            start += len(counts)
        return np.concatenate(shares)


def draw_shapes(
    stage: Stage, clips: Sequence[int], *, seed: int, index: int
) -> Int[np.ndarray, "steps"]:
    """For each step of a stage the number of its batch's shape in `stage.shapes`.

    The first choices stay the same when the stage is made longer.

    Args:
        clips: the number of clips of each shape.
        index: the number of the stage in its curriculum.
    Raises:
        UserError: an entry has no clips at all.
    """
    levels = np.cumsum(stage.shares(clips))
    sequence = np.random.SeedSequence((seed, index), spawn_key=(1,))
    draws = np.random.default_rng(sequence).random(stage.steps)
    return np.searchsorted(levels / levels[-1], draws, side="right")


def truncated_frames(seed: int, step: int, frames: int) -> int:
    """How many of `frames` latent frames are kept at a step of truncated training.

    1 + k with k uniform over 1..T-1, the same for the whole batch; 1 for images. It follows from
    (seed, step) alone, so every process of a run gets the same.
    """
    if frames < 2:
        return frames
    # NumPy, not JAX: the host needs the number before it reads the clips.
    sequence = np.random.SeedSequence((seed, step), spawn_key=(2,))
    return int(np.random.default_rng(sequence).integers(2, frames + 1))


# From rows of plain values to stages


def stage_of_row(index: int, row: Mapping[str, Any]) -> Stage:
    """The stage of row number `index`: plain (`ROW`), or with a `mix` (`MIXED_ROW`) of entries
    (`ENTRY`, or height and width for one size).

    Raises:
        UserError: the row lacks a key, or has an unknown one or a value that is not possible; the
            row is named.
    """
    place = f"Curriculum row {index}"
    if not isinstance(row, Mapping):
        raise UserError(f"{place} is {row!r}, not a mapping with {', '.join(ROW)}.")
    if "name" in row:
        place += f" ('{row['name']}')"
    if "mix" in row:
        misplaced = [key for key in ROW if key in row and key not in MIXED_ROW]
        if misplaced:
            raise UserError(
                f"{place} has a mix and {', '.join(misplaced)}: these belong into the entries of "
                f"the mix."
            )
        known_keys(place, row, MIXED_ROW, required=MIXED_ROW)
        mix = _mix(place, row["mix"])
    else:
        known_keys(place, row, ROW, required=ROW)
        entry = {
            "num_frames": row["num_frames"],
            "sizes": ((row["height"], row["width"]),),
            "batch_size": row["batch_size"],
        }
        mix = (_entry(f"Stage '{row['name']}'", entry),)
    rate = _float_of_int(row["learning_rate"])
    return Stage(name=row["name"], mix=mix, steps=row["steps"], learning_rate=rate)


def _mix(place: str, entries: Any) -> tuple[Mix, ...]:
    if not _is_sequence(entries):
        raise UserError(
            f"{place}: mix must be a sequence of entries with {', '.join(ENTRY)}, not {entries!r}."
        )
    mix = []
    for number, entry in enumerate(entries):
        where = f"{place}, mix[{number}]"
        if not isinstance(entry, Mapping):
            raise UserError(f"{where} must be an entry with {', '.join(ENTRY)}, not {entry!r}.")
        mix.append(_entry(where, _with_sizes(where, dict(entry))))
    return tuple(mix)


def _with_sizes(place: str, entry: dict[str, Any]) -> dict[str, Any]:
    """The entry with `sizes`, also where it has one height and width instead."""
    given = [key for key in ("height", "width") if key in entry]
    if not given:
        known_keys(place, entry, ENTRY, required=("num_frames", "sizes", "batch_size"))
        return entry
    if "sizes" in entry:
        raise UserError(f"{place} has sizes and {' and '.join(given)}: give one or the other.")
    plain = ("num_frames", "height", "width", "batch_size")
    known_keys(place, entry, (*plain, "weight"), required=plain)
    height, width = entry.pop("height"), entry.pop("width")
    return entry | {"sizes": ((height, width),)}


def _entry(place: str, values: dict[str, Any]) -> Mix:
    weight = _float_of_int(values.get("weight", 1.0))
    try:
        return Mix(**values | {"weight": weight})
    except UserError as error:
        raise UserError(f"{place}: {error}") from error


def _float_of_int(value: Any) -> Any:
    return float(value) if type(value) is int else value


def _is_sequence(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)
