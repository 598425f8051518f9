"""The scores of VBench-I2V, from what its evaluator writes: image-to-video, nine dimensions.

The evaluator gives each dimension a value x in 0..1. With the bounds and weights of `DIMENSIONS`,

    n(x)    = (x - low) / (high - low)
    I2V     = sum of weight * n(x) over the part "I2V",     / sum of the weights (2.1)
    Quality = sum of weight * n(x) over the part "Quality", / sum of the weights (5.5)
    Total   = (I2V + Quality) / 2

all in per cent in tables. Bounds and weights are those of scripts/constant.py and
scripts/cal_i2v_final_score.py in the repository of VBench (Huang et al., "VBench++", 2025). Unlike
that script, which counts a dimension without a result as 0, a score that lacks one is None here.
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from videomar_jax.checks import UserError, known_keys
from videomar_jax.io.files import read_json

RESULTS = "_eval_results.json"
"""How the names of the evaluator's result files end."""

Part = Literal["I2V", "Quality"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dimension:
    """One of the nine things that are measured."""

    name: str
    """In files."""
    title: str
    """In tables."""
    part: Part
    """The score that it belongs to."""
    weight: float
    """In that score."""
    low: float
    """The value that counts as 0."""
    high: float
    """The value that counts as 1."""
    videos: int
    """How many videos of the official suite are measured: five of each prompt."""
    scale: float = 1.0
    """What a video's own result is divided by to lie in 0..1."""

    def normalised(self, value: float) -> float:
        """The value on the scale of the scores."""
        return (value - self.low) / (self.high - self.low)


_SUBJECT, _BACKGROUND, _CAMERA = 5 * 246, 5 * 109, 5 * 763
_BOTH = _SUBJECT + _BACKGROUND

DIMENSIONS = {
    dimension.name: dimension
    for dimension in (
        Dimension(
            name="i2v_subject",
            title="I2V subject",
            part="I2V",
            weight=1.0,
            low=0.1462,
            high=1.0,
            videos=_SUBJECT,
        ),
        Dimension(
            name="i2v_background",
            title="I2V background",
            part="I2V",
            weight=1.0,
            low=0.2615,
            high=1.0,
            videos=_BACKGROUND,
        ),
        Dimension(
            name="camera_motion",
            title="Camera motion",
            part="I2V",
            weight=0.1,
            low=0.0,
            high=1.0,
            videos=_CAMERA,
        ),
        Dimension(
            name="subject_consistency",
            title="Subject consistency",
            part="Quality",
            weight=1.0,
            low=0.1462,
            high=1.0,
            videos=_SUBJECT,
        ),
        Dimension(
            name="background_consistency",
            title="Background consistency",
            part="Quality",
            weight=1.0,
            low=0.2615,
            high=1.0,
            videos=_BACKGROUND,
        ),
        Dimension(
            name="motion_smoothness",
            title="Motion smoothness",
            part="Quality",
            weight=1.0,
            low=0.706,
            high=0.9975,
            videos=_SUBJECT,
        ),
        Dimension(
            name="dynamic_degree",
            title="Dynamic degree",
            part="Quality",
            weight=0.5,
            low=0.0,
            high=1.0,
            videos=_SUBJECT,
        ),
        Dimension(
            name="aesthetic_quality",
            title="Aesthetic quality",
            part="Quality",
            weight=1.0,
            low=0.0,
            high=1.0,
            videos=_BOTH,
        ),
        Dimension(
            name="imaging_quality",
            title="Imaging quality",
            part="Quality",
            weight=1.0,
            low=0.0,
            high=1.0,
            videos=_BOTH,
            scale=100.0,
        ),
    )
}
"""Name of a dimension → what it is, in the order of tables."""

NOT_COUNTED = ("temporal_flickering",)
"""Dimensions that the suite names and the evaluator can measure, and no score counts."""

SCORES = ("I2V", "Quality", "Total")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
    """What is published of a model, in per cent as it is written."""

    model: str
    values: Mapping[str, float]
    """By the name of a dimension or of a score; what is left out is not published."""


PUBLISHED = (
    Published(
        model="VideoMAR",
        values={
            "i2v_subject": 97.9,
            "i2v_background": 98.4,
            "camera_motion": 21.6,
            "dynamic_degree": 11.0,
            "aesthetic_quality": 55.8,
            "imaging_quality": 62.3,
            "I2V": 94.02,
            "Quality": 75.6,
            "Total": 84.82,
        },
    ),
    Published(model="Cosmos", values={"I2V": 92.51, "Total": 84.16}),
    Published(model="CogVideoX", values={"Total": 86.7}),
    Published(model="HunyuanVideo", values={"Total": 86.8}),
    Published(model="Wan2.1", values={"Total": 86.9}),
    Published(model="Step-Video", values={"Total": 88.4}),
    Published(model="MAGI-1", values={"Total": 89.3}),
)
"""The paper's own row (arXiv 2506.14168), the model that it compares with, and stronger ones of
other kinds, as reported. MAGI-1 is the model of 24 billion parameters."""


def scores(values: Mapping[str, float]) -> dict[str, float | None]:
    """I2V, Quality and Total in 0..1; None where a dimension is missing.

    Args:
        values: of each dimension, in 0..1.
    Raises:
        UserError: there is no such dimension.
    """
    known_keys("the dimensions", values, DIMENSIONS)
    i2v, quality = _part("I2V", values), _part("Quality", values)
    total = None if i2v is None or quality is None else (i2v + quality) / 2
    return {"I2V": i2v, "Quality": quality, "Total": total}


def _part(part: Part, values: Mapping[str, float]) -> float | None:
    """The weighted mean over the dimensions of one part."""
    members = [dimension for dimension in DIMENSIONS.values() if dimension.part == part]
    if any(dimension.name not in values for dimension in members):
        return None
    total = sum(one.weight * one.normalised(values[one.name]) for one in members)
    return total / sum(one.weight for one in members)


# The evaluator's files


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """What the evaluator found in one dimension."""

    value: float
    """In 0..1."""
    videos: int
    """How many videos it measured."""
    file: Path
    """Where that is written."""


# Means of the same numbers in another order, or weighted by frames, differ by less.
_MOST_DIFFERENCE = 0.01


def result_files(places: Sequence[Path]) -> list[Path]:
    """The result files among files and folders, folders with all below them.

    Raises:
        FileNotFoundError: a place does not exist, or a folder holds no results.
    """
    files: list[Path] = []
    for place in places:
        if place.is_dir():
            found = sorted(place.rglob(f"*{RESULTS}"))
            if not found:
                raise FileNotFoundError(
                    f"{place} holds no file *{RESULTS}, which the evaluator writes when it ends."
                )
        elif place.exists():
            found = [place]
        else:
            raise FileNotFoundError(f"There are no results {place}.")
        files += [file for file in found if file not in files]
    return files


def read_results(files: Sequence[Path]) -> dict[str, Result]:
    """The results in the evaluator's files, by dimension; what no score counts is left out.

    Raises:
        UserError: a file is damaged or of something else, or two files have the same dimension.
    """
    results: dict[str, Result] = {}
    for file in files:
        try:
            found = _parse(file)
        except UserError as error:
            raise UserError(f"{file} holds no results of VBench-I2V: {error}") from error
        for name, result in found.items():
            if name in results:
                raise UserError(
                    f"{name} is measured twice, in {results[name].file} and in {file}: name only "
                    f"the files that belong together."
                )
            results[name] = result
    if not results:
        raise UserError(f"{', '.join(map(str, files))}: none of the dimensions has a result.")
    return {name: results[name] for name in DIMENSIONS if name in results}


def check_results(
    results: Mapping[str, Result], videos: Mapping[str, int], *, partial: bool = False
) -> list[str]:
    """What is missing for numbers that compare with others.

    Args:
        videos: how many videos the suite has in each dimension.
        partial: return it; False: raise it as an error.
    Raises:
        UserError: a dimension or videos are missing.
    """
    missing = [name for name in DIMENSIONS if name not in results]
    faults = [f"there are no results of {', '.join(missing)}"] if missing else []
    for name, result in results.items():
        if result.videos != videos[name]:
            faults.append(
                f"{name} was measured on {result.videos} videos, and the suite has {videos[name]}"
            )
    if faults and not partial:
        raise UserError(
            f"The results are not complete: {'; '.join(faults)}. Run the evaluator on what is "
            f"missing, or add --partial to see what there is."
        )
    return faults


def _parse(file: Path) -> dict[str, Result]:
    """The results in one file.

    Raises:
        UserError: it holds something else; the text is the reason.
    """
    values = read_json(file)
    if not isinstance(values, Mapping):
        raise UserError("it is no object with a result for each dimension")
    known_keys("the results", values, [*DIMENSIONS, *NOT_COUNTED])
    return {
        name: _result(DIMENSIONS[name], entry, file)
        for name, entry in values.items()
        if name in DIMENSIONS
    }


def _result(dimension: Dimension, entry: Any, file: Path) -> Result:
    """The result of one dimension: [value, …, one result for each video].

    Raises:
        UserError: it is something else.
    """
    name = dimension.name
    if not isinstance(entry, list) or len(entry) < 2 or not isinstance(entry[-1], list):
        raise UserError(f"{name} is no list of a value and the results of the videos")
    value = _number(name, entry[0])
    if not 0 <= value <= 1:
        raise UserError(f"{name} is {value:g}, and the evaluator's values lie in 0..1")
    each = []
    for video in entry[-1]:
        if not isinstance(video, Mapping) or "video_results" not in video:
            raise UserError(f'{name} has a video without "video_results"')
        each.append(_number(f"{name} of a video", video["video_results"]) / dimension.scale)
    if not each:
        raise UserError(f"{name} was measured on no video")
    mean = sum(each) / len(each)
    if abs(mean - value) > _MOST_DIFFERENCE:
        raise UserError(
            f"{name} is {value:.4f}, and the mean over its videos {mean:.4f}: the file was "
            f"edited, or is damaged"
        )
    return Result(value=value, videos=len(each), file=file)


def _number(name: str, value: Any) -> float:
    """A finite number; true and false, as the evaluator writes of single videos, are 1 and 0."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"{name} is {value!r}, which is no finite number")
    return float(value)


# The table


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """A model's results beside what is published."""

    results: Mapping[str, Result]
    faults: Sequence[str] = ()
    """What is missing for numbers that compare with others."""

    @property
    def scores(self) -> dict[str, float | None]:
        """As the function `scores`."""
        return scores({name: result.value for name, result in self.results.items()})

    def table(self) -> str:
        """Markdown, in per cent: a row for each dimension and score, a column for each model."""
        header = ["per cent", "this model", *(row.model for row in PUBLISHED)]
        rows = [header]
        titles = {name: dimension.title for name, dimension in DIMENSIONS.items()}
        titles |= {name: f"**{name}**" for name in SCORES}
        own = {name: result.value for name, result in self.results.items()} | self.scores
        for name, title in titles.items():
            value = own.get(name)
            cells = ["-" if value is None else f"{100 * value:.2f}"]
            cells += [str(row.values.get(name, "-")) for row in PUBLISHED]
            rows.append([title, *cells])
        widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
        lines = [_row(row, widths) for row in rows]
        rule = "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])])
        return "\n".join([lines[0], f"|{rule}|", *lines[1:]])

    def markdown(self) -> str:
        """The table with what must be said beside it."""
        lines = ["# VBench-I2V", "", self.table(), "", _REMARK, ""]
        if self.faults:
            lines += [f"Not complete, so not to be compared: {'; '.join(self.faults)}.", ""]
        return "\n".join(lines)

    def to_json(self) -> str:
        """Everything that the table shows; values in 0..1, what is published in per cent."""
        report = {
            "dimensions": {
                name: {
                    "value": result.value,
                    "normalised": DIMENSIONS[name].normalised(result.value),
                    "videos": result.videos,
                    "file": str(result.file),
                }
                for name, result in self.results.items()
            },
            "scores": self.scores,
            "incomplete": list(self.faults),
            "published_per_cent": {row.model: dict(row.values) for row in PUBLISHED},
        }
        return json.dumps(report, indent=2) + "\n"


_REMARK = (
    "Dimensions are as the evaluator gives them, scores from normalised values. - is not published."
)


def _row(cells: Sequence[str], widths: Sequence[int]) -> str:
    """One line of a Markdown table; numbers stand at the right."""
    numbers = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
    return f"| {' | '.join([cells[0].ljust(widths[0]), *numbers])} |"
