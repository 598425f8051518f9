"""Generates held-out clips with a model, scores them and shows them beside the truth."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from videomar_jax.checks import UserError
from videomar_jax.data.sources import ClipSource
from videomar_jax.evaluation.baselines import LinearPredictor
from videomar_jax.evaluation.networks import Networks
from videomar_jax.evaluation.report import Case, Scored, Shown, score, sheet_rows
from videomar_jax.evaluation.report_text import write_report
from videomar_jax.evaluation.verdict import overall_verdict, verdict
from videomar_jax.experiment.budget import at_chosen_size
from videomar_jax.experiment.cases import CaseSettings
from videomar_jax.experiment.comparison_options import NetworkOptions
from videomar_jax.experiment.config import Experiment
from videomar_jax.experiment.curves import loss_curve, read_metrics
from videomar_jax.experiment.data_sources import DATA_KINDS
from videomar_jax.experiment.linear_baseline import linear_predictors
from videomar_jax.experiment.scoring_networks import missing_networks, open_networks
from videomar_jax.inference.requests import Output
from videomar_jax.inference.stream import VideoSampler
from videomar_jax.io.log import log
from videomar_jax.io.media import contact_sheet, write_gif, write_mp4, write_png
from videomar_jax.io.paths import file_name, user_path
from videomar_jax.pretrained.bundle import load_pretrained, run_folder
from videomar_jax.tokenizers import Tokenizer
from videomar_jax.types import UInt8

SUMMARY = {
    "unseen_triples_direction_accuracy": "unseen_triples",
    "counterfactual_accuracy": "counterfactual",
    "shuffled_caption_accuracy": "shuffled_captions",
}
"""Entries of report.json that repeat the direction accuracy of a case."""
METRICS_FILE = "metrics.jsonl"
"""What a run wrote while it trained."""
# Pixels of the shorter side of a frame in pictures; clips and frames of a contact sheet.
_LEAST_SIDE = 128
_SHEET_CLIPS, _SHEET_COLUMNS = 4, 17
_MOVING_CLIPS = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What `evaluate` found.

    report: the scores of each case under "cases", and the most important ones above.
    pictures: file of a picture or video in the folder → its caption.
    """

    report: dict[str, Any]
    pictures: dict[str, str]


class NamedRun(NamedTuple):
    """What a person named to be scored."""

    config: Mapping[str, Any]
    """At the size that the run has chosen."""
    experiment: Experiment
    checkpoint: Path
    output: Path


def named_run(
    config: Mapping[str, Any] | None, checkpoint: str | None, output: str | None
) -> NamedRun:
    """What is scored, from flags.

    Raises:
        UserError: something is not named.
    """
    if config is None or checkpoint is None or output is None:
        raise UserError(
            "Name what is scored: --config=CONFIG, --checkpoint=DIR and --output=DIR; or two "
            "folders of videos: --generated=DIR and --reference=DIR; or a suite: "
            "--suite=vbench_i2v."
        )
    folder = user_path(checkpoint, "--checkpoint")
    config = at_chosen_size(config, run_folder(folder))
    experiment = Experiment.from_config(config)
    return NamedRun(config, experiment, folder, user_path(output, "--output"))


def evaluate_named(
    config: Mapping[str, Any] | None,
    checkpoint: str | None,
    output: str | None,
    options: NetworkOptions | None = None,
) -> dict[str, Any]:
    """As `evaluate_checkpoint`, from what a person named, at the size that the run has chosen.

    Raises:
        UserError: something is not named.
    """
    named = named_run(config, checkpoint, output)
    networks = open_networks(options or NetworkOptions())
    return evaluate_checkpoint(named.experiment, named.output, named.checkpoint, networks)


