"""Scores of generated clips, and the report that shows them.

A `Case` holds true clips and the prompts they are regenerated from, given their first frame. All
scores leave out the first frame, because it is given. Beside each score of `metrics.METRICS` stand
two more: that of repeating the first frame, which a model must beat, and that of encoding and
decoding the truth, which no model over these latents can beat.

The report is report.json for machines and report.md, with pictures, for people.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from videomar_jax.evaluation.metrics import METRICS, Clips, copy_first
from videomar_jax.evaluation.motion import SCORES, movement
from videomar_jax.io.files import atomic_write

Generate = Callable[[np.ndarray, Sequence[str], int], np.ndarray]
"""(first frames [N, 1, Hp, Wp, 3], prompts, frames in all) → clips."""
Reconstruct = Callable[[np.ndarray], np.ndarray]
"""Clips → encoded and decoded clips."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """Clips to regenerate.

    name: of the scores and of the files with pictures; title: for people.
    reference: the true clips, [N, F, Hp, Wp, 3].
    prompts: what is asked for, one for each clip.
    directions: where the object of each clip goes, for captioned moving shapes; None for other
        footage.
    """

    name: str
    title: str
    reference: Clips
    prompts: Sequence[str]
    directions: Sequence[str] | None = None


def quality(generated: Clips, reference: Clips, reconstruction: Clips) -> dict[str, float]:
    """The mean over clips of every metric, of the copy-first baseline and of the tokenizer's
    ceiling, without frame 0."""
    truth = reference[:, 1:]
    candidates = {
        "": generated[:, 1:],
        "_copy_first": copy_first(reference)[:, 1:],
        "_ceiling": reconstruction[:, 1:],
    }
    scores = {}
    for name, metric in METRICS.items():
        for suffix, video in candidates.items():
            scores[f"{name}{suffix}"] = float(metric.function(video, truth).mean())
    return scores


def score(
    case: Case, generate: Generate, reconstruct: Reconstruct
) -> tuple[dict[str, float], Clips]:
    """All scores of a case, and the generated clips."""
    reference = case.reference
    generated = generate(reference[:, :1], case.prompts, reference.shape[1])
    scores = {"clips": float(len(reference))}
    scores |= quality(generated, reference, reconstruct(reference))
    if case.directions is not None:
        scores |= movement(generated, reference, case.directions)
    return scores, generated


def sheet_rows(case: Case, generated: Clips, count: int = 4) -> list[tuple[str, np.ndarray]]:
    """Labelled rows for a contact sheet: each of the first clips above what was generated."""
    rows = []
    for number in range(min(count, len(generated))):
        prompt = case.prompts[number] or "(no caption)"
        rows.append((f"truth: {prompt}", case.reference[number]))
        rows.append((f"generated: {prompt}", generated[number]))
    return rows


# Files


def write_report(
    folder: str | os.PathLike, report: Mapping[str, Any], pictures: Mapping[str, str]
) -> None:
    """Writes report.json and report.md into `folder`.

    Args:
        report: "cases" (name → scores) and further top-level entries.
        pictures: picture file (relative to the folder) → caption.
    """
    folder = Path(folder)
    lines = ["# Report", "", *_table(report["cases"]), "", *_legend(report["cases"]), ""]
    for name, value in report.items():
        if name != "cases":
            lines.append(f"- `{name}`: {_plain(value)}")
    for file, caption in pictures.items():
        lines += ["", f"## {caption}", "", f"![{caption}]({quote(file)})"]
    atomic_write(folder / "report.json", json.dumps(report, indent=2) + "\n")
    atomic_write(folder / "report.md", "\n".join(lines) + "\n")


def _table(cases: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    """A row for each case, a column for each score that some case has."""
    columns = list(dict.fromkeys(key for scores in cases.values() for key in scores))
    yield "| case | " + " | ".join(columns) + " |"
    yield "|---" * (len(columns) + 1) + "|"
    for name, scores in cases.items():
        cells = [_plain(scores.get(column, "")) for column in columns]
        escaped = name.replace("|", "&#124;")
        yield "| " + " | ".join([escaped, *cells]) + " |"


def _legend(cases: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    """What the scores in the table mean."""
    for name, meaning in (METRICS | SCORES).items():
        if any(name in scores for scores in cases.values()):
            unit = f", in {meaning.unit}" if meaning.unit else ""
            yield f"- {name}: {meaning.description}{unit}; {meaning.better} is better"
    yield "- ..._copy_first: the same score of repeating the first frame"
    yield "- ..._ceiling: the same score of the truth, encoded and decoded by the tokenizer"


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}".rstrip("0").rstrip(".")
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(entry)}" for key, entry in value.items())
    return str(value)
