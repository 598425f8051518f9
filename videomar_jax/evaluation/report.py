"""Scores of generated clips, and the report that shows them: report.json for machines, report.md
with pictures.

A `Case` holds true clips and the prompts they are regenerated from, given their first frame. All
scores leave the
first frame out, because it is given. Beside each PSNR stand two more: repeating the first frame
    (what a model must
beat) and encoding and decoding the truth (what no model over these latents can beat).
"""

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from videomar_jax.evaluation import metrics, motion
from videomar_jax.io.files import atomic_write
from videomar_jax.types import UInt8

Clips = UInt8[np.ndarray, "N F Hp Wp 3"]
Generate = Callable[[np.ndarray, Sequence[str], int], np.ndarray]
"""(first frames [N, 1, Hp, Wp, 3], prompts, frames in all) → clips."""
Reconstruct = Callable[[np.ndarray], np.ndarray]
"""Clips → encoded and decoded clips."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """Clips to regenerate.

    directions: where the object of each clip goes, for clips of the captioned shapes; None for
        other footage.
    """

    name: str
    title: str
    reference: Clips
    prompts: Sequence[str]
    directions: Sequence[str] | None = None


def quality(generated: Clips, reference: Clips, reconstruction: Clips) -> dict[str, float]:
    """Mean PSNR (dB) and SSIM over clips, the copy-first baseline and the tokenizer's ceiling,
    without frame 0."""
    truth, copy = reference[:, 1:], metrics.copy_first(reference)[:, 1:]
    return {
        "psnr": float(metrics.psnr(generated[:, 1:], truth).mean()),
        "psnr_copy_first": float(metrics.psnr(copy, truth).mean()),
        "psnr_ceiling": float(metrics.psnr(reconstruction[:, 1:], truth).mean()),
        "ssim": float(metrics.ssim(generated[:, 1:], truth).mean()),
        "ssim_copy_first": float(metrics.ssim(copy, truth).mean()),
        "ssim_ceiling": float(metrics.ssim(reconstruction[:, 1:], truth).mean()),
    }


def movement(generated: Clips, reference: Clips, directions: Sequence[str]) -> dict[str, float]:
    """Whether the object goes where it should, stays where the truth has it (px) and is still there
    at the end."""
    error = motion.centroid_error(generated, reference)[:, 1:]
    return {
        "direction_accuracy": motion.direction_accuracy(generated, directions),
        "centroid_error": float(error.mean()),
        "centroid_error_last": float(error[:, -1].mean()),
        "object_present": float(motion.object_present(generated, reference).mean()),
    }


def score(
    case: Case, generate: Generate, reconstruct: Reconstruct
) -> tuple[dict[str, float], Clips]:
    """All scores of a case, and the generated clips."""
    reference = case.reference
    generated = generate(reference[:, :1], case.prompts, reference.shape[1])
    scores = {"clips": float(len(reference))} | quality(
        generated, reference, reconstruct(reference)
    )
    if case.directions is not None:
        scores |= movement(generated, reference, case.directions)
    return scores, generated


def sheet_rows(case: Case, generated: Clips, count: int = 4) -> list[tuple[str, np.ndarray]]:
    """Rows for a contact sheet: each clip's truth above what was generated."""
    rows = []
    for i in range(min(count, len(generated))):
        prompt = case.prompts[i] or "(no caption)"
        rows += [(f"truth: {prompt}", case.reference[i]), (f"generated: {prompt}", generated[i])]
    return rows


def write_report(
    folder: str | os.PathLike, report: Mapping[str, Any], pictures: Mapping[str, str]
) -> None:
    """Writes report.json and report.md into `folder`.

    Args:
        report: "scores" of each case by name and further top-level entries.
        pictures: picture file (relative to the folder) → caption.
    """
    folder = Path(folder)
    lines = ["# Report", "", *_table(report["cases"]), ""]
    for name, value in report.items():
        if name == "cases":
            continue
        lines.append(f"- `{name}`: {_plain(value)}")
    for file, caption in pictures.items():
        lines += ["", f"## {caption}", "", f"![{caption}]({quote(file)})"]
    atomic_write(folder / "report.json", json.dumps(report, indent=2) + "\n")
    atomic_write(folder / "report.md", "\n".join(lines) + "\n")


def _table(cases: Mapping[str, Mapping[str, float]]) -> list[str]:
    columns = list(dict.fromkeys(key for scores in cases.values() for key in scores))
    lines = ["| case | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, scores in cases.items():
        cells = [
            name.replace("|", "&#124;"),
            *(_plain(scores.get(column, "")) for column in columns),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}".rstrip("0").rstrip(".")
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(entry)}" for key, entry in value.items())
    return str(value)