def evaluate_checkpoint(
    experiment: Experiment,
    output: Path,
    checkpoint: str | os.PathLike,
    networks: Networks | None = None,
) -> dict[str, Any]:
    """Scores a checkpoint's averaged parameters on the experiment's held-out clips.

    Clips are sampled as the experiment says. Writes the report into `output` and returns it.

    Args:
        networks: for the scores that need one.
    Raises:
        UserError: `output` holds a report already.
    """
    if (output / "report.json").exists():
        raise UserError(f"{output} already holds a report; choose another --output.")
    Output(folder=output).check_folder()
    pretrained = load_pretrained(checkpoint)
    bundle, shape = pretrained.bundle, experiment.final_shape
    if (bundle.height, bundle.width) != (shape.height, shape.width):
        log.warning(
            "the model was trained on frames of %dx%d and is measured on %dx%d",
            bundle.height,
            bundle.width,
            shape.height,
            shape.width,
        )
    sampler = VideoSampler.from_bundle(
        pretrained.model,
        pretrained.bundle,
        experiment.sampling,
        batch_size=experiment.evaluation.batch_size,
    )
    held_out = experiment.source("test", min_frames=experiment.final_stage.num_frames)
    is_compared = DATA_KINDS[experiment.data.kind].linear_predictor
    train = experiment.source("train") if is_compared else None
    found = evaluate(experiment, sampler, held_out, output / "report", train, networks)
    report = found.report | {"step": pretrained.step}
    save_report(output, report, found.pictures, run_folder(checkpoint) / METRICS_FILE)
    return report


def evaluate(
    experiment: Experiment,
    sampler: VideoSampler,
    held_out: ClipSource,
    folder: Path,
    train: ClipSource | None = None,
    networks: Networks | None = None,
) -> Evaluation:
    """Generates and scores every case of this kind of data; writes pictures into `folder`.

    Args:
        train: the training clips, which the linear predictor of footage is fitted on; None: reports
            have no linear predictor.
        networks: for the scores that need one.
    """
    networks = networks or Networks()
    notes = missing_networks(networks)
    kind = DATA_KINDS[experiment.data.kind]
    cases = kind.cases(held_out, case_settings(experiment, sampler.tokenizer))
    linear: Mapping[int, LinearPredictor] = {}
    if train is not None and kind.linear_predictor:
        linear = _linear_predictors(experiment, train, [case.given for case in cases])
    scores: dict[str, dict[str, float]] = {}
    pictures: dict[str, str] = {}
    for case in cases:
        found = score(
            case,
            sampler,
            sampler.reconstruct,
            linear=linear.get(case.given),
            networks=networks,
            batch_size=sampler.batch_size,
            show=_MOVING_CLIPS if case.measure else _SHEET_CLIPS,
        )
        scores |= found.scores
        shown = ", ".join(f"{key} {value:.3g}" for key, value in scores[case.name].items())
        log.info("%s: %s", case.title, shown)
        pictures |= _pictures_of(case, found, folder, held_out.fps)
        notes += [f"{case.name}: {note}" for note in found.notes]
    summary: dict[str, Any] = {
        key: scores[name]["direction_accuracy"]
        for key, name in SUMMARY.items()
        if "direction_accuracy" in scores.get(name, {})
    }
    overall = overall_verdict(_judged(cases, scores))
    log.info("verdict: %s", overall)
    summary["verdict"] = overall
    summary["verdicts"] = {name: verdict(values) for name, values in scores.items()}
    summary["notes"] = notes
    if linear:
        summary["linear_predictor"] = {
            case.name: f"{linear[case.given].kind}, {linear[case.given].windows} training windows"
            for case in cases
        }
    return Evaluation(report=scores["held_out"] | summary | {"cases": scores}, pictures=pictures)


def _pictures_of(case: Case, found: Scored, folder: Path, fps: float) -> dict[str, str]:
    """Writes the pictures of a case and its parts; file → caption of those that could be."""
    titles = {case.name: case.title} | {part.name: part.title for part in case.parts}
    sheets = {name: (titles[name], clips) for name, clips in found.shown.items()}
    if found.ranked:
        title = f"{case.title}: the best, the median and the worst by their gain over repeating"
        sheets[f"{case.name}_ranked"] = (title, found.ranked)
    pictures: dict[str, str] = {}
    for name, (title, clips) in sheets.items():
        stem = file_name(name)
        try:
            _write_pictures(folder / stem, clips, fps)
        except (OSError, ValueError) as error:
            log.warning("no pictures of %r: %s", name, error)  # the scores are worth more
            continue
        rows = ", ".join(clips[0].videos)
        pictures[f"{stem}.png"] = title
        pictures[f"{stem}.gif"] = f"{title}: {rows}, one below the other"
        pictures[f"{stem}.mp4"] = "The same as a video"
    return pictures


