"""How fast latent frames are drawn, where the time goes, and how far it is from the device's peak.

    python -m benchmarks.decode                     tiny on a CPU, 1p4b on an accelerator
    python -m benchmarks.decode --model=small --frames=4 --window=0
    python -m benchmarks.decode --model=runs/quickstart --preset=fast
    python -m benchmarks.decode --model=1p4b --head=flow --head_steps=25 --dtype=bfloat16

Draws a video frame by frame with the full cache, and again with a window over it; seconds are those
of the second run (the first compiles). The shares come from programs in which a part is left out,
run in turn with the whole one; `decode_floor` says what the floor is. Prints tables and writes them
as JSON.
"""

import argparse
import contextlib
import dataclasses
import os
import statistics
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
from flax import nnx

from benchmarks.decode_floor import device_peaks, floor_seconds
from benchmarks.measuring import torch_peak, write_report
from videomar_jax.models import attention
from videomar_jax.models.config import PRESETS, ModelConfig
from videomar_jax.models.videomar import VideoMAR
from videomar_jax.sampling import reveal
from videomar_jax.sampling.config import SamplingConfig, with_preset
from videomar_jax.sampling.decoder import DecodeState, decode_frame
from videomar_jax.sampling.generate import GenerationPlan, decode_frames, plan_generation, start
from videomar_jax.sampling.memory import cache_bytes, request_bytes
from videomar_jax.sampling.precision import for_sampling
from videomar_jax.sampling.reveal import FrameInputs, SharedInputs
from videomar_jax.sampling.speed import SpeedOptions, ceil_div


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A model, a size and how it is sampled."""

    name: str
    model: VideoMAR
    grid: tuple[int, int]
    sampling: SamplingConfig
    batch: int
    speed: SpeedOptions | None

    def start(
        self, num_frames: int, given: int = 1, **changes: Any
    ) -> tuple[GenerationPlan, SharedInputs, DecodeState]:
        """A request for random images and texts, up to its first new frame."""
        config, patch = self.model.config, self.model.config.patch_size
        keys = jax.random.split(jax.random.key(0), 3)
        height, width = self.grid[0] * patch, self.grid[1] * patch
        shape = (self.batch, given, height, width, config.latent_channels)
        latents = jax.random.normal(keys[0], shape)
        text = jax.random.normal(keys[1], (self.batch, config.text_tokens, config.text_width))
        plan = plan_generation(
            self.model,
            latents,
            num_frames=num_frames,
            config=dataclasses.replace(self.sampling, **changes),
            speed=self.speed,
        )
        samples = jax.random.split(keys[2], self.batch)
        shared, state = start(plan, latents, text, jnp.ones(text.shape[:2], bool), samples)
        return plan, shared, jax.block_until_ready(state)


SIZES = {
    "tiny": (
        dict(width=384, depth=6, num_heads=6, head_width=512, text_tokens=32, text_width=256),
        (8, 8),
        16,
        "25",
    ),
    "small": (
        dict(width=768, depth=12, num_heads=12, head_width=1024, text_tokens=64, text_width=256),
        (16, 16),
        32,
        "50",
    ),
    "1p4b": (PRESETS["videomar_1p4b"].to_dict(), (30, 48), 64, "100"),
}
"""Name → model fields, token grid, reveal steps, head steps."""


def main() -> None:
    args = _arguments()
    peaks = [device_peaks(args.dtype)]
    reports = []
    for name in args.model:
        case = open_case(name, args)
        report = {"full": run(case, args.frames, args.repeats, window=None, keep_first=True)}
        if args.window:
            report[f"window {args.window}"] = run(
                case, args.frames, args.repeats, window=args.window
            )
        report |= (
            {"shares": shares(case, min(3, args.frames - 1), args.repeats)} if args.shares else {}
        )
        peaks.append(device_peaks(args.dtype))
        best = {key: max(peak[key] for peak in peaks) for key in peaks[0]}
        for way in report.values():
            for row in way.get("frames", []):
                row["floor"] = floor_seconds(
                    case.model.config, case.sampling, case.grid, case.batch, row["seen"], best
                )
                row["over_floor"] = row["seconds"] / row["floor"]
        reports.append(described(case) | report)
        show(reports[-1])
    whole = {
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "jax": jax.__version__,
        "load": os.getloadavg(),
        "peaks": peaks,
        "torch": torch_peak(args.torch_python),
        "models": reports,
    }
    print(
        f"\n{whole['device']}, load {whole['load'][0]:.1f}; "
        f"{best['flops'] / 1e9:.0f} GFLOP/s {args.dtype}, {best['bytes'] / 1e9:.0f} GB/s"
        + (f"; PyTorch {whole['torch'] / 1e9:.0f} GFLOP/s" if whole["torch"] else "")
    )
    write_report(whole, args.out, "decode")


def open_case(name: str, args: argparse.Namespace) -> Case:
    """One of the known sizes with random weights, or a trained checkpoint."""
    if name in SIZES:
        fields, grid, steps, head_steps = SIZES[name]
        config = ModelConfig(
            **fields | dict(head=args.head or "ddpm", head_zero_init=False, dtype=args.dtype)
        )
        model = jax.jit(lambda: VideoMAR(config, rngs=nnx.Rngs(0)))()
        sampling = SamplingConfig(steps=steps, head_steps=head_steps)
    else:
        from videomar_jax.pretrained.bundle import (
            load_pretrained,  # late: it imports the tokenizers
        )

        loaded = load_pretrained(name)
        model, bundle = loaded.model, loaded.bundle
        sampling = dataclasses.replace(
            bundle.sampling, dtype=args.dtype
        )  # so that the peak is that of its products
        stride = bundle.tokenizer.spatial_stride * model.config.patch_size
        grid = (bundle.height // stride, bundle.width // stride)
    sampling = with_preset(sampling, args.preset, model.config.head) if args.preset else sampling
    asked = {
        key: getattr(args, key)
        for key in ("steps", "head_steps", "guidance")
        if getattr(args, key) is not None
    }
    speed = {
        "auto": None,
        "plain": SpeedOptions.plain(),
        "all": SpeedOptions(),
        "unstacked": SpeedOptions(unstack_layers=True),
    }[args.speed]
    sampling = dataclasses.replace(sampling, **asked)
    return Case(
        name=name,
        model=for_sampling(model, sampling),
        grid=tuple(args.grid or grid),
        sampling=sampling,
        batch=args.batch,
        speed=speed,
    )


# Frame by frame


def run(case: Case, num_frames: int, repeats: int, **changes: Any) -> dict[str, Any]:
    """Seconds of every frame, the least of `repeats` videos; memory as planned by the compiler and
    as predicted."""
    compile_seconds, times = 0.0, []
    for attempt in range(repeats + 1):
        frames = decode_frames(*case.start(num_frames, **changes))
        seconds = []
        for _ in range(1, num_frames):
            began = time.perf_counter()
            jax.block_until_ready(next(frames))
            seconds.append(time.perf_counter() - began)
        if attempt:
            times.append(seconds)
        else:
            compile_seconds = sum(seconds)
    config = dataclasses.replace(case.sampling, **changes)
    kept = min(num_frames - 1, config.window or num_frames)
    rows = [
        {
            "frame": number,
            "seen": min(number, kept),
            "seconds": min(each[number - 1] for each in times),
            "cache_bytes": cache_bytes(
                case.model.config,
                batch=case.batch,
                frames=min(number, kept),
                grid=case.grid,
                guided=config.guided,
            ),
        }
        for number in range(1, num_frames)
    ]
    needed = request_bytes(
        case.model.config, config, batch=case.batch, frames=num_frames, grid=case.grid
    )
    stats = jax.local_devices()[0].memory_stats() or {}
    return {
        "frames": rows,
        "first_run_seconds": compile_seconds,
        "predicted_bytes": sum(needed.values()),
        "predicted": needed,
        "peak_bytes": stats.get("peak_bytes_in_use"),
    }


# With parts left out


def shares(case: Case, seen: int, repeats: int) -> dict[str, float]:
    """Seconds of a frame after `seen` others, whole and without parts, and the shares that
    follow."""
    without_head = mock.patch.object(reveal, "drawer", _no_drawer)
    without_transformer = mock.patch.object(reveal, "predictor", _no_predictor)
    without_attention = mock.patch.object(attention, "cached", lambda q, k, v, **_: q)
    programs = {
        "whole": lone_frame(case, seen),
        "without head": lone_frame(case, seen, without_head),
        "without transformer": lone_frame(case, seen, without_transformer),
        "without head and self attention": lone_frame(case, seen, without_head, without_attention),
        "without both": lone_frame(case, seen, without_head, without_transformer),
    }
    times: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(repeats):
        for name, program in programs.items():
            start = time.perf_counter()
            program()
            times[name].append(time.perf_counter() - start)
    best = {name: min(seconds) for name, seconds in times.items()}
    whole, rest = best["whole"], best["without both"]
    attention_seconds = best["without head"] - best["without head and self attention"]
    parts = {
        "transformer but self attention": best["without head"] - rest - attention_seconds,
        "self attention": attention_seconds,
        "head": best["without transformer"] - rest,
        "overhead and the pass that commits a frame": rest,
    }
    return {
        "seconds": best,
        "median": {name: statistics.median(seconds) for name, seconds in times.items()},
        "shares": {name: seconds / whole for name, seconds in parts.items()},
    }


def lone_frame(case: Case, seen: int, *patches: Any) -> Callable[[], Any]:
    """Draws one frame after `seen` given ones, compiled with the patches in force."""
    plan, shared, state = case.start(seen + 1, given=seen)
    settings = jax.tree.map(lambda values: values[0], plan.settings)
    static = plan.static_config(seen)
    with contextlib.ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        # Nothing is donated: the program runs from the same state again and again.
        program = jax.jit(lambda *arrays: decode_frame(*arrays, None, static))
        arrays = (plan.model, shared, state, settings)
        compiled = program.lower(*arrays).compile()
    jax.block_until_ready(compiled(*arrays))
    return lambda: jax.block_until_ready(compiled(*arrays))


def _no_drawer(inputs: FrameInputs, guided: bool, bucket: int) -> Callable:
    """Tokens that depend on z, without a head."""
    batch = inputs.batch

    def draw(z, noise, step_noise, step, prior):
        width = noise.shape[2]
        return noise + z[:batch, :, :width] + z[-batch:, :, :width]

    return draw


def _no_predictor(inputs: FrameInputs, guided: bool, hint: Any = None) -> Callable:
    """z that depends on the tokens, without a transformer."""
    config = inputs.model.config
    copies = 2 if True in inputs.static.branches else 1
    repeats = ceil_div(config.width, config.token_dim)

    def predict(tokens, hidden, chosen):
        z = jnp.take_along_axis(tokens, chosen[..., None], axis=1, mode="clip")
        return None, jnp.tile(z, (copies, 1, repeats))[..., : config.width]

    return predict


# Reports


def described(case: Case) -> dict[str, Any]:
    return {
        "model": case.name,
        "config": case.model.config.to_dict(),
        "grid": list(case.grid),
        "batch": case.batch,
        "sampling": dataclasses.asdict(case.sampling),
        "speed": None if case.speed is None else dataclasses.asdict(case.speed),
    }


def show(report: dict[str, Any]) -> None:
    sampling, config = report["sampling"], report["config"]
    rows, columns = report["grid"]
    print(
        f"\n{report['model']}: batch {report['batch']}, {rows}x{columns} tokens, "
        f"{sampling['steps']} x {sampling['head_steps']} steps, {config['head']} head, "
        f"guidance {sampling['guidance']}, {config['dtype']}"
    )
    for way, found in report.items():
        if isinstance(found, dict) and "frames" in found:
            print(
                f"  {way} cache; first run {found['first_run_seconds']:.1f} s, predicted memory "
                f"{found['predicted_bytes'] / 2**20:.0f} MiB"
            )
            print("  frame   sees    seconds   cache MiB   over the floor")
            for row in found["frames"]:
                size = row["cache_bytes"] / 2**20
                print(
                    f"  {row['frame']:5d}  {row['seen']:5d}  {row['seconds']:9.3f}  "
                    f"{size:10.1f}  {row['over_floor']:8.2f}"
                )
    for name, share in report.get("shares", {}).get("shares", {}).items():
        print(f"  {share:6.1%}  {name}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--model",
        action="append",
        help="tiny, small, 1p4b or the folder of a checkpoint; repeat for more",
    )
    add("--frames", type=int, default=16, help="latent frames, the given one included")
    add("--window", type=int, default=4, help="frames kept in the second run; 0 leaves it out")
    add("--batch", type=int, default=1)
    add("--grid", type=int, nargs=2, help="token rows and columns")
    add("--steps", type=int)
    add("--head_steps")
    add("--guidance", type=float)
    add("--preset")
    add("--head", choices=("ddpm", "flow"), help="of the known sizes")
    add(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="of the products; float32 on CPU, else bfloat16",
    )
    add(
        "--speed",
        "--levers",  # its name in the version before
        choices=("auto", "plain", "all", "unstacked"),
        default="auto",
        help="speed options: what pays, none, all that pay somewhere, these with unstacked layers",
    )
    add("--repeats", type=int, default=2)
    add("--no-shares", dest="shares", action="store_false")
    add("--torch_python", help="an interpreter that has PyTorch, to measure its matmul beside ours")
    add("--out", help="JSON file to write")
    args = parser.parse_args()
    cpu = jax.default_backend() == "cpu"
    args.model = args.model or ["tiny" if cpu else "1p4b"]
    args.dtype = args.dtype or ("float32" if cpu else "bfloat16")
    if args.frames < 2 or args.repeats < 1:
        parser.error("--frames must be at least 2 and --repeats at least 1")
    return args


if __name__ == "__main__":
    main()
