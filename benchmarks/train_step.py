"""How fast a training step is, and how much of the device's matmul peak it uses.

On a CPU it measures the sizes tiny and small, on an accelerator 1.4B:

    python -m benchmarks.train_step
    python -m benchmarks.train_step --model=tiny --supervise=one_frame --truncate=1 --multiplier=1
    python -m benchmarks.train_step --model=1p4b --shape=7x30x48 --batch=4 --dtype=bfloat16 \\
        --remat=full --supervise=all_frames

A step is all that training does with a batch: forward, backward, optimizer, averaged parameters,
norms. FLOPs are those of matrix products (`models.flops`) without what rematerialisation computes
again, so their share of the peak is the model's (MFU). The peak is the best rate of a large product
of the same type, measured before and after. Truncated clips have every length from 2 to T equally
often: their times are means over the lengths. On a CPU the clips that the input pipeline makes in a
second are measured too.

Prints one table and writes it as JSON.
"""

import argparse
import dataclasses
import itertools
import os
import statistics
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.measuring import matmul_peak, torch_peak, write_report
from videomar_jax.data.shapes import Shapes
from videomar_jax.data.sources import ClipShape
from videomar_jax.models.config import PRESETS, ModelConfig
from videomar_jax.models.flops import train_step_flops
from videomar_jax.models.params import abstract_model, count_params
from videomar_jax.parallel.config import MeshConfig
from videomar_jax.parallel.mesh import make_mesh
from videomar_jax.parallel.sharding import batch_shardings, layout_rule, state_shardings
from videomar_jax.text_encoders import HashedTextEncoder
from videomar_jax.tokenizers import PCATokenizer
from videomar_jax.training.batches import TrainingInputs, training_batches
from videomar_jax.training.config import LossConfig, OptimizerConfig
from videomar_jax.training.curriculum import Curriculum
from videomar_jax.training.draws import Batch, supervised_frames
from videomar_jax.training.optimizer import make_optimizer
from videomar_jax.training.state import TrainState, init_state
from videomar_jax.training.step import make_train_step

