"""All next frames at once (`all`) against one truncated next frame (`one`) at equal training time.

    python -m benchmarks.objective --seconds=270

trains the quick start's model on moving shapes of T = 4 latent frames with both losses, from the
same parameters and on the same clips in the same order, and scores both on the same held-out clips.
The runs alternate every few seconds in one process, and each counts only the time of its own steps
(without compiling and data), so that other load on the machine affects them alike. Both losses have
the same expectation: a hidden token of any frame 1..T-1 has the same weight.

Writes the curves as JSON (--out) and, if matplotlib is installed, as a picture (--picture).
"""

import argparse
import dataclasses
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from videomar_jax.data.loader import fixed_clips
from videomar_jax.data.shapes import Shapes
from videomar_jax.data.sources import ClipShape
from videomar_jax.evaluation import motion
from videomar_jax.evaluation.report import Case, score
from videomar_jax.inference.stream import VideoSampler
from videomar_jax.models.config import PRESETS, ModelConfig
from videomar_jax.models.flops import supervised_frame_flops, train_step_flops
from videomar_jax.models.params import abstract_model
from videomar_jax.sampling.config import SamplingConfig
from videomar_jax.text_encoders import HashedTextEncoder
from videomar_jax.tokenizers import PCATokenizer
from videomar_jax.training.batches import TrainingInputs, to_batch, training_batches
from videomar_jax.training.config import LossConfig, OptimizerConfig
from videomar_jax.training.curriculum import Curriculum
from videomar_jax.training.draws import Batch, draw, supervised_frames
from videomar_jax.training.loss import next_frame_loss
from videomar_jax.training.optimizer import make_optimizer
from videomar_jax.training.stages import truncated_frames
from videomar_jax.training.state import TrainState, init_state
from videomar_jax.training.step import make_train_step

MODEL = PRESETS["quickstart"]
STRIDE, PATCH, FRAMES = 2, 4, 4
FORMS = {
    "one": LossConfig(
        supervise="one_frame", truncate=True, draws_per_token=2, regression_weight=1.0
    ),
    "all": LossConfig(supervise="all_frames", draws_per_token=2, regression_weight=1.0),
}
OPTIMIZER = OptimizerConfig(
    name="muon", weight_decay=0.01, clip_norm=1.0, warmup_steps=100, ema_decay=0.99, ema_warmup=True
)
SAMPLING = SamplingConfig(steps=4, head_steps="4", guidance=1.0, latent_clip=0.0)


@dataclasses.dataclass(frozen=True)
class World:
    """What both runs share."""

    inputs: TrainingInputs
    shape: ClipShape
    batch_size: int
    seed: int
    held_out: dict[str, Any]

    def tokens(self) -> int:
        """S, the tokens of a frame."""
        return self.shape.height * self.shape.width // PATCH**2

    def batches(self) -> Iterator[Batch]:
        """Training batches, the same for every run."""
        sizes = dict(
            num_frames=self.shape.num_frames, height=self.shape.height, width=self.shape.width
        )
        row = dict(
            name="shapes", batch_size=self.batch_size, steps=10**6, learning_rate=1.0, **sizes
        )
        return training_batches(self.seed, 0, Curriculum.from_rows([row]).stages[0], self.inputs, 0)


def make_world(size: int, batch_size: int, seed: int, held_out: int) -> World:
    """Moving shapes on `size` x `size` pixels, a tokenizer fitted on them, and held-out clips."""
    shape = ClipShape(num_frames=1 + (FRAMES - 1) * STRIDE, height=size, width=size)
    train = Shapes(seed=seed, length=100_000, split="train", bounce=True)
    test = Shapes(seed=seed, length=10 * held_out, split="test", bounce=False)
    clips = (fixed_clips(train, [i], shape=shape)["video"] for i in range(400))
    tokenizer = PCATokenizer.fit(
        clips, patch=PATCH, temporal_stride=STRIDE, channels=MODEL.latent_channels
    )
    text = HashedTextEncoder(MODEL.text_tokens, MODEL.text_width)
    inputs = TrainingInputs(source=train, tokenizer=tokenizer, text_encoder=text)
    return World(inputs, shape, batch_size, seed, fixed_clips(test, range(held_out), shape=shape))


