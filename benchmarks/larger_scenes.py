"""How a model of scenes holds up beyond the length and size it was trained on.

    python -m benchmarks.larger_scenes --checkpoint=runs/scenes --pictures=docs/images

Continues held-out first frames to four times the trained length, and in a room half as large again,
with one sampling option changed at a time, and prints a Markdown table for each:

there       share of the frames that show the object (`evaluation.acting`); in brackets that of the
            last frames.
place       distance of its centre from the true one where it is there, in pixels; in brackets in
            the last frames.
acts        share of the clips that are nearer to the true clip than to all of another verb or side.
mean        of the pixels of the last frame, as a share of the true frame's; 100 % is no drift.
contrast    the same for the standard deviation of the pixels.

`--pictures` names a folder for a sheet of each.
"""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measuring import checkpoint_parser, run_command, write_report
from videomar_jax.checks import at_least
from videomar_jax.data.scenes import Scenes
from videomar_jax.data.sources import ClipShape
from videomar_jax.evaluation.report import Case
from videomar_jax.experiment.cases import CaseSettings
from videomar_jax.experiment.scene_cases import scene_cases
from videomar_jax.inference.stream import VideoSampler
from videomar_jax.io.media import contact_sheet, write_png
from videomar_jax.pretrained.bundle import Pretrained, load_pretrained

CASES = ("longer", "larger")
HEADER = ["option", "there", "place, px", "acts", "mean", "contrast"]
OPTIONS: dict[str, dict[str, Any]] = {
    "as trained with": {},
    "all frames kept": dict(window=None, keep_first=True),
    "window 4": dict(window=4, keep_first=False),
    "window 4, frame 0 kept": dict(window=4, keep_first=True),
    "window 8": dict(window=8, keep_first=False),
    "history noise 0.1": dict(history_noise=0.1),
    "history noise 0.3": dict(history_noise=0.3),
    "temperature 0": dict(temperature=0.0),
    "temperature 1": dict(temperature=1.0),
}
"""What is changed of the model's own sampling settings, in both cases."""
ONLY = {
    "longer": {
        "all frames kept, positions interpolated": dict(
            window=None, keep_first=True, temporal_rope_scaling="interpolate"
        ),
    },
    "larger": {
        "positions interpolated": dict(spatial_rope_scaling="interpolate"),
        "positions NTK-scaled": dict(spatial_rope_scaling="ntk"),
    },
}
"""The same, in one case."""


def beyond_training(loaded: Pretrained, clips: int, seed: int) -> list[Case]:
    """The cases that ask for more than training showed, of `clips` clips each."""
    bundle = loaded.bundle
    settings = CaseSettings(
        shape=ClipShape(num_frames=bundle.num_frames, height=bundle.height, width=bundle.width),
        clips=2 * clips,  # half of them in each of these cases
        seed=seed,
        temporal_stride=bundle.tokenizer.temporal_stride,
        token_side=bundle.tokenizer.spatial_stride * bundle.config.patch_size,
    )
    source = Scenes(seed=seed, length=2 * clips, split="test")
    return [case for case in scene_cases(source, settings) if case.name in CASES]


def score(made: np.ndarray, case: Case) -> dict[str, float]:
    """A row, from whole clips."""
    truth = np.asarray(case.reference[:])
    assert case.measure is not None
    scores = case.measure(made, truth)
    end, true_end = (clips[:, -1].astype(np.float64) for clips in (made, truth))
    pixels = (1, 2, 3)
    return scores | {
        "mean": float(np.mean(end.mean(pixels) / true_end.mean(pixels))),
        "contrast": float(np.mean(end.std(pixels) / true_end.std(pixels))),
    }


def cells(row: dict[str, float]) -> list[str]:
    """The columns after the first."""

    def found(name: str, form: str) -> str:
        return format(row[name], form) if name in row else "-"

    return [
        f"{row['object_there']:.0%} ({row['object_there_last']:.0%})",
        f"{found('place_error', '.1f')} ({found('place_error_last', '.1f')})",
        found("follows_action", ".0%"),
        f"{row['mean']:.1%}",
        f"{row['contrast']:.1%}",
    ]


def main(words: Sequence[str] | None = None) -> None:
    args = _arguments(words)
    at_least("--clips", args.clips, 1)
    loaded = load_pretrained(args.checkpoint)
    rows: dict[str, dict[str, Any]] = {}
    for case in beyond_training(loaded, args.clips, args.seed):
        truth = np.asarray(case.reference[:])
        frames = truth.shape[1]
        print(f"\n{case.title}, {len(truth)} clips\n")
        print("| " + " | ".join(HEADER) + " |\n" + "|---" * len(HEADER) + "|")
        rows[case.name], shown = {}, [("truth", truth[0])]
        for name, changes in {**OPTIONS, **ONLY[case.name]}.items():
            config = dataclasses.replace(loaded.bundle.sampling, **changes)
            sampler = VideoSampler.from_bundle(
                loaded.model, loaded.bundle, config, batch_size=len(truth)
            )
            made = sampler(truth[:, :1], case.prompts, frames)
            rows[case.name][name] = row = score(made, case)
            print("| " + " | ".join([name, *cells(row)]) + " |", flush=True)
            shown.append((name, made[0]))
        if args.pictures:
            file = Path(args.pictures) / f"scenes_{case.name}.png"
            write_png(file, contact_sheet(shown, columns=9), overwrite=True)
    report = {"checkpoint": str(args.checkpoint), "clips": args.clips, "rows": rows}
    write_report(report, args.out, "larger_scenes")


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = checkpoint_parser(__doc__)
    parser.add_argument("--clips", type=int, default=32, help="of each case")
    parser.add_argument("--seed", type=int, default=0, help="of the scenes")
    parser.add_argument("--pictures", help="a folder for a sheet of each case")
    return parser.parse_args(words)


if __name__ == "__main__":
    run_command(main)