MODELS = {
    "tiny": ModelConfig(
        width=384, depth=6, num_heads=6, head_width=512, text_tokens=32, text_width=256
    ),
    "small": ModelConfig(
        width=768, depth=12, num_heads=12, head_width=1024, text_tokens=64, text_width=256
    ),
    "1p4b": PRESETS["videomar_1p4b"],
}
SHAPES = {"tiny": ["4x8x8"], "small": ["4x16x16"], "1p4b": ["7x16x16", "7x30x48"]}
BATCHES = {"4x8x8": 8, "4x16x16": 2, "7x16x16": 16, "7x30x48": 2}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One line of the table."""

    model: str
    shape: tuple[int, int, int]  # T, H, W
    batch: int
    loss: LossConfig
    config: ModelConfig

    def flops(self) -> float:
        """FLOPs of a step, without what is computed again."""
        frames, rows, columns = self.shape
        return train_step_flops(
            dataclasses.replace(self.config, remat="none"),
            supervise=self.loss.supervise,
            truncate=self.loss.truncate,
            draws_per_token=self.loss.draws_per_token,
            batch=self.batch,
            frames=frames,
            tokens=rows * columns,
        )

    def lengths(self) -> list[int]:
        """The numbers of latent frames that a step may have, each equally often."""
        frames = self.shape[0]
        return list(range(2, frames + 1)) if self.loss.truncate and frames > 1 else [frames]


def main() -> None:
    args = _arguments()
    _choose_for_device(args)
    before = matmul_peaks(args.dtype)
    rows = []
    for case in cases(args):
        rows.append(measure(case, args.steps, MeshConfig(fsdp=args.fsdp)))
        print(describe(rows[-1], before["jax"]), flush=True)
    peaks = [before, matmul_peaks(args.dtype)]
    peak = max(found["jax"] for found in peaks)
    pipeline = (
        [input_rate(model, args.steps) for model in args.model]
        if jax.default_backend() == "cpu"
        else []
    )
    report = {
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "jax": jax.__version__,
        "load": os.getloadavg(),
        "dtype": args.dtype,
        "matmul_flops_per_second": peaks,
        "input": pipeline,
        "steps": [row | {"share_of_peak": row["flops_per_second"] / peak} for row in rows],
    }
    print_report(report, peak)
    write_report(report, args.out, "train_step")


def cases(args: argparse.Namespace) -> Iterator[Case]:
    """The cases that the flags select; every sensible value of what they leave open."""
    for name in args.model:
        config = dataclasses.replace(
            MODELS[name], dtype=args.dtype, remat=args.remat, unroll=args.unroll
        )
        for text in [args.shape] if args.shape else SHAPES[name]:
            shape = tuple(int(size) for size in text.split("x"))
            for supervise, truncate, multiplier in itertools.product(
                args.supervise, args.truncate, args.multiplier
            ):
                if supervise == "all_frames" and truncate:
                    continue
                loss = LossConfig(
                    supervise=supervise, truncate=truncate, draws_per_token=multiplier
                )
                yield Case(
                    model=name,
                    shape=shape,
                    batch=args.batch or BATCHES.get(text, 1),
                    loss=loss,
                    config=config,
                )


class Trainer:
    """A train state and its update, on all devices."""

    def __init__(self, case: Case, mesh_config: MeshConfig):
        self.case, self.mesh = case, make_mesh(mesh_config)
        settings = OptimizerConfig()
        optimizer = make_optimizer(settings, lambda step: jnp.float32(1e-4))
        graph, self.shapes = abstract_model(case.config)
        abstract = jax.eval_shape(lambda: init_state(case.config, optimizer, jax.random.key(0)))
        shardings = state_shardings(abstract, self.mesh, mesh_config)
        self.state: TrainState = init_state(
            case.config, optimizer, jax.random.key(0), None, shardings
        )
        self.update = make_train_step(
            graph,
            optimizer,
            case.loss,
            settings,
            shardings=shardings,
            rule=layout_rule(self.mesh, mesh_config) if self.mesh.size > 1 else None,
        )
        self.key = jax.random.key(1)

    def batch(self, frames: int) -> Batch:
        """Random clips of `frames` latent frames."""
        config, (_, rows, columns) = self.case.config, self.case.shape
        size = config.patch_size
        keys = jax.random.split(jax.random.key(2))
        clips = self.case.batch
        batch = Batch(
            jax.random.normal(
                keys[0], (clips, frames, rows * size, columns * size, config.latent_channels)
            ),
            jax.random.normal(keys[1], (clips, config.text_tokens, config.text_width)),
            jnp.ones((clips, config.text_tokens), bool),
        )
        return jax.device_put(batch, batch_shardings(batch, self.mesh))

    def times(self, batch: Batch, steps: int) -> tuple[float, int, list[float]]:
        """(seconds to compile, bytes that the compiler planned for a device, seconds of each
        step)."""
        start = time.perf_counter()
        compiled = self.update.lower(self.state, batch, self.key).compile()
        compile_seconds, seconds = time.perf_counter() - start, []
        for _ in range(steps + 1):
            start = time.perf_counter()
            self.state, metrics = compiled(self.state, batch, self.key)
            jax.block_until_ready((self.state, metrics))
            seconds.append(time.perf_counter() - start)
        if not np.isfinite(float(metrics["loss"])):
            raise FloatingPointError(f"The loss of {self.case} is not finite.")
        return compile_seconds, _planned_bytes(compiled), seconds[1:]


def measure(case: Case, steps: int, mesh: MeshConfig) -> dict[str, Any]:
    """The numbers of one line.

    The time of a step is the median over `steps` steps, and its mean over the lengths.
    """
    trainer = Trainer(case, mesh)
    runs = [trainer.times(trainer.batch(length), steps) for length in case.lengths()]
    median = statistics.fmean(statistics.median(seconds) for _, _, seconds in runs)
    best = statistics.fmean(min(seconds) for _, _, seconds in runs)
    frames, rows, columns = case.shape
    tokens = case.batch * rows * columns * statistics.fmean(case.lengths())
    supervised = case.batch * supervised_frames(frames, case.loss)
    return {
        "model": case.model,
        "parameters": count_params(trainer.shapes),
        "shape": list(case.shape),
        "batch": case.batch,
        "supervise": case.loss.supervise,
        "truncate": case.loss.truncate,
        "multiplier": case.loss.draws_per_token,
        "remat": case.config.remat,
        "step_seconds": median,
        "best_step_seconds": best,
        "steps": [seconds for _, _, seconds in runs],
        "compile_seconds": sum(seconds for seconds, _, _ in runs),
        "flops": case.flops(),
        "flops_per_second": case.flops() / median,
        "tokens_per_second": tokens / median,
        "seconds_per_supervised_frame": median / supervised,
        "planned_bytes": max(planned for _, planned, _ in runs),
    }


def _planned_bytes(compiled: jax.stages.Compiled) -> int:
    plan = compiled.memory_analysis()
    sizes = (plan.argument_size_in_bytes, plan.output_size_in_bytes, plan.temp_size_in_bytes)
    return sum(sizes) - plan.alias_size_in_bytes


def matmul_peaks(dtype: str) -> dict[str, float]:
    """FLOP/s of a large product on all devices, by library; PyTorch's on CPU if it is installed."""
    torch = torch_peak() if jax.default_backend() == "cpu" else None
    peaks = {"jax": matmul_peak(dtype) * jax.device_count()}
    if torch:
        peaks["torch"] = torch
    return peaks