class Run:
    """Training with one loss at one learning rate, in slices of its own time."""

    def __init__(self, form: str, rate: float, world: World, config: ModelConfig):
        self.form, self.rate, self.world, self.loss = form, rate, world, FORMS[form]
        optimizer = make_optimizer(
            OPTIMIZER, lambda step: rate * jnp.minimum(1.0, (step + 1) / OPTIMIZER.warmup_steps)
        )
        graph, _ = abstract_model(config)
        root = jax.random.key(world.seed)
        self.key = jax.random.fold_in(root, 1)
        self.state: TrainState = init_state(config, optimizer, jax.random.fold_in(root, 0))
        update = make_train_step(graph, optimizer, self.loss, OPTIMIZER)
        self.stream = world.batches()
        self.updates, batch = {}, next(self.stream)
        lengths = range(2, FRAMES + 1) if self.loss.truncate else [FRAMES]
        for length in lengths:
            shorter = dataclasses.replace(batch, latents=batch.latents[:, :length])
            self.updates[length] = update.lower(self.state, shorter, self.key).compile()
        self.step, self.seconds, self.curve = 0, 0.0, []

    def train(self, until: float) -> None:
        """Steps until the run's own clock shows `until` seconds."""
        while self.seconds < until:
            batch = next(self.stream)
            if self.loss.truncate:
                length = truncated_frames(self.world.seed, self.step, FRAMES)
                batch = dataclasses.replace(batch, latents=batch.latents[:, :length])
            jax.block_until_ready(batch)
            start = time.perf_counter()
            self.state, metrics = self.updates[batch.latents.shape[1]](self.state, batch, self.key)
            jax.block_until_ready((self.state, metrics))
            self.seconds += time.perf_counter() - start
            self.step += 1

    def measure(self, judge: "Judge") -> dict[str, float]:
        """Scores of the averaged parameters now."""
        scores = judge(self.state.ema) | {"seconds": self.seconds, "step": self.step}
        self.curve.append(scores)
        return scores

    def report(self) -> dict[str, Any]:
        """The curve, and what a step and a supervised frame cost."""
        sizes = dict(
            supervise=self.loss.supervise,
            truncate=self.loss.truncate,
            frames=FRAMES,
            tokens=self.world.tokens(),
            draws_per_token=self.loss.draws_per_token,
            batch=self.world.batch_size,
        )
        frames = self.world.batch_size * supervised_frames(FRAMES, self.loss)
        per_step = self.seconds / max(self.step, 1)
        return {
            "frames": self.form,
            "learning_rate": self.rate,
            "steps": self.step,
            "seconds": self.seconds,
            "step_seconds": per_step,
            "step_flops": train_step_flops(MODEL, **sizes),
            "supervised_frame_seconds": per_step / frames,
            "supervised_frame_flops": supervised_frame_flops(MODEL, **sizes),
            "supervised_frames": frames * self.step,
            "curve": self.curve,
        }


class Judge:
    """Scores parameters on the held-out clips, always with the same draws."""

    def __init__(self, world: World, config: ModelConfig):
        self.world, self.config, self.graph = world, config, abstract_model(config)[0]
        self.batch = to_batch(world.held_out, world.inputs)
        self.loss = jax.jit(self._loss)
        directions = [motion.direction_of(caption) for caption in world.held_out["caption"]]
        self.case = Case(
            name="held_out",
            title="Held-out clips",
            reference=world.held_out["video"],
            prompts=world.held_out["caption"],
            directions=directions,
        )

    def _loss(self, params: Any, batch: Batch) -> dict[str, Any]:
        model = nnx.merge(self.graph, params)
        config = LossConfig(supervise="all_frames", draws_per_token=8, text_dropout=0.0)
        draws = draw(
            jax.random.key(0), model, (len(batch.latents), FRAMES, self.world.tokens()), config
        )
        return next_frame_loss(model, batch, draws, config)[1]

    def __call__(self, params: Any) -> dict[str, float]:
        losses = jax.device_get(self.loss(params, self.batch))
        model = nnx.merge(self.graph, params)
        inputs = self.world.inputs
        sampler = VideoSampler(
            model=model,
            tokenizer=inputs.tokenizer,
            text_encoder=inputs.text_encoder,
            config=SAMPLING,
            batch_size=len(self.batch.latents),
        )
        scores = score(self.case, sampler, sampler.reconstruct).scores[self.case.name]
        by_frame = losses["by_frame"]["sum"][1:] / losses["by_frame"]["count"][1:]
        named = {f"loss_frame_{i + 1}": float(value) for i, value in enumerate(by_frame)}
        return {"loss": float(losses["loss"])} | named | scores


