"""What each sampling option does to a model of scenes: quality, following and diversity.

    python -m benchmarks.open_scenes --checkpoint=runs/scenes --picture=docs/images/open_scenes.png

Two questions, with one option changed at a time.

Captions that fix everything, held-out clips:

acts        share of the clips that are nearer to the true clip than to all of another verb or side
            that could begin with the first frame (`evaluation.acting`).
follows     the same, and nearer than to all of another speed as well.
there       share of the frames that show the object.
changed     PSNR over the pixels that differ visibly from the first frame.

Captions that leave the side open, several seeds for each first frame:

sides       entropy of the side that a video takes, over the seeds of one first frame, in bits; in
            brackets what a fair coin would have on average with as many seeds.
whole       share of the videos with the object in at least nine tenths of the frames, on the way
            that the video is nearest to.
best        `changed` of the video that is nearest to the truth, and by how much it is above the
            mean of all: what choosing among seeds is worth.

Prints Markdown tables; ms are those of a video in a batch, of a second run. `--picture` writes four
seeds of three first frames.
"""

import argparse
import dataclasses
import math
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks.measuring import checkpoint_parser, run_command, write_report
from benchmarks.told_scenes import Told, changed_psnr, score_videos, told_clips
from videomar_jax.checks import UserError, at_least
from videomar_jax.data.scene_objects import SIDEWAYS, Scene
from videomar_jax.data.scene_pictures import render
from videomar_jax.data.scenes import Scenes
from videomar_jax.data.sources import ClipShape
from videomar_jax.evaluation.acting import compare
from videomar_jax.evaluation.metrics import CHANGED
from videomar_jax.inference.stream import VideoSampler
from videomar_jax.io.media import contact_sheet, write_png
from videomar_jax.pretrained.bundle import load_pretrained

WHOLE = 0.9
HEADER = ["option", "acts", "follows", "there", "changed, dB", "sides, bits", "whole", "best, dB"]
HEADER += ["over the mean, dB", "ms a video"]
TOLD_SCORES = {"acts": ".0%", "follows": ".0%", "there": ".0%", "changed": ".1f"}
"""The scores of captions that fix everything, with their formats."""

OPTIONS: dict[str, dict[str, Any]] = {
    "as trained with": {},
    "1 reveal step": dict(steps=1),
    "2 reveal steps": dict(steps=2),
    "8 reveal steps": dict(steps=8),
    "16 reveal steps": dict(steps=16),
    "2 head steps": dict(head_steps="2"),
    "10 head steps": dict(head_steps="10"),
    "16 x 10 steps": dict(steps=16, head_steps="10"),
    "temperature 0": dict(temperature=0.0),
    "temperature 0.5": dict(temperature=0.5),
    "temperature 0.8": dict(temperature=0.8),
    "temperature 1": dict(temperature=1.0),
    "temperature 1, the paper's law": dict(temperature=1.0, temperature_law="paper"),
    "temperature 1, the linear law": dict(temperature=1.0, temperature_law="linear"),
    "guidance 1.5": dict(guidance=1.5),
    "guidance 3": dict(guidance=3.0),
    "guidance 3, constant": dict(guidance=3.0, guidance_schedule="constant"),
    "history noise 0.1": dict(history_noise=0.1),
    "history noise 0.3": dict(history_noise=0.3),
    "all frames kept": dict(window=None, keep_first=True),
    "window 4": dict(window=4, keep_first=False),
    "window 2": dict(window=2, keep_first=False),
    "without still detail": dict(still_detail=False),
}
"""What is changed of the model's own sampling settings."""


class Open(NamedTuple):
    """A first frame, a caption that leaves the side open, and both ways on."""

    scene: Scene
    caption: str
    truth: np.ndarray
    ways: list[np.ndarray]
    background: np.ndarray


def open_scenes(source: Scenes, shape: ClipShape, count: int) -> list[Open]:
    """The first scenes of the source in which something goes to a side."""
    found: list[Open] = []
    for index in range(len(source)):
        scene = source.scene(index, shape)
        if scene.action.verb not in SIDEWAYS or scene.action.verb == "turns":
            continue
        ways = [
            render(dataclasses.replace(scene, action=action), shape)
            for action in (
                dataclasses.replace(scene.action, side=side) for side in ("left", "right")
            )
        ]
        truth = ways[("left", "right").index(scene.action.side)]
        background = render(scene, shape, actor=False)
        found.append(Open(scene, scene.caption(side=False), truth, ways, background))
        if len(found) == count:
            return found
    raise UserError(f"{count} open scenes are more than there are among {len(source)} clips.")


# Scores


def score_told(sampler: VideoSampler, told: Told) -> dict[str, float]:
    """The scores of `told_scenes.score_videos`."""
    return score_videos(sampler(told.video[:, :1], told.captions, told.video.shape[1]), told)


