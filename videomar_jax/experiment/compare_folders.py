"""Two folders of video files: FVD of the two sets, and scores of the clips in pairs."""

import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from videomar_jax.checks import UserError
from videomar_jax.data.decode import probe, read_video
from videomar_jax.data.videos import video_files
from videomar_jax.evaluation.baselines import repeat_last
from videomar_jax.evaluation.fvd import FVD, Moments, as_report, fvd
from videomar_jax.evaluation.i3d import I3D
from videomar_jax.evaluation.lpips import LPIPS, check_size
from videomar_jax.evaluation.lpips_weights import find_weights
from videomar_jax.evaluation.networks import Networks
from videomar_jax.evaluation.protocols import check_clip, check_counts
from videomar_jax.evaluation.report_text import legend, score_table
from videomar_jax.evaluation.scorecard import MODEL, Scorecard, copy_name
from videomar_jax.evaluation.verdict import verdict
from videomar_jax.experiment.comparison_options import ComparisonOptions
from videomar_jax.experiment.scoring_networks import NO_FVD, NO_LPIPS, open_i3d, open_lpips
from videomar_jax.io.files import atomic_write, sha256
from videomar_jax.io.paths import user_path


class _Folders(NamedTuple):
    """The two folders and the files in them."""

    generated: Path
    reference: Path
    ours: list[Path]
    theirs: list[Path]


