"""The paper's ablation in small: what each of its parts is worth on drawn scenes.

    python -m benchmarks.ablation --seeds=3 --workdir=runs/ablation --i3d=FILE

Table 4 of VideoMAR (arXiv 2506.14168) adds one part after the other:

    none          no next-frame loss, attention over all frames     (`non_causal.every_frame_loss`)
    next_frame    + the next-frame loss                             (`non_causal.next_frame_loss`)
    causal        + the causal mask: the package's loss, supervise="one_frame"
    temperature   + the progressive temperature, a matter of sampling: the model of `causal`
    all_frames    ours: supervise="all_frames" in place of "one_frame"

A small model is trained in each of the four ways for equal steps, from the same parameters and on
the same clips in the same order, once for each seed. Its videos continue the first frames of
held-out clips and are compared with these:

FVD       Fréchet video distance, with --i3d (docs/evaluation.md says where the weights are to be
          had). Of so few clips it compares within one table only.
changed   PSNR over the pixels that differ visibly from the first frame.
there     share of the frames that show the object (`evaluation.acting`).
acts      share of the clips that are nearer to the true clip than to all of another verb or side.
follows   the same, and nearer than to all of another speed as well.

Prints a Markdown table of means and standard deviations over the seeds, with the paper's figures
and the training time beside them, and writes everything as JSON (--out).

WORKDIR keeps the figures (VARIANT-SEED.json) and videos (VARIANT-SEED.npy) of what is finished, and
the same command continues from there. A training that was interrupted starts anew: at the default
size that costs a few minutes at most. Further seeds, and --i3d, can be added later.
"""

import argparse
import dataclasses
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np

from benchmarks.ablation_results import Result, Results
from benchmarks.ablation_variants import (
    TRAININGS,
    VARIANTS,
    Progress,
    Settings,
    World,
    draw_videos,
    make_world,
    train,
)
from benchmarks.measuring import argument_parser, run_command, write_report
from benchmarks.told_scenes import score_videos
from videomar_jax.checks import UserError, at_least
from videomar_jax.evaluation.fvd import Moments, fvd
from videomar_jax.evaluation.i3d import I3D
from videomar_jax.evaluation.i3d_weights import load_i3d
from videomar_jax.evaluation.metrics import copy_first
from videomar_jax.evaluation.protocols import LEAST_FRAMES
from videomar_jax.io import lock
from videomar_jax.io.files import sha256
from videomar_jax.io.paths import user_path
from videomar_jax.tokenizers import to_video
from videomar_jax.training.batches import encode

COLUMNS = {
    "fvd": ("FVD", ".0f"),
    "changed": ("changed, dB", ".2f"),
    "there": ("there", ".1%"),
    "acts": ("acts", ".1%"),
    "follows": ("follows", ".1%"),
}
"""Scores of the table → heading and format."""
HEADER = ["variant", "VBench-I2V Total (paper)"]
HEADER += [heading for heading, _ in COLUMNS.values()] + ["training, s"]


class Network:
    """I3D, and the name by which its results are known."""

    def __init__(self, path: Path):
        """Reads the weights.

        Raises:
            OSError, UserError: there is no such file, or it holds another network.
        """
        self.i3d = I3D(params=load_i3d(path))
        self.digest = sha256(path)

    def moments(self, clips: np.ndarray) -> Moments:
        """Of the features of clips [N, F, Hp, Wp, 3]."""
        return Moments.of(self.i3d.features(clips))


# Work that is not done yet


def train_missing(results: Results, seeds: int, settings: Settings, world: World) -> None:
    """Trains, samples and scores what the folder lacks; a seed is finished before the next."""
    missing = []
    for seed in range(seeds):
        for training in TRAININGS:
            wanted = [name for name in _variants_of(training) if not results.has(name, seed)]
            if wanted:
                missing.append((training, seed, wanted))
    progress = Progress(len(missing) * settings.steps)
    for number, (training, seed, wanted) in enumerate(missing, start=1):
        print(f"training {number} of {len(missing)}: {training}, seed {seed}", flush=True)
        trained = train(training, seed, settings, world, progress)
        for name in wanted:
            videos = draw_videos(name, trained.params, world)
            scores = score_videos(videos, world.held_out)
            result = Result(variant=name, seed=seed, seconds=trained.seconds, scores=scores)
            results.save(result, videos)
            print(f"{name}, seed {seed}: {_in_words(scores)}", flush=True)


def _variants_of(training: str) -> Iterator[str]:
    return (name for name, variant in VARIANTS.items() if variant.training == training)


def _in_words(scores: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in scores.items())


def measure_fvd(results: Results, seeds: int, truth: np.ndarray, network: Network) -> None:
    """Adds the distance to every result that lacks it, or has that of another network."""
    missing = []
    for result in results.load(seeds):
        if result.i3d != network.digest:
            missing.append(result)
    if not missing:
        return
    true = network.moments(truth)
    for number, result in enumerate(missing, start=1):
        videos = results.videos(result.variant, result.seed, truth.shape)
        distance = fvd(network.moments(videos), true, few=True).distance
        results.save(dataclasses.replace(result, fvd=distance, i3d=network.digest))
        print(
            f"FVD {number} of {len(missing)}: {result.variant}, seed {result.seed}: {distance:.1f}",
            flush=True,
        )