def main() -> None:
    args = _arguments()
    for place in (args.out, args.picture):
        if Path(place).exists():
            raise SystemExit(
                f"{place} exists; name another place with --out and --picture, or move it away."
            )
    config = dataclasses.replace(MODEL, unroll=MODEL.depth if jax.default_backend() == "cpu" else 1)
    world = make_world(args.size, args.batch, args.seed, args.held_out)
    judge = Judge(world, config)
    runs = [Run(form, rate, world, config) for rate in args.rate for form in FORMS]
    marks = [args.every * (i + 1) for i in range(int(args.seconds / args.every))]
    for run in runs:
        run.measure(judge)
    for mark in marks:
        turns = max(round(args.every / args.turn), 1)
        for until in np.linspace(mark - args.every, mark, turns + 1)[1:]:
            for run in runs:
                run.train(until)
        for run in runs:
            scores = run.measure(judge)
            print(
                f"{run.form} {run.rate:g}: {run.seconds:.0f} s, {run.step} steps, "
                f"loss {scores['loss']:.4f}, PSNR {scores['psnr']:.2f}, "
                f"position error {scores['centroid_error']:.2f} px",
                flush=True,
            )
    report = {
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "load": os.getloadavg(),
        "clips": dataclasses.asdict(world.shape),
        "batch": args.batch,
        "runs": [run.report() for run in runs],
    }
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    Path(args.out).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    draw_curves(report, args.picture)


def draw_curves(report: dict[str, Any], path: str) -> None:
    """Held-out loss, PSNR and position error against seconds and steps; a line for each run."""
    try:
        import matplotlib
    except ImportError:
        print("No picture: matplotlib is not installed.")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = [
        ("seconds", "loss"),
        ("step", "loss"),
        ("seconds", "psnr"),
        ("seconds", "centroid_error"),
    ]
    names = {
        "seconds": "training seconds",
        "step": "steps",
        "loss": "held-out loss",
        "psnr": "PSNR (dB)",
        "centroid_error": "position error of the object (px)",
    }
    colours, strokes = {"one": "tab:orange", "all": "tab:blue"}, ["-", "--", ":", "-."]
    rates = sorted({run["learning_rate"] for run in report["runs"]}, reverse=True)
    figure, axes = pyplot.subplots(
        1, len(panels), figsize=(4 * len(panels), 3.4), constrained_layout=True
    )
    for axis, (x, y) in zip(axes, panels, strict=True):
        for run in report["runs"]:
            curve = run["curve"][1:]
            axis.plot(
                [p[x] for p in curve],
                [p[y] for p in curve],
                color=colours[run["frames"]],
                linestyle=strokes[rates.index(run["learning_rate"]) % len(strokes)],
                label=f"{run['frames']}, rate {run['learning_rate']:g}",
            )
        axis.set(xlabel=names[x], ylabel=names[y])
        if y in ("loss", "centroid_error"):
            axis.set_yscale("log")
        axis.grid(alpha=0.3, which="both")
    axes[0].legend(fontsize=8)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    print(path)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--seconds", type=float, default=270.0, help="training time of each run")
    add("--every", type=float, default=30.0, help="seconds of training between two scores")
    add("--turn", type=float, default=5.0, help="seconds of training before the runs alternate")
    add("--rate", type=float, action="append", help="learning rate; repeat to run several")
    add("--size", type=int, default=16, help="pixels of a side")
    add("--batch", type=int, default=32, help="clips in a batch")
    add("--held_out", type=int, default=64, help="clips to score on")
    add("--seed", type=int, default=0)
    add("--out", default="runs/benchmarks/objective.json")
    add("--picture", default="runs/benchmarks/objective.png")
    args = parser.parse_args()
    args.rate = args.rate or [1e-2, 4e-3]
    return args


if __name__ == "__main__":
    main()
