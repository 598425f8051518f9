"""What each sampling option does to a trained model of moving shapes: quality beside time, longer
and larger clips.

    python -m benchmarks.sampling_quality --checkpoint=runs/quickstart --pictures=docs/images

Regenerates held-out clips from their first frame with one option changed at a time, and scores them
(`evaluation`): share of clips that move as their caption says, PSNR without the given frame,
distance of the object's centre from where it should be in the last frame, share of clips that still
show it. Seconds are those of a video in a batch, of a second run. Prints Markdown tables;
`--pictures` names a folder for sheets of the longer and larger clips.
"""

import argparse
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from videomar_jax.data.loader import fixed_clips
from videomar_jax.data.shapes import Shapes
from videomar_jax.data.sources import ClipShape
from videomar_jax.evaluation import metrics, motion
from videomar_jax.inference.stream import VideoSampler
from videomar_jax.io.media import contact_sheet, write_png
from videomar_jax.pretrained.bundle import Pretrained, load_pretrained
from videomar_jax.sampling.config import PRESETS, SamplingConfig, with_preset
from videomar_jax.tokenizers import latent_shape, pixel_frames

HEADER = [
    "setting",
    "direction",
    "PSNR, dB",
    "object off at the end, px",
    "object there",
    "ms a video",
]


class Bench:
    """A model, and clips that it never saw."""

    def __init__(self, loaded: Pretrained, clips: int):
        self.loaded, self.bundle, self.clips = loaded, loaded.bundle, clips

    def shape(self, num_frames: int | None = None, side: float = 1.0) -> ClipShape:
        """Clips as trained, or longer, or `side` times larger."""
        bundle = self.bundle
        return ClipShape(
            num_frames=num_frames or bundle.num_frames,
            height=int(bundle.height * side),
            width=int(bundle.width * side),
        )

    def score(
        self, config: SamplingConfig, shape: ClipShape, timed: bool = True
    ) -> tuple[list[Any], np.ndarray]:
        """A row of the table without its name, and the clips."""
        source = Shapes(seed=0, length=10 * self.clips, split="test", bounce=False)
        clips = fixed_clips(source, range(self.clips), shape=shape)
        sampler = VideoSampler.from_bundle(
            self.loaded.model, self.bundle, config, batch_size=self.clips
        )
        for _ in range(1 + timed):
            start = time.perf_counter()
            made = sampler(clips["video"][:, :1], clips["caption"], shape.num_frames)
            seconds = time.perf_counter() - start
        motions = motion.movement(
            made, clips["video"], [motion.direction_of(caption) for caption in clips["caption"]]
        )
        psnr = float(metrics.psnr(made[:, 1:], clips["video"][:, 1:]).mean())
        row = [
            motions["direction_accuracy"],
            psnr,
            motions["centroid_error_last"],
            motions["object_present"],
        ]
        return [*row, 1000 * seconds / self.clips if timed else None], made

    def truth(self, shape: ClipShape) -> np.ndarray:
        source = Shapes(seed=0, length=10 * self.clips, split="test", bounce=False)
        return fixed_clips(source, range(self.clips), shape=shape)["video"]


def options(base: SamplingConfig, head: str) -> dict[str, SamplingConfig]:
    """The model's own settings, and one or two of them changed."""
    changes: dict[str, dict[str, Any]] = {"as trained with": {}}
    changes |= {f"{n} reveal steps": dict(steps=n) for n in (1, 2, 8, 16)}
    changes |= {f"{n} head steps": dict(head_steps=str(n)) for n in (2, 10, 25)}
    changes |= {
        "1 x 2 steps": dict(steps=1, head_steps="2"),
        "16 x 25 steps": dict(steps=16, head_steps="25"),
    }
    changes |= {"16 x 25 steps, head 25-5": dict(steps=16, head_steps="25-5")}
    if head == "flow":
        changes |= {
            f"Heun, {n} head steps": dict(head_steps=str(n), head_solver="heun") for n in (2, 4)
        }
    changes |= {f"temperature {t}": dict(temperature=t) for t in (0.0, 0.5, 0.9)}
    changes |= {f"temperature law {law}": dict(temperature_law=law) for law in ("paper", "linear")}
    changes |= {f"guidance {g}": dict(guidance=g) for g in (1.5, 3.0)}
    changes |= {"guidance 3, constant": dict(guidance=3.0, guidance_schedule="constant")}
    changes |= {"guidance 1.5, first half": dict(guidance=1.5, guidance_interval=(0.0, 0.5))}
    changes |= {"guidance 1.5, last half": dict(guidance=1.5, guidance_interval=(0.5, 1.0))}
    changes |= {"bfloat16 transformer": dict(dtype="bfloat16"), "clip at 2": dict(latent_clip=2.0)}
    presets = {f"preset {name}": with_preset(base, name, head) for name in PRESETS}
    return {name: dataclasses.replace(base, **change) for name, change in changes.items()} | presets