def measure_baselines(world: World, network: Network | None) -> dict[str, dict[str, float]]:
    """The scores of videos that no model made: a floor and a ceiling."""
    truth, tokenizer = world.held_out.video, world.inputs.tokenizer
    decoded = np.asarray(to_video(tokenizer.decode(encode(tokenizer, truth))))
    videos = {
        "first frame repeated": copy_first(truth),
        "tokenizer alone": np.concatenate([truth[:, :1], decoded[:, 1:]], axis=1),
    }
    scores = {name: score_videos(made, world.held_out) for name, made in videos.items()}
    if network is not None:
        true = network.moments(truth)
        for name, made in videos.items():
            scores[name]["fvd"] = fvd(network.moments(made), true, few=True).distance
    return scores


# The table


def rows_of(results: Sequence[Result]) -> dict[str, dict[str, list[float]]]:
    """The values of each variant over its seeds, by score; with "seconds"."""
    rows: dict[str, dict[str, list[float]]] = {name: {} for name in VARIANTS}
    for result in results:
        values = result.scores | {"seconds": result.seconds}
        if result.fvd is not None:
            values["fvd"] = result.fvd
        for name, value in values.items():
            rows[result.variant].setdefault(name, []).append(value)
    return rows


def table(
    rows: dict[str, dict[str, list[float]]], baselines: dict[str, dict[str, float]]
) -> Iterator[str]:
    """The lines of a Markdown table."""
    yield "| " + " | ".join(HEADER) + " |"
    yield "|---" * len(HEADER) + "|"
    for name, values in rows.items():
        variant = VARIANTS[name]
        paper = "-" if variant.paper is None else f"{variant.paper:.2f}"
        cells = [mean_and_spread(values.get(key, []), form) for key, (_, form) in COLUMNS.items()]
        # The variants that share a training share its time.
        seconds = mean_and_spread(values.get("seconds", []), ".0f")
        yield "| " + " | ".join([variant.title, paper, *cells, seconds]) + " |"
    for title, scores in baselines.items():
        cells = [
            format(scores[key], form) if key in scores else "-"
            for key, (_, form) in COLUMNS.items()
        ]
        yield "| " + " | ".join([title, "-", *cells, "-"]) + " |"


def mean_and_spread(values: Sequence[float], form: str) -> str:
    """Mean and standard deviation; of a single value that value, "-" of none."""
    if not values:
        return "-"
    mean = format(statistics.mean(values), form)
    return mean if len(values) == 1 else f"{mean} ± {format(statistics.stdev(values), form)}"


# The command


def main(words: Sequence[str] | None = None) -> None:
    args = _arguments(words)
    fields = [field.name for field in dataclasses.fields(Settings)]
    settings = Settings(**{name: getattr(args, name) for name in fields})
    network = _check(args, settings)
    workdir = user_path(args.workdir, "--workdir")
    with lock.holding(workdir / lock.PREFIX, str(workdir)):
        results = Results(workdir, settings.record())
        results.load(args.seeds)  # a damaged file shows before the work
        world = make_world(settings)
        train_missing(results, args.seeds, settings, world)
        if network is not None:
            measure_fvd(results, args.seeds, world.held_out.video, network)
        found = results.load(args.seeds)
        if network is None:
            # Those of an earlier command, whose network nobody named this time.
            found = [dataclasses.replace(result, fvd=None, i3d=None) for result in found]
        baselines = measure_baselines(world, network)
    rows = rows_of(found)
    print(
        f"\n{args.seeds} seeds, {settings.steps} steps of {settings.batch} clips each, "
        f"{settings.clips} held-out clips of {settings.frames} frames of "
        f"{settings.side}x{settings.side}; mean ± standard deviation over the seeds\n"
    )
    print("\n".join(table(rows, baselines)), flush=True)
    if network is None:
        print("\nNo FVD: name the weights of its network with --i3d=FILE.")
    report = {
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "settings": settings.record(),
        "seeds": args.seeds,
        "i3d": None if network is None else network.digest,
        "results": [dataclasses.asdict(result) for result in found],
        "rows": rows,
        "baselines": baselines,
        "paper": {name: variant.paper for name, variant in VARIANTS.items()},
    }
    out = None if args.out is None else str(user_path(args.out, "--out"))
    write_report(report, out, "ablation")


def _check(args: argparse.Namespace, settings: Settings) -> Network | None:
    """What would otherwise be wrong only after the work; returns the network of --i3d.

    Raises:
        OSError, UserError: a flag with a value that is not possible, by name.
    """
    at_least("--seeds", args.seeds, 1)
    if args.out is not None and user_path(args.out, "--out").exists():
        raise UserError(f"--out={args.out} exists already; name another file, or move it away.")
    if args.i3d is None:
        return None
    if settings.frames < LEAST_FRAMES:
        raise UserError(
            f"--i3d needs clips of at least {LEAST_FRAMES} frames, not --frames={settings.frames}."
        )
    at_least("--clips (with --i3d)", settings.clips, 2)
    return Network(user_path(args.i3d, "--i3d"))


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argument_parser(__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each kind")
    default = Settings()

    def add(name: str, text: str) -> None:
        value = getattr(default, name)
        parser.add_argument(f"--{name}", type=type(value), default=value, help=text)

    add("steps", "updates of each training")
    add("batch", "clips in a batch")
    add("frames", "frames of a clip, the given one included")
    add("side", "rows and columns of a frame")
    add("clips", "held-out clips that are continued")
    add("rate", "peak learning rate")
    add("data_seed", "of the scenes, the same for all trainings")
    parser.add_argument("--workdir", default="runs/ablation", help="a folder for what is finished")
    parser.add_argument("--i3d", help="weights of FVD's network")
    parser.add_argument("--out", help="a file for the figures, as JSON")
    return parser.parse_args(words)


if __name__ == "__main__":
    run_command(main, resumes=True)