def score_open(
    sampler: VideoSampler, scenes: Sequence[Open], seeds: int
) -> tuple[dict[str, float], list[np.ndarray]]:
    """The scores, and the videos of each scene, [seeds, F, Hp, Wp, 3]."""
    first = np.stack([scene.truth[:1] for scene in scenes])
    captions = [scene.caption for scene in scenes]
    frames = scenes[0].truth.shape[0]
    given, prompts = np.repeat(first, seeds, axis=0), np.repeat(captions, seeds).tolist()
    made = sampler(given, prompts, frames)
    groups = np.split(made, len(scenes))
    entropies, whole, best, mean = [], [], [], []
    for scene, videos in zip(scenes, groups, strict=True):
        taken = [nearest(video, scene.ways) for video in videos]
        entropies.append(entropy(np.mean(taken)))
        for video, way in zip(videos, taken, strict=True):
            present, _, counted = compare(video, scene.ways[way], scene.background)
            whole.append(np.mean(present[1:][counted[1:]]) >= WHOLE)
        truth = np.broadcast_to(scene.truth, videos.shape)
        values = [changed_psnr(video[None], truth[:1]) for video in videos]
        best.append(max(values))
        mean.append(np.mean(values))
    scores = {
        "sides": np.mean(entropies),
        "whole": np.mean(whole),
        "best": np.mean(best),
        "over_mean": np.mean(best) - np.mean(mean),
    }
    return {name: float(value) for name, value in scores.items()}, groups


def nearest(video: np.ndarray, ways: Sequence[np.ndarray]) -> int:
    """Which of two clips a video is nearer to, where they differ visibly."""
    first, second = (way.astype(np.int32) for way in ways)
    differs = np.abs(first - second).max(axis=-1) > CHANGED
    errors = [np.sum((video.astype(np.int32) - way)[differs] ** 2) for way in (first, second)]
    return int(np.argmin(errors))


def entropy(share: float) -> float:
    """Of a coin that falls so on this share of its throws, in bits."""
    return -sum(p * math.log2(p) for p in (share, 1 - share) if p > 0)


def fair_entropy(throws: int) -> float:
    """The mean of `entropy` over that many throws of a fair coin."""
    ways = [math.comb(throws, heads) * entropy(heads / throws) for heads in range(throws + 1)]
    return sum(ways) / 2**throws


# The command


def main(words: Sequence[str] | None = None) -> None:
    args = _arguments(words)
    for name in ("clips", "scenes", "seeds"):
        at_least(f"--{name}", getattr(args, name), 1)
    loaded = load_pretrained(args.checkpoint)
    bundle = loaded.bundle
    shape = ClipShape(num_frames=bundle.num_frames, height=bundle.height, width=bundle.width)
    source = Scenes(seed=args.seed, length=100 * (args.clips + args.scenes), split="test")
    told = told_clips(source, shape, args.clips)
    scenes = open_scenes(source, shape, args.scenes)
    fair = fair_entropy(args.seeds)
    print(
        f"{args.clips} clips, and {args.scenes} first frames with {args.seeds} seeds each; "
        f"{shape.num_frames} frames of {shape.height}x{shape.width}"
    )
    print("| " + " | ".join(HEADER) + " |\n" + "|---" * len(HEADER) + "|")
    rows, shown = {}, []
    for name, changes in OPTIONS.items():
        config = dataclasses.replace(bundle.sampling, **changes)
        sampler = VideoSampler.from_bundle(loaded.model, bundle, config, batch_size=args.batch)
        row = score_told(sampler, told)
        opened, videos = score_open(sampler, scenes, args.seeds)
        row |= opened | {"ms": milliseconds(sampler, told)}
        rows[name] = row
        cells = [
            format(row[name], form) if name in row else "-" for name, form in TOLD_SCORES.items()
        ]
        cells += [
            f"{row['sides']:.2f} ({fair:.2f})",
            f"{row['whole']:.0%}",
            f"{row['best']:.1f}",
            f"{row['over_mean']:.1f}",
            f"{row['ms']:.0f}",
        ]
        print("| " + " | ".join([name, *cells]) + " |", flush=True)
        if not shown:
            for scene, group in list(zip(scenes, videos, strict=True))[:3]:
                shown.append((scene.caption, scene.truth))
                shown += [(f"seed {seed}", video) for seed, video in enumerate(group[:4])]
    report = {"checkpoint": str(args.checkpoint), "rows": rows, "fair_entropy": fair}
    write_report(report | vars(args), args.out, "open_scenes")
    if args.picture:
        write_png(args.picture, contact_sheet(shown, columns=9), overwrite=True)


def milliseconds(sampler: VideoSampler, told: Told) -> float:
    """Of a video in a batch, once everything is compiled."""
    count = min(sampler.batch_size, len(told.video))
    start = time.perf_counter()
    sampler(told.video[:count, :1], told.captions[:count], told.video.shape[1])
    return 1000 * (time.perf_counter() - start) / count


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = checkpoint_parser(__doc__)
    parser.add_argument("--clips", type=int, default=32, help="with captions that fix everything")
    parser.add_argument("--scenes", type=int, default=8, help="with captions that leave the side")
    parser.add_argument("--seeds", type=int, default=8, help="for each of these")
    parser.add_argument("--batch", type=int, default=32, help="videos at a time")
    parser.add_argument("--seed", type=int, default=0, help="of the scenes")
    parser.add_argument("--picture", help="a file for four seeds of three first frames")
    return parser.parse_args(words)


if __name__ == "__main__":
    run_command(main)