LONGER: dict[str, dict[str, Any]] = {
    "nothing": {},
    "window 4, frame 0 kept": dict(window=4, first_frame_position="absolute"),
    "window 4, frame 0 kept and shifted": dict(window=4, first_frame_position="shifted"),
    "window 4, last frames only": dict(window=4, keep_first=False),
    "window 2, last frames only": dict(window=2, keep_first=False),
    "frames interpolated": dict(temporal_rope_scaling="interpolate"),
    "frames NTK-scaled": dict(temporal_rope_scaling="ntk"),
    "temperature 0.5": dict(temperature=0.5),
    "window 4, temperature 0.5": dict(window=4, first_frame_position="absolute", temperature=0.5),
}
LONGER = {name: dict(window=None, keep_first=True) | change for name, change in LONGER.items()}
LARGER: dict[str, dict[str, Any]] = {
    "nothing": {},
    "positions interpolated": dict(spatial_rope_scaling="interpolate"),
    "positions NTK-scaled": dict(spatial_rope_scaling="ntk"),
    "twice the reveal steps": dict(steps=8),
    "temperature 0.5": dict(temperature=0.5),
}


def remedies(
    bench: Bench, shape: ClipShape, ways: dict[str, dict[str, Any]], names: Sequence[str]
) -> tuple[list[list[Any]], list[tuple[str, np.ndarray]]]:
    """Rows of the table, and rows of the sheet: the truth and what the remedies `names` make of one
    clip."""
    rows, shown = [], [("truth", bench.truth(shape)[1])]
    for name, change in ways.items():
        row, made = bench.score(
            dataclasses.replace(bench.bundle.sampling, **change), shape, timed=False
        )
        rows.append([name, *row[:-1]])
        print("|", " | ".join(map(_plain, rows[-1])), "|", flush=True)
        if name in names:
            shown.append((name, made[1]))
    return rows, shown


def main() -> None:
    args = _arguments()
    loaded = load_pretrained(args.checkpoint)
    bench, bundle = Bench(loaded, args.clips), loaded.bundle
    print(
        f"{args.clips} held-out clips, {bundle.num_frames} frames of {bundle.height}x{bundle.width}"
    )
    _head(HEADER)
    for name, config in options(bundle.sampling, bundle.config.head).items():
        row, _ = bench.score(config, bench.shape())
        print("|", " | ".join(map(_plain, [name, *row])), "|", flush=True)
    latents = (
        2 * latent_shape(bundle.tokenizer, bundle.num_frames, bundle.height, bundle.width)[0] - 1
    )
    cases = {
        "longer": (bench.shape(num_frames=pixel_frames(bundle.tokenizer, latents)), LONGER),
        "larger": (bench.shape(side=1.5), LARGER),
    }
    for name, (shape, ways) in cases.items():
        print(f"\n{name}: {shape.num_frames} frames of {shape.height}x{shape.width}")
        _head(HEADER[:-1])
        _, shown = remedies(bench, shape, ways, list(ways)[:7])
        if args.pictures:
            sheet = contact_sheet(shown, columns=9, scale=2)
            write_png(Path(args.pictures) / f"sampling_{name}.png", sheet, overwrite=True)


def _head(names: Sequence[str]) -> None:
    print("| " + " | ".join(names) + " |\n" + "|---" * len(names) + "|")


def _plain(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else f"{value:.3g}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", required=True, help="a run's folder")
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument(
        "--pictures", help="a folder for sampling_longer.png and sampling_larger.png"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
