"""How footage holds up beyond the length it was trained on, by what is done about it.

    python -m benchmarks.longer --checkpoint=runs/ped2 --clips=clips/ped2/testing

Continues windows of clips that training never saw, by default to four times the trained length,
with one sampling option changed at a time, and prints a Markdown table:

changed     PSNR over the pixels that differ visibly from the last given frame, in each quarter of
            what is generated; in brackets the same for that frame repeated.
mean        of the pixels of the last frame, as a share of the true frame's; 100 % is no drift.
contrast    the same for the standard deviation of the pixels.
motion      mean difference between neighbouring frames of the last quarter, as a share of the
            truth's.

Of the windows that the folder holds, those that move most are taken. `--picture` writes a sheet of
the truth and of each option.
"""

import argparse
import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks.measuring import checkpoint_parser, run_command, write_report
from videomar_jax.checks import UserError, at_least
from videomar_jax.data.loader import fixed_clips
from videomar_jax.data.sources import ClipShape
from videomar_jax.data.videos import VideoFolder
from videomar_jax.evaluation.metrics import changed_error, decibels
from videomar_jax.inference.stream import VideoSampler
from videomar_jax.io.media import contact_sheet, write_png
from videomar_jax.io.paths import user_path
from videomar_jax.pretrained.bundle import Pretrained, load_pretrained

QUARTERS = 4
OPTIONS: dict[str, dict[str, Any]] = {
    "as trained with": {},
    "all frames kept": dict(window=None, keep_first=True),
    "all frames kept, numbers interpolated": dict(
        window=None, keep_first=True, temporal_rope_scaling="interpolate"
    ),
    "window 2": dict(window=2, keep_first=False),
    "window 4, frame 0 kept": dict(window=4, keep_first=True),
    "history noise 0.1": dict(history_noise=0.1),
    "history noise 0.3": dict(history_noise=0.3),
    "temperature 0": dict(temperature=0.0),
    "temperature 1": dict(temperature=1.0),
}
"""What is changed of the model's own sampling settings."""
HEADER = ["option", *(f"changed, {n + 1}/{QUARTERS}" for n in range(QUARTERS))]
HEADER += ["mean", "contrast", "motion"]


class Held(NamedTuple):
    """Windows to continue, [N, F, Hp, Wp, 3], and their captions."""

    video: np.ndarray
    captions: list[str]


def moving_windows(folder: str, loaded: Pretrained, frames: int, count: int) -> Held:
    """The `count` windows of the clips in which most changes from frame to frame.

    Raises:
        UserError: no clip is long enough.
    """
    bundle = loaded.bundle
    source = VideoFolder(
        user_path(folder, "--clips"), fps=bundle.fps, split="all", crop="center", min_frames=frames
    )
    shape = ClipShape(num_frames=frames, height=bundle.height, width=bundle.width)
    # One at a time: a folder may hold more than memory does.
    moves = [
        _mean_difference(fixed_clips(source, [index], shape=shape)["video"].astype(int))
        for index in range(len(source))
    ]
    # Those taken stay in the order of the folder.
    taken = np.sort(np.argsort(-np.array(moves), kind="stable")[:count])
    clips = fixed_clips(source, taken.tolist(), shape=shape)
    return Held(clips["video"], clips["caption"])


def score(made: np.ndarray, held: Held, given: int) -> dict[str, Any]:
    """One row, from whole clips."""
    last = held.video[:, given - 1 : given]
    truth, made = held.video[:, given:], made[:, given:]
    repeated = np.broadcast_to(last, truth.shape)
    edges = np.linspace(0, truth.shape[1], QUARTERS + 1).round().astype(int)
    quarters = [slice(*ends) for ends in itertools.pairwise(edges)]
    end, true_end = (clips[:, -1].astype(np.float64) for clips in (made, truth))
    before = edges[-2] - 1
    moved, true_motion = (
        _mean_difference(clips[:, before:]) for clips in (made.astype(int), truth.astype(int))
    )
    pixels = (1, 2, 3)
    return {
        "changed": [_changed_psnr(made[:, part], truth[:, part], last) for part in quarters],
        "repeated": [_changed_psnr(repeated[:, part], truth[:, part], last) for part in quarters],
        "mean": float(np.mean(end.mean(pixels) / true_end.mean(pixels))),
        "contrast": float(np.mean(end.std(pixels) / true_end.std(pixels))),
        "motion": moved / true_motion,
    }


def _changed_psnr(made: np.ndarray, truth: np.ndarray, last: np.ndarray) -> float:
    tally = changed_error(np.ascontiguousarray(made), truth, last)
    return decibels(float(tally.amount.sum() / max(tally.weight.sum(), 1.0)))


def _mean_difference(clips: np.ndarray) -> float:
    return float(np.abs(np.diff(clips, axis=1)).mean())


def main(words: Sequence[str] | None = None) -> None:
    args = _arguments(words)
    at_least("--windows", args.windows, 1)
    loaded = load_pretrained(args.checkpoint)
    frames = args.frames
    if frames is None:
        frames = QUARTERS * (loaded.bundle.num_frames - 1) + 1
    at_least("--given", args.given, 1)
    at_least("--frames", frames, args.given + QUARTERS)
    held = moving_windows(args.clips, loaded, frames, args.windows)
    if not 0 <= args.show < len(held.video):
        raise UserError(f"--show must be from 0 to {len(held.video) - 1}, not {args.show}.")
    print(f"{len(held.video)} windows of {frames} frames, {args.given} of them given")
    print("| " + " | ".join(HEADER) + " |\n" + "|---" * len(HEADER) + "|")
    rows, shown = {}, [("truth", held.video[args.show])]
    for name, changes in OPTIONS.items():
        config = dataclasses.replace(loaded.bundle.sampling, **changes)
        sampler = VideoSampler.from_bundle(
            loaded.model, loaded.bundle, config, batch_size=len(held.video)
        )
        made = sampler(held.video[:, : args.given], held.captions, frames)
        rows[name] = row = score(made, held, args.given)
        shown.append((name, made[args.show]))
        pairs = zip(row["changed"], row["repeated"], strict=True)
        cells = [f"{ours:.1f} ({copy:.1f})" for ours, copy in pairs]
        cells += [f"{row['mean']:.1%}", f"{row['contrast']:.1%}", f"{row['motion']:.2f}"]
        print("| " + " | ".join([name, *cells]) + " |", flush=True)
    report = {"checkpoint": str(args.checkpoint), "frames": frames, "given": args.given}
    write_report(report | {"windows": len(held.video), "rows": rows}, args.out, "longer")
    if args.picture:
        write_png(args.picture, contact_sheet(shown, columns=9), overwrite=True)


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = checkpoint_parser(__doc__)
    parser.add_argument("--clips", required=True, help="a folder of clips it was not trained on")
    parser.add_argument("--frames", type=int, help="four times the trained length unless set")
    parser.add_argument("--given", type=int, default=5, help="frames to continue from")
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--show", type=int, default=0, help="the window of the picture")
    parser.add_argument("--picture", help="a PNG of the truth and each option")
    return parser.parse_args(words)


if __name__ == "__main__":
    run_command(main)