def input_rate(model: str, batches: int) -> dict[str, Any]:
    """Clips per second that the quick start's pipeline draws and encodes for the model's latent
    shape."""
    text = SHAPES[model][0]
    frames, rows, columns = (int(size) for size in text.split("x"))
    stride, patch, batch = 2, 4, BATCHES[text]
    sizes = dict(num_frames=1 + (frames - 1) * stride, height=rows * patch, width=columns * patch)
    source = Shapes(seed=0, length=1000, split="train", bounce=True)
    clips = [
        source.read(i, np.random.default_rng(i), ClipShape(**sizes))["video"][None]
        for i in range(40)
    ]
    tokenizer = PCATokenizer.fit(iter(clips), patch=patch, temporal_stride=stride, channels=16)
    inputs = TrainingInputs(
        source=source, tokenizer=tokenizer, text_encoder=HashedTextEncoder(32, 64), threads=2
    )
    row = dict(name="input", batch_size=batch, steps=20 * batches + 1, learning_rate=1.0, **sizes)
    stream = training_batches(0, 0, Curriculum.from_rows([row]).stages[0], inputs, 0)
    jax.block_until_ready(next(stream))
    start = time.perf_counter()
    for _ in range(20 * batches):
        jax.block_until_ready(next(stream))
    seconds = time.perf_counter() - start
    stream.close()
    return {"model": model, "clip": sizes, "clips_per_second": 20 * batches * batch / seconds}


def describe(row: dict[str, Any], peak: float) -> str:
    """A line of the table."""
    form = row["supervise"] + (", truncated" if row["truncate"] else "")
    shape = "x".join(map(str, row["shape"]))
    return (
        f"{row['model']:6s} {shape:10s} {row['batch']:5d} {form:22s} {row['multiplier']:5d} "
        f"{row['remat']:6s}{row['step_seconds']:9.3f} {row['best_step_seconds']:9.3f} "
        f"{row['seconds_per_supervised_frame']:9.4f}{row['tokens_per_second']:10.0f} "
        f"{row['flops'] / 1e9:9.0f} {row['flops_per_second'] / 1e9:9.0f}"
        f"{100 * row['flops_per_second'] / peak:7.0f} %{row['compile_seconds']:9.1f}"
        f"{row['planned_bytes'] / 2**30:8.2f}"
    )


HEADER = (
    f"{'model':6s} {'T x H x W':10s} {'batch':>5s} {'supervise':22s} {'draws':>5s} {'remat':6s}"
    f"{'step s':>9s} {'best':>9s} {'s/frame':>9s}{'tokens/s':>10s} {'GFLOP':>9s} {'GFLOP/s':>9s}"
    f"{'of peak':>9s}{'compile':>9s}{'GiB':>8s}"
)


def print_report(report: dict[str, Any], peak: float) -> None:
    """The table, with the shares of the better of both peaks."""
    devices = f"{report['devices']} x {report['device']}, {report['dtype']}, jax {report['jax']}"
    print(f"\n{devices}, load average {report['load'][0]:.1f}")
    for when, found in zip(("before", "after"), report["matmul_flops_per_second"], strict=True):
        print(
            f"matmul peak {when}: "
            + ", ".join(f"{name} {rate / 1e9:.0f} GFLOP/s" for name, rate in found.items())
        )
    print(HEADER)
    for row in report["steps"]:
        print(describe(row, peak))
    for row in report["input"]:
        size = "{num_frames} x {height} x {width}".format(**row["clip"])
        print(f"input pipeline, clips of {size}: {row['clips_per_second']:.0f} clips/s")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", action="append", choices=[*MODELS], help="repeat for more")
    add("--shape", help="T x H x W of the tokens, such as 7x30x48")
    add("--batch", type=int, help="clips in a batch")
    add("--supervise", action="append", choices=("one_frame", "all_frames"))
    add(
        "--truncate",
        action="append",
        type=int,
        choices=(0, 1),
        help="cut clips after their one supervised frame",
    )
    add(
        "--multiplier",
        action="append",
        type=int,
        help="(time, noise) draws of the head for each token",
    )
    add("--dtype", choices=("float32", "bfloat16"), help="float32 on CPU, else bfloat16")
    add("--remat", choices=("none", "full", "dots"), help="none on CPU, else full")
    add("--unroll", type=int, help="layers unrolled in the loop over layers; all on CPU, else 1")
    add("--fsdp", type=int, default=1, help="devices that the parameters are spread over")
    add("--steps", type=int, default=5, help="timed steps of each length")
    add("--out", help="JSON file to write")
    return parser.parse_args()


def _choose_for_device(args: argparse.Namespace) -> None:
    """Fills in what the flags leave open."""
    cpu = jax.default_backend() == "cpu"
    args.dtype = args.dtype or ("float32" if cpu else "bfloat16")
    args.remat = args.remat or ("none" if cpu else "full")
    args.unroll = args.unroll or (100 if cpu else 1)
    args.model = args.model or (["tiny", "small"] if cpu else ["1p4b"])
    args.supervise = args.supervise or ["one_frame", "all_frames"]
    args.truncate = [bool(value) for value in args.truncate or (0, 1)]
    args.multiplier = args.multiplier or [4]


if __name__ == "__main__":
    main()
