"""Whether FVD rises as real clips are spoilt more and more.

    python -m benchmarks.fvd_disturbances --clips=clips --i3d=i3d-kinetics-400.ckpt --cache=features

Windows of the clips are compared with themselves after a disturbance, each in rising strength:

blur        every frame through a Gaussian of this standard deviation, in pixels
noise       normal noise of this standard deviation, in grey levels, on every value
frozen      of each so many frames the first is shown throughout
shuffled    each so many frames in a random order

Prints a Markdown table and writes JSON. A distance that does not rise with the strength is an
error. The moments of each set of clips are kept in `--cache`, so that an interrupted measurement
is continued by the same command.
"""

import argparse
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter
from tqdm import tqdm

from benchmarks.measuring import argument_parser, run_command, write_report
from videomar_jax.checks import UserError, at_least
from videomar_jax.data.loader import fixed_clips
from videomar_jax.data.sources import ClipShape, ClipSource
from videomar_jax.data.videos import VideoFolder
from videomar_jax.evaluation.fvd import Moments, frechet_distance, load_moments
from videomar_jax.evaluation.i3d import I3D
from videomar_jax.evaluation.i3d_weights import load_i3d
from videomar_jax.evaluation.protocols import LEAST_CLIPS
from videomar_jax.io.files import atomic_write, clear_leftovers, read_json, sha256
from videomar_jax.io.paths import user_path

Disturb = Callable[[np.ndarray, float, np.random.Generator], np.ndarray]
"""(clip [F, Hp, Wp, 3], strength, randomness) → the clip spoilt."""

UNDISTURBED = "undisturbed"
SETTINGS = "settings.json"