def _linear_predictors(
    experiment: Experiment, train: ClipSource, given: Sequence[int]
) -> Mapping[int, LinearPredictor]:
    """As the settings say; {} with a warning if the clips cannot be read any more, since the rest
    of the report is worth having."""
    try:
        return linear_predictors(
            train,
            experiment.final_shape,
            given,
            windows=experiment.evaluation.linear_windows,
            threads=experiment.data.threads,
        )
    except (UserError, OSError) as error:
        log.warning("the report has no linear predictor: %s", error)
        return {}


def _judged(
    cases: Sequence[Case], scores: Mapping[str, Mapping[str, float]]
) -> dict[int, Mapping[str, float]]:
    """The scores that the judgement on the whole is made of, by given frames: the first case of
    each."""
    judged: dict[int, Mapping[str, float]] = {}
    for case in cases:
        judged.setdefault(case.given, scores[case.name])
    return judged


def case_settings(experiment: Experiment, tokenizer: Tokenizer) -> CaseSettings:
    """What the cases of an experiment depend on."""
    return CaseSettings(
        shape=experiment.final_shape,
        clips=experiment.evaluation.clips,
        seed=experiment.recipe.seed,
        temporal_stride=tokenizer.temporal_stride,
        token_side=tokenizer.spatial_stride * experiment.recipe.model.patch_size,
        given=tuple(experiment.evaluation.given),
    )


def save_report(
    folder: Path,
    report: Mapping[str, Any],
    pictures: Mapping[str, str],
    metrics: Path | None = None,
) -> None:
    """Writes report.json and report.md; the pictures are those of FOLDER/report.

    Args:
        metrics: metrics.jsonl of the run, whose loss becomes FOLDER/report/loss.png.
    """
    files = {f"report/{file}": text for file, text in pictures.items()}
    curve = None if metrics is None else loss_curve(read_metrics(metrics))
    if curve is not None:
        write_png(folder / "report" / "loss.png", curve, overwrite=True)
        files = {"report/loss.png": "The loss in training"} | files
    write_report(folder, report, files)


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
    shown = [
        Shown(caption, {"truth": truth, "generated": made})
        for caption, truth, made in zip(clips["caption"], video, generated, strict=True)
    ]
    return contact_sheet(sheet_rows(shown[:rows])), side_by_side(shown)


def write_preview(
    sampler: VideoSampler, clips: Mapping[str, Any], path: Path, fps: float
) -> UInt8[np.ndarray, "rows columns 3"]:
    """Writes PATH.png and PATH.mp4 with a `preview`; returns the picture."""
    picture, moving = preview(sampler, clips)
    write_png(f"{path}.png", picture, overwrite=True)
    write_mp4(f"{path}.mp4", moving, fps, min_side=256, overwrite=True)
    return picture


def side_by_side(
    shown: Sequence[Shown], columns: int = _MOVING_CLIPS
) -> UInt8[np.ndarray, "F rows columns 3"]:
    """One clip with the first few clips in columns: the truth above what was made of it, a thin gap
    between."""
    gap = ((0, 0), (1, 1), (1, 1), (0, 0))
    made = []
    for clip in shown[:columns]:
        padded = [np.pad(video, gap, constant_values=255) for video in clip.videos.values()]
        made.append(np.concatenate(padded, axis=1))
    return np.concatenate(made, axis=2)


def _write_pictures(stem: Path, shown: Sequence[Shown], fps: float) -> None:
    """STEM.png with the frames of a few clips, and STEM.gif and STEM.mp4 with the clips moving."""
    frames, height, width, _ = shown[0].videos["truth"].shape
    scale = -(-_LEAST_SIDE // min(height, width))
    sheet = contact_sheet(
        sheet_rows(shown[:_SHEET_CLIPS]),
        columns=min(frames, _SHEET_COLUMNS),
        scale=scale if scale > 1 else None,
    )
    moving = side_by_side(shown)
    # A clip's name may hold dots, so that `with_suffix` would cut it.
    name = str(stem)
    write_png(f"{name}.png", sheet, overwrite=True)
    write_gif(f"{name}.gif", moving, fps, scale=scale, overwrite=True)
    rows = len(shown[0].videos)
    write_mp4(f"{name}.mp4", moving, fps, min_side=_LEAST_SIDE * rows, overwrite=True)
