"""The report of a run or a checkpoint as files: report.json for machines, report.md for people.

report.md says first what a person would say, then shows the table, what each score means, and the
pictures.
"""

import json
import os
from collections import ChainMap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from videomar_jax.evaluation import acting, motion
from videomar_jax.evaluation.metrics import METRICS, NETWORK_SCORES, Score
from videomar_jax.evaluation.scorecard import CANDIDATES, MODEL
from videomar_jax.io.files import atomic_write

SHARES: dict[str, Score] = {
    "better_than_copy": Score(
        "", "higher", "share of the clips with a higher PSNR than repeating the last given frame"
    ),
    "better_than_linear": Score(
        "", "higher", "share of the clips with a higher PSNR than the linear predictor"
    ),
    "right_caption_better": Score(
        "", "higher", "share of the clips with a higher PSNR than with another clip's caption"
    ),
}
"""Scores that compare the model with a baseline clip by clip."""

# A view, so that a row that is added to METRICS is in it; the last table comes first in the legend.
SCORES: Mapping[str, Any] = ChainMap(acting.SCORES, motion.SCORES, SHARES, NETWORK_SCORES, METRICS)
"""What the scores of a report mean, by name."""

_AT_THE_TOP = ("cases", "verdict", "verdicts", "notes")


def write_report(
    folder: str | os.PathLike, report: Mapping[str, Any], pictures: Mapping[str, str]
) -> None:
    """Writes report.json and report.md into `folder`.

    Args:
        report: "cases" (name → scores) and further top-level entries; of these "verdict" (a
            sentence), "verdicts" (name of a case → sentence) and "notes" (what was not computed,
            and why) stand first.
        pictures: file of a picture or video (relative to the folder) → caption. A video becomes a
            link.
    """
    folder = Path(folder)
    lines = ["# Report", ""]
    if report.get("verdict"):
        lines += [f"**{report['verdict']}**", ""]
    lines += [*score_table(report["cases"]), ""]
    for name, sentence in report.get("verdicts", {}).items():
        lines.append(f"- {_escaped(name)}: {sentence}")
    for note in report.get("notes", ()):
        lines.append(f"- {_escaped(note)}")
    lines += ["", "## What the scores mean", "", *legend(report["cases"]), ""]
    repeated = report["cases"].get("held_out", {})
    for name, value in report.items():
        if name not in _AT_THE_TOP and name not in repeated:
            lines.append(f"- `{name}`: {_plain(value)}")
    for file, caption in pictures.items():
        if file.endswith(".mp4"):
            lines += ["", f"[{caption}]({quote(file)})"]
        else:
            lines += ["", f"## {caption}", "", f"![{caption}]({quote(file)})"]
    atomic_write(folder / "report.json", json.dumps(report, indent=2) + "\n")
    atomic_write(folder / "report.md", "\n".join(lines) + "\n")


def score_table(cases: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    """For each case a row of the model and one of each baseline; a column for each score."""
    columns = dict.fromkeys(_split(key)[0] for scores in cases.values() for key in scores)
    yield "| case | " + " | ".join(columns) + " |"
    yield "|---" * (len(columns) + 1) + "|"
    for name, scores in cases.items():
        rows: dict[str, dict[str, float]] = {MODEL: {}}
        for key, value in scores.items():
            score_name, candidate = _split(key)
            rows.setdefault(candidate, {})[score_name] = value
        for candidate, values in rows.items():
            label = f"– {CANDIDATES[candidate]}" if candidate else _escaped(name)
            cells = [_plain(values.get(column, "")) for column in columns]
            yield "| " + " | ".join([label, *cells]) + " |"


def _split(key: str) -> tuple[str, str]:
    """A score's name and candidate: "psnr_linear" → ("psnr", "linear")."""
    for candidate in CANDIDATES:
        name = key.removesuffix(f"_{candidate}")
        if name != key and name in METRICS | NETWORK_SCORES | SHARES:
            return name, candidate
    return key, MODEL


def legend(cases: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    """What the scores in the table mean."""
    keys = {key for scores in cases.values() for key in scores}
    if "clips" in keys:
        yield "- clips: how many were scored"
    for name, meaning in SCORES.items():
        if name in keys:
            unit = f", in {meaning.unit}" if meaning.unit else ""
            which = f"{meaning.better} is better" if "near" not in meaning.better else "1 is best"
            yield f"- {name}: {meaning.description}{unit}; {which}"
    candidates = {_split(key)[1] for key in keys}
    for candidate, words in CANDIDATES.items():
        if candidate in candidates:
            yield f"- ..._{candidate} in report.json: the same score of {words}"


def _escaped(name: str) -> str:
    """A name as a cell of a table."""
    return name.replace("|", "&#124;")


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}".rstrip("0").rstrip(".")
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(entry)}" for key, entry in value.items())
    return str(value)