def blur(clip: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Every frame blurred; strength in pixels."""
    gaussian = ImageFilter.GaussianBlur(strength)
    return np.stack([np.asarray(Image.fromarray(frame).filter(gaussian)) for frame in clip])


def noise(clip: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Noise on every value; strength in grey levels."""
    noisy = clip + rng.normal(0, strength, clip.shape)
    return np.clip(np.round(noisy), 0, 255).astype(np.uint8)


def frozen(clip: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Of each `strength` frames the first."""
    frames = np.arange(len(clip))
    return clip[frames - frames % int(strength)]


def shuffled(clip: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Each `strength` frames in another order."""
    length = int(strength)
    order = [
        rng.permutation(range(i, min(i + length, len(clip)))) for i in range(0, len(clip), length)
    ]
    return clip[np.concatenate(order)]


DISTURBANCES: Mapping[str, tuple[Disturb, Sequence[float]]] = {
    "blur": (blur, (0.5, 1, 2)),
    "noise": (noise, (5, 15, 45)),
    "frozen": (frozen, (2, 4, 16)),
    "shuffled": (shuffled, (2, 4, 16)),
}
"""Disturbances with their strengths, from weak to strong."""


def spoilt(
    source: ClipSource, windows: Sequence[int], shape: ClipShape, name: str, strength: float
) -> Iterator[np.ndarray]:
    """Yields the windows, disturbed; the same ones at each call."""
    for index in windows:
        clip = fixed_clips(source, [index], shape=shape)["video"][0]
        if name != UNDISTURBED:
            clip = DISTURBANCES[name][0](clip, strength, np.random.default_rng(index))
        yield clip


def moments_of(
    network: I3D, clips: Iterator[np.ndarray], count: int, kept: Path, label: str
) -> Moments:
    """The moments of the features of so many clips, from the file `kept` if it is there.

    Raises:
        UserError: the file is damaged, or of another number of clips.
    """
    if kept.exists():
        moments = load_moments(kept)
        if moments.count != count:
            raise UserError(f"{kept} is of {moments.count} clips, not {count}: remove it.")
        return moments
    moments = Moments.empty()
    with tqdm(desc=label, unit="clip", disable=None) as progress:
        for features in network.of_stream(clips):
            moments = moments.joined(Moments.of(features))
            progress.update(len(features))
    moments.save(kept)
    return moments


def chosen_windows(available: int, count: int) -> list[int]:
    """The numbers of `count` clips, evenly spread.

    Raises:
        UserError: there are fewer.
    """
    if count > available:
        raise UserError(
            f"The folder holds {available} clips that are long enough, and {count} are asked for: "
            f"take more footage, or lower --windows."
        )
    return [i * available // count for i in range(count)]


def check_cache(cache: Path, settings: Mapping[str, Any]) -> None:
    """Raises a UserError if the folder holds features of other clips, sizes or weights."""
    file = cache / SETTINGS
    if not file.exists():
        if cache.exists() and any(cache.iterdir()):
            raise UserError(f"{cache} holds other files: choose another --cache.")
        cache.mkdir(parents=True, exist_ok=True)
        atomic_write(file, json_text(settings))
    elif read_json(file) != settings:
        raise UserError(f"{cache} holds features of other clips or settings: choose another.")
    clear_leftovers(cache)


def json_text(values: Mapping[str, Any]) -> str:
    """As a file holds it."""
    return json.dumps(values, indent=2) + "\n"


def check_rising(distances: Mapping[str, Sequence[float]]) -> None:
    """Raises a UserError if a stronger disturbance has a smaller distance, or the weakest none."""
    for name, values in distances.items():
        for weaker, stronger in itertools.pairwise([0.0, *values]):
            if not stronger > weaker:
                raise UserError(
                    f"FVD does not rise with {name}: {weaker:.2f}, then {stronger:.2f}."
                )


def main(words: Sequence[str] | None = None) -> None:
    args = _arguments(words)
    for flag in ("windows", "frames", "size"):
        at_least(f"--{flag}", getattr(args, flag), 2)
    clips, weights = user_path(args.clips, "--clips"), user_path(args.i3d, "--i3d")
    cache = user_path(args.cache, "--cache")
    source = VideoFolder(clips, fps=args.fps, split="all", crop="center", min_frames=args.frames)
    shape = ClipShape(num_frames=args.frames, height=args.size, width=args.size)
    windows = chosen_windows(len(source), args.windows)
    settings = {
        "clips": source.digest(),
        "i3d": sha256(weights),
        "windows": len(windows),
        "shape": [args.frames, args.size, args.size],
        "fps": args.fps,
    }
    network = I3D(params=load_i3d(weights))
    check_cache(cache, settings)

    def measured(name: str, strength: float = 0.0) -> Moments:
        spoilt_clips = spoilt(source, windows, shape, name, strength)
        label = f"{name} {strength:g}" if strength else name
        kept = cache / f"{label.replace(' ', '-')}.npz"
        return moments_of(network, spoilt_clips, len(windows), kept, label)

    true = measured(UNDISTURBED)
    distances: dict[str, list[float]] = {}
    print("| disturbance | strength | FVD |\n|---|---|---|")
    for name, (_, strengths) in DISTURBANCES.items():
        for strength in strengths:
            distance = frechet_distance(measured(name, strength), true)
            distances.setdefault(name, []).append(distance)
            print(f"| {name} | {strength:g} | {distance:.2f} |", flush=True)
    if args.windows < LEAST_CLIPS:
        print(f"{args.windows} windows are too few to compare with other numbers.")
    report = {"settings": settings, "strengths": {}, "fvd": distances}
    report["strengths"] = {name: list(strengths) for name, (_, strengths) in DISTURBANCES.items()}
    write_report(report, args.out, "fvd_disturbances")
    check_rising(distances)


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argument_parser(__doc__)
    parser.add_argument("--clips", required=True, help="a folder of real clips")
    parser.add_argument("--i3d", required=True, help="the network's weights")
    parser.add_argument("--cache", required=True, help="a folder for the moments of features")
    parser.add_argument("--windows", type=int, default=LEAST_CLIPS)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--size", type=int, default=64, help="rows and columns of the windows")
    parser.add_argument("--fps", type=float, default=25.0, help="frames per second of the windows")
    parser.add_argument("--out", help="the JSON file")
    return parser.parse_args(words)


if __name__ == "__main__":
    run_command(main, resumes=True)
