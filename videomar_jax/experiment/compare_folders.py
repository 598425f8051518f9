"""FVD of two folders of video files."""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from videomar_jax.checks import UserError
from videomar_jax.data.decode import probe, read_video
from videomar_jax.data.videos import video_files
from videomar_jax.evaluation.fvd import FVD, Moments, as_report, fvd
from videomar_jax.evaluation.i3d import I3D
from videomar_jax.evaluation.i3d_weights import load_i3d
from videomar_jax.evaluation.protocols import check_clip, check_counts
from videomar_jax.experiment.comparison_options import ComparisonOptions
from videomar_jax.io.files import atomic_write, sha256
from videomar_jax.io.paths import user_path


def compare_folders(options: ComparisonOptions, output: str | os.PathLike | None = None) -> FVD:
    """FVD of the video files of two folders, each file one clip with all of its frames.

    Everything is checked before the first clip is computed.

    Args:
        output: folder for report.json and report.md; None writes none.
    Raises:
        FileNotFoundError, NotADirectoryError: a folder or the weights are missing, or a folder
            holds no videos.
        UserError: a file cannot be used, the clips differ in size or length, a clip is there twice,
            there are too few or too many, or `output` holds a report.
    """
    output = None if output is None else user_path(output, "--output")
    if output is not None and (output / "report.json").exists():
        raise UserError(f"{output} already holds a report; choose another --output.")
    generated = user_path(str(options.generated), "--generated")
    reference = user_path(str(options.reference), "--reference")
    weights = user_path(str(options.i3d), "--i3d")
    protocol, few = options.protocol, options.few_clips
    ours, theirs = video_files(generated), video_files(reference)
    if os.path.samefile(generated, reference):
        raise UserError(f"{generated} would be compared with itself: name two folders.")
    check_counts(len(ours), len(theirs), protocol=protocol, few=few)
    network = I3D(params=load_i3d(weights))
    _check_files([*ours, *theirs], protocol)
    for files in (ours, theirs):
        _check_different(files)
    with tqdm(total=len(ours) + len(theirs), unit="clip", disable=None) as progress:
        sides = [_moments(network, files, progress) for files in (ours, theirs)]
    result = fvd(*sides, protocol=protocol, few=few)
    if output is not None:
        folders = {"generated": str(generated), "reference": str(reference)}
        _write_report(output, result, folders, weights)
    return result


def _check_files(files: Sequence[Path], protocol: str) -> None:
    """Raises a UserError unless all clips fit the protocol and have one length and size."""
    first = None
    for file in files:
        info = probe(file)
        shape = (len(info.times), info.height, info.width)
        check_clip(shape, str(file), protocol=protocol)
        first = first or shape
        if shape != first:
            raise UserError(
                f"{file} has {_shape_text(shape)} and {files[0]} {_shape_text(first)}: cut and "
                f"scale all clips of both folders to one length and size."
            )


def _shape_text(shape: tuple[int, ...]) -> str:
    return f"{shape[0]} frames of {shape[1]}x{shape[2]}"


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


def _write_report(output: Path, result: FVD, folders: dict[str, str], weights: Path) -> None:
    """Writes report.json and report.md into a folder."""
    network = {"file": str(weights), "sha256": sha256(weights)}
    report = {**as_report(result), "folders": folders, "i3d": network}
    rule = report["protocol"]
    remark = " Too few clips to compare with other numbers." if result.few else ""
    lines = [
        "# Two folders of videos",
        "",
        "| FVD | generated clips | true clips | protocol |",
        "|---|---|---|---|",
        f"| {result.distance:.2f} | {result.generated} | {result.reference} | {rule['title']} |",
        "",
        f"Lower is better. True clips of the protocol: {rule['true_clips']}. Source: "
        f"{rule['source']}.{remark}",
        "",
    ]
    output.mkdir(parents=True, exist_ok=True)
    atomic_write(output / "report.json", json.dumps(report, indent=2) + "\n")
    atomic_write(output / "report.md", "\n".join(lines))