class Pairing(NamedTuple):
    """Which clip belongs to which."""

    pairs: list[tuple[Path, Path]]
    """(generated, true) files; none if the names do not agree."""
    reason: str
    """Why there are none; "" if there are."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """What two folders have in common."""

    fvd: FVD | None
    """None without the weights of its network."""
    scores: dict[str, float]
    """Of the clips in pairs, by the names of reports; {} if the names of the files differ."""
    notes: list[str]
    """What was not computed, and why."""

    def __str__(self) -> str:
        lines = [] if self.fvd is None else [str(self.fvd)]
        if self.scores:
            lines.append(", ".join(f"{name} {value:.4g}" for name, value in self.scores.items()))
            lines.append(verdict(self.scores))
        return "\n".join([*lines, *self.notes])


def compare_folders(
    options: ComparisonOptions, output: str | os.PathLike | None = None
) -> Comparison:
    """Compares the video files of two folders, each file one clip with all of its frames.

    With `options.i3d` the FVD of the two sets is computed. Where both folders hold the same names,
    clips are also compared in pairs, by all of `metrics.METRICS` and with `options.lpips` by LPIPS.
    Everything is checked before the first clip is computed.

    Args:
        output: folder for report.json and report.md; None writes none.
    Raises:
        FileNotFoundError, NotADirectoryError: a folder or the weights are missing, or a folder
            holds no videos.
        UserError: a file cannot be used, the clips differ in size or length, a clip is there twice,
            there are too few or too many, nothing can be computed, or `output` holds a report.
    """
    output = None if output is None else user_path(output, "--output")
    if output is not None and (output / "report.json").exists():
        raise UserError(f"{output} already holds a report; choose another --output.")
    folders = _open_folders(options)
    pairing = find_pairs(folders)
    if not pairing.pairs and options.lpips is not None:
        raise UserError(f"{pairing.reason} Or leave out --lpips, which compares pairs.")
    if not pairing.pairs and options.i3d is None:
        raise UserError(f"{pairing.reason} {NO_FVD}")
    if options.i3d is not None:
        counts = len(folders.ours), len(folders.theirs)
        check_counts(*counts, protocol=options.protocol, few=options.few_clips)
    network, lpips = open_i3d(options), open_lpips(options)
    _check_files([*folders.ours, *folders.theirs], options)
    notes = []
    distance = None
    if network is None:
        notes.append(NO_FVD)
    else:
        for files in (folders.ours, folders.theirs):
            _check_different(files)
        distance = _fvd(network, folders, options)
    scores: dict[str, float] = {}
    if pairing.pairs:
        scores = _pair_scores(pairing.pairs, options.given, lpips)
        if lpips is None:
            notes.append(NO_LPIPS)
    else:
        notes.append(pairing.reason)
    result = Comparison(fvd=distance, scores=scores, notes=notes)
    if output is not None:
        _write_report(output, result, options, folders)
    return result


# What is compared


def _open_folders(options: ComparisonOptions) -> _Folders:
    generated = user_path(str(options.generated), "--generated")
    reference = user_path(str(options.reference), "--reference")
    ours, theirs = video_files(generated), video_files(reference)
    if os.path.samefile(generated, reference):
        raise UserError(f"{generated} would be compared with itself: name two folders.")
    return _Folders(generated, reference, ours, theirs)


def find_pairs(folders: _Folders) -> Pairing:
    """The files of one name, endings aside, in the order of the names."""
    by_name = []
    for folder, files in ((folders.generated, folders.ours), (folders.reference, folders.theirs)):
        named = {file.relative_to(folder).with_suffix("").as_posix(): file for file in files}
        if len(named) < len(files):
            return Pairing([], f"Clips were not compared in pairs: {folder} holds a name twice.")
        by_name.append(named)
    ours, theirs = by_name
    if set(ours) != set(theirs):
        common = len(set(ours) & set(theirs))
        reason = (
            f"Clips were not compared in pairs: {common} of {len(ours)} generated and "
            f"{len(theirs)} true files have a name in common; give each generated clip the name of "
            f"its true one, and leave out others."
        )
        return Pairing([], reason)
    return Pairing([(ours[name], theirs[name]) for name in sorted(ours)], "")


def _check_files(files: Sequence[Path], options: ComparisonOptions) -> None:
    """Raises a UserError unless all clips have one length and size, are longer than what was
    given, and suit what is computed of them."""
    first = None
    for file in files:
        info = probe(file)
        shape = (len(info.times), info.height, info.width)
        if options.i3d is not None:
            check_clip(shape, str(file), protocol=options.protocol)
        if options.lpips is not None:
            check_size(shape[1:], options.lpips_network)
        if shape[0] <= options.given:
            raise UserError(
                f"{file} has {_count(shape[0])}, and nothing follows the {options.given} that were "
                f"given: lower --given, or take longer clips."
            )
        first = first or shape
        if shape != first:
            raise UserError(
                f"{file} has {_shape_text(shape)} and {files[0]} {_shape_text(first)}: cut and "
                f"scale all clips of both folders to one length and size."
            )


def _count(frames: int) -> str:
    return f"{frames} frame{'' if frames == 1 else 's'}"


def _shape_text(shape: tuple[int, ...]) -> str:
    return f"{_count(shape[0])} of {shape[1]}x{shape[2]}"


def _check_different(files: Sequence[Path]) -> None:
    """Raises a UserError if two files hold the same bytes."""
    by_digest: dict[str, Path] = {}
    for file in files:
        other = by_digest.setdefault(sha256(file), file)
        if other != file:
            raise UserError(
                f"{file} is a copy of {other}: clips are not repeated to reach a number of them; "
                f"remove one."
            )


# What is computed


def _fvd(network: I3D, folders: _Folders, options: ComparisonOptions) -> FVD:
    total = len(folders.ours) + len(folders.theirs)
    with tqdm(total=total, desc="FVD", unit="clip", disable=None) as progress:
        ours = _moments(network, folders.ours, progress)
        theirs = _moments(network, folders.theirs, progress)
    return fvd(ours, theirs, protocol=options.protocol, few=options.few_clips)


def _moments(network: I3D, files: Sequence[Path], progress: tqdm) -> Moments:
    """The moments of the features of the files, which are decoded as they are needed."""
    moments = Moments.empty()
    for features in network.of_stream(_clips(files)):
        moments = moments.joined(Moments.of(features))
        progress.update(len(features))
    return moments


def _clips(files: Sequence[Path]) -> Iterator[np.ndarray]:
    """Yields each clip [F, Hp, Wp, 3].

    Raises:
        UserError: a file decodes to other frames than it announces.
    """
    first = None
    for file in files:
        clip, _ = read_video(file)
        first = first or clip.shape
        if clip.shape != first:
            raise UserError(
                f"{file} decodes to {_shape_text(clip.shape)}, and the clips before it have "
                f"{_shape_text(first)}: re-encode or remove it."
            )
        yield clip


def _pair_scores(
    pairs: Sequence[tuple[Path, Path]], given: int, lpips: LPIPS | None
) -> dict[str, float]:
    """All scores of the pairs, and of repeating the last given frame of the true clips."""
    card = Scorecard(Networks(lpips=lpips).metrics())
    both = _clips([file for pair in pairs for file in pair])
    for _ in tqdm(pairs, desc="pairs", unit="pair", disable=None):
        video, reference = next(both)[None], next(both)[None]
        copy = repeat_last(reference[:, :given], [""], reference.shape[1])
        card.add({MODEL: video, copy_name(given): copy}, reference, given)
    scores = {"clips": float(len(pairs))} | card.scores()
    better = card.wins(copy_name(given))
    if better is not None:
        scores["better_than_copy"] = better
    return scores


# Files


def _write_report(
    output: Path, result: Comparison, options: ComparisonOptions, folders: _Folders
) -> None:
    """Writes report.json and report.md into a folder."""
    report: dict[str, Any] = {} if result.fvd is None else as_report(result.fvd)
    report["folders"] = {
        "generated": str(folders.generated),
        "reference": str(folders.reference),
    }
    if options.i3d is not None:
        file = user_path(options.i3d, "--i3d")
        report["i3d"] = {"file": str(file), "sha256": sha256(file)}
    lines = ["# Two folders of videos", ""]
    if result.scores:
        report |= {"scores": result.scores, "given": options.given}
        report["verdict"] = verdict(result.scores)
        lines += [f"**{report['verdict']}**", ""]
    if result.fvd is not None:
        lines += _fvd_lines(result.fvd, report["protocol"])
    if result.scores:
        lines += _pair_lines(result.scores, options.given)
        if options.lpips is not None:
            files = find_weights(user_path(options.lpips, "--lpips"), options.lpips_network)
            report["lpips"] = {
                "network": options.lpips_network,
                "files": {str(file): sha256(file) for file in files},
            }
            lines += [f"LPIPS is that of the network {options.lpips_network!r}.", ""]
    report["notes"] = result.notes
    for note in result.notes:
        lines += [note, ""]
    output.mkdir(parents=True, exist_ok=True)
    atomic_write(output / "report.json", json.dumps(report, indent=2) + "\n")
    atomic_write(output / "report.md", "\n".join(lines))


def _fvd_lines(result: FVD, rule: dict[str, Any]) -> list[str]:
    remark = " Too few clips to compare with other numbers." if result.few else ""
    return [
        "| FVD | generated clips | true clips | protocol |",
        "|---|---|---|---|",
        f"| {result.distance:.2f} | {result.generated} | {result.reference} | {rule['title']} |",
        "",
        f"Lower is better. True clips of the protocol: {rule['true_clips']}. Source: "
        f"{rule['source']}.{remark}",
        "",
    ]


def _pair_lines(scores: dict[str, float], given: int) -> list[str]:
    cases = {"pairs": scores}
    frames = "the first frame is" if given == 1 else f"the first {given} frames are"
    return [
        *score_table(cases),
        "",
        f"Each generated clip is compared with the true clip of its name; {frames} taken as given "
        f"and left out of all scores but given_psnr.",
        "",
        *legend(cases),
        "",
    ]
