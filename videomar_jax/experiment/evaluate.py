"""Generates held-out clips with a model, scores them and shows them beside the truth."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from videomar_jax.checks import UserError
from videomar_jax.data.sources import ClipSource
from videomar_jax.evaluation.report import Case, score, sheet_rows, write_report
from videomar_jax.experiment.cases import CaseSettings
from videomar_jax.experiment.config import Experiment
from videomar_jax.experiment.data_sources import DATA_KINDS
from videomar_jax.inference.stream import VideoSampler
from videomar_jax.io.log import log
from videomar_jax.io.media import contact_sheet, write_gif, write_mp4, write_png
from videomar_jax.pretrained.bundle import load_pretrained
from videomar_jax.tokenizers import Tokenizer
from videomar_jax.types import UInt8

SUMMARY = {
    "unseen_triples_direction_accuracy": "unseen_triples",
    "counterfactual_accuracy": "counterfactual",
    "shuffled_caption_accuracy": "shuffled_captions",
}
"""Entries of report.json that repeat the direction accuracy of a case."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What `evaluate` found.

    report: the scores of each case under "cases", and the most important ones above.
    pictures: picture file in the folder → its caption.
    """

    report: dict[str, Any]
    pictures: dict[str, str]


def evaluate_checkpoint(
    experiment: Experiment, output: Path, checkpoint: str | os.PathLike
) -> dict[str, Any]:
    """Scores a checkpoint's averaged parameters on the experiment's held-out clips.

    Clips are sampled as the experiment says. Writes the report into `output` and returns it.

    Raises:
        UserError: `output` holds a report already.
    """
    if (output / "report.json").exists():
        raise UserError(f"{output} already holds a report; choose another --output.")
    pretrained = load_pretrained(checkpoint)
    sampler = VideoSampler.from_bundle(
        pretrained.model,
        pretrained.bundle,
        experiment.sampling,
        batch_size=experiment.evaluation.batch_size,
    )
    held_out = experiment.source("test", min_frames=experiment.final_stage.num_frames)
    found = evaluate(experiment, sampler, held_out, output / "report")
    report = found.report | {"step": pretrained.step}
    save_report(output, report, found.pictures)
    return report


def evaluate(
    experiment: Experiment, sampler: VideoSampler, held_out: ClipSource, folder: Path
) -> Evaluation:
    """Generates and scores every case of this kind of data; writes pictures into `folder`."""
    kind = DATA_KINDS[experiment.data.kind]
    cases = kind.cases(held_out, case_settings(experiment, sampler.tokenizer))
    scores: dict[str, dict[str, float]] = {}
    pictures: dict[str, str] = {}
    for case in cases:
        scores[case.name], generated = score(case, sampler, sampler.reconstruct)
        shown = ", ".join(f"{key} {value:.3g}" for key, value in scores[case.name].items())
        log.info("%s: %s", case.title, shown)
        _write_pictures(folder / case.name, case, generated, held_out.fps)
        pictures[f"{case.name}.png"] = case.title
        pictures[f"{case.name}.gif"] = f"{case.title}: truth above, generated below"
    summary = {
        key: scores[name]["direction_accuracy"] for key, name in SUMMARY.items() if name in scores
    }
    return Evaluation(
        report=scores["held_out"] | summary | {"cases": scores},
        pictures=pictures,
    )


def case_settings(experiment: Experiment, tokenizer: Tokenizer) -> CaseSettings:
    """What the cases of an experiment depend on."""
    return CaseSettings(
        shape=experiment.final_shape,
        clips=experiment.evaluation.clips,
        seed=experiment.recipe.seed,
        temporal_stride=tokenizer.temporal_stride,
        token_side=tokenizer.spatial_stride * experiment.recipe.model.patch_size,
    )


def save_report(folder: Path, report: Mapping[str, Any], pictures: Mapping[str, str]) -> None:
    """Writes report.json and report.md; the pictures are those of FOLDER/report."""
    write_report(folder, report, {f"report/{file}": text for file, text in pictures.items()})


def preview(
    sampler: VideoSampler, clips: Mapping[str, Any], rows: int = 4
) -> tuple[UInt8[np.ndarray, "height width 3"], UInt8[np.ndarray, "F rows columns 3"]]:
    """Held-out clips regenerated from their first frames, the truth above.

    Args:
        clips: "video" [N, F, Hp, Wp, 3] and "caption".
        rows: clips on the contact sheet, at most.
    Returns:
        A contact sheet of the frames, and the clips moving side by side.
    """
    video = clips["video"]
    generated = sampler(video[:, :1], clips["caption"], video.shape[1])
    case = Case(name="", title="", reference=video, prompts=clips["caption"])
    return contact_sheet(sheet_rows(case, generated, rows)), side_by_side(video, generated)


def write_preview(
    sampler: VideoSampler, clips: Mapping[str, Any], path: Path, fps: float
) -> UInt8[np.ndarray, "rows columns 3"]:
    """Writes PATH.png and PATH.mp4 with a `preview`; returns the picture."""
    picture, moving = preview(sampler, clips)
    write_png(f"{path}.png", picture, overwrite=True)
    write_mp4(f"{path}.mp4", moving, fps, min_side=256, overwrite=True)
    return picture


def side_by_side(
    reference: UInt8[np.ndarray, "N F Hp Wp 3"],
    generated: UInt8[np.ndarray, "N F Hp Wp 3"],
    columns: int = 8,
) -> UInt8[np.ndarray, "F rows columns 3"]:
    """One clip with the first few true clips in a row above the generated ones, a thin gap
    between."""
    rows = []
    for clips in (reference, generated):
        gap = ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0))
        padded = np.pad(clips[:columns], gap, constant_values=255)
        rows.append(np.concatenate(list(padded), axis=2))
    return np.concatenate(rows, axis=1)


def _write_pictures(stem: Path, case: Case, generated: np.ndarray, fps: float) -> None:
    """STEM.png with the frames of a few clips, and STEM.gif and STEM.mp4 with the clips moving."""
    sheet = contact_sheet(sheet_rows(case, generated))
    moving = side_by_side(case.reference, generated)
    # A clip's name may hold dots, so that `with_suffix` would cut it.
    name = str(stem)
    write_png(f"{name}.png", sheet, overwrite=True)
    write_gif(f"{name}.gif", moving, fps, scale=3, overwrite=True)
    write_mp4(f"{name}.mp4", moving, fps, min_side=256, overwrite=True)
