"""How fast latent frames are drawn, where the time goes, and how far it is from what the device
allows.

    python -m benchmarks.decode                                      tiny on CPU, 1p4b on an
    accelerator python -m benchmarks.decode --model=small --frames=4 --window=0
    python -m benchmarks.decode --model=runs/quickstart --preset=fast
    python -m benchmarks.decode --model=1p4b --head=flow --head_steps=25 --dtype=bfloat16

Draws a video frame by frame with the full cache, and again with a window over it; seconds are those
of the second run (the first compiles). The shares come from programs in which a part is left out,
run in turn with the whole one; the floor is told in `decode_floor`. Prints tables and writes them
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
from videomar_jax.sampling import decoder
from videomar_jax.sampling import frame as frame_module
from videomar_jax.sampling.config import SamplingConfig, with_preset
from videomar_jax.sampling.memory import cache_bytes, request_bytes
from videomar_jax.sampling.precision import for_sampling
from videomar_jax.sampling.reveal import SpeedOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A model, a size and how it is sampled."""

    name: str
    model: VideoMAR
    grid: tuple[int, int]
    sampling: SamplingConfig
    batch: int
    levers: SpeedOptions | None

    def video(self, num_frames: int, given: int = 1, **changes: Any) -> decoder.Video:
        """A request for random images and texts."""
        config, size = self.model.config, self.model.config.patch_size
        keys = jax.random.split(jax.random.key(0), 3)
        shape = (
            self.batch,
            given,
            self.grid[0] * size,
            self.grid[1] * size,
            config.latent_channels,
        )
        text = jax.random.normal(keys[1], (self.batch, config.text_tokens, config.text_width))
        return decoder.prepare(
            self.model,
            jax.random.normal(keys[0], shape),
            text,
            jnp.ones(text.shape[:2], bool),
            num_frames=num_frames,
            config=dataclasses.replace(self.sampling, **changes),
            keys=jax.random.split(keys[2], self.batch),
            levers=self.levers,
        )


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
        f"\n{whole['device']}, load {whole['load'][0]:.1f}; {best['flops'] / 1e9:.0f} GFLOP/s {args.dtype}, "
        f"{best['bytes'] / 1e9:.0f} GB/s"
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
    levers = {
        "auto": None,
        "plain": SpeedOptions.plain(),
        "all": SpeedOptions(),
        "apart": SpeedOptions(apart=True),
    }[args.levers]
    sampling = dataclasses.replace(sampling, **asked)
    return Case(
        name=name,
        model=for_sampling(model, sampling),
        grid=tuple(args.grid or grid),
        sampling=sampling,
        batch=args.batch,
        levers=levers,
    )


# ---------------------------------------------------------------- frame by frame


def run(case: Case, num_frames: int, repeats: int, **changes: Any) -> dict[str, Any]:
    """Seconds of every frame, the least of `repeats` videos; memory as planned by the compiler and
    as predicted."""
    compile_seconds, times = 0.0, []
    for attempt in range(repeats + 1):
        video = case.video(num_frames, **changes)
        jax.block_until_ready(video.state)
        state, seconds = video.state, []
        video = video._replace(state=None)
        for i, number in enumerate(video.settings.number):
            settings = jax.tree.map(lambda x, i=i: x[i], video.settings)
            start = time.perf_counter()
            state, latents, _ = decoder.one_frame(
                video.model,
                video.decoder,
                state,
                settings,
                None,
                video.scale,
                video.program_of(int(number)),
            )
            jax.block_until_ready(latents)
            seconds.append(time.perf_counter() - start)
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


# ---------------------------------------------------------------- parts left out


def shares(case: Case, seen: int, repeats: int) -> dict[str, float]:
    """Seconds of a frame after `seen` others, whole and without parts, and the shares that
    follow."""
    without_head, without_transformer = (
        mock.patch.object(frame_module, name, stand_in)
        for name, stand_in in (("_drawing", _no_drawing), ("_backbone", _no_backbone))
    )
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
        "overhead and the pass that remembers": rest,
    }
    return {
        "seconds": best,
        "median": {name: statistics.median(seconds) for name, seconds in times.items()},
        "shares": {name: seconds / whole for name, seconds in parts.items()},
    }


def lone_frame(case: Case, seen: int, *patches: Any) -> Callable[[], Any]:
    """Draws one frame after `seen` given ones, compiled with the patches in force."""
    video = case.video(seen + 1, given=seen)
    settings = jax.tree.map(lambda x: x[0], video.settings)
    program = video.program_of(seen)
    with contextlib.ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        traced = jax.jit(lambda *arrays: decoder.next_frame(*arrays, program))
        arrays = (video.model, video.decoder, video.state, settings, None, video.scale)
        compiled = traced.lower(*arrays).compile()
    jax.block_until_ready(compiled(*arrays))
    return lambda: jax.block_until_ready(compiled(*arrays))


def _no_drawing(model, head, head_plan, settings, program, batch, size, guided):
    """Tokens that depend on z, without a head."""
    return lambda z, noise, injected, step: (
        noise + z[:batch, :, : noise.shape[2]] + z[-batch:, :, : noise.shape[2]]
    )


def _no_backbone(model, context, seen, settings, program, scale, batch, guided):
    """z that depends on the tokens, without a transformer."""
    rows = 2 if True in program.branches else 1
    wide = -(-model.config.width // model.config.token_dim)

    def z_of(tokens, hidden, chosen):
        z = jnp.take_along_axis(tokens, chosen[..., None], axis=1, mode="clip")
        return None, jnp.tile(z, (rows, 1, wide))[..., : model.config.width]

    return z_of


# ---------------------------------------------------------------- what is told


def described(case: Case) -> dict[str, Any]:
    return {
        "model": case.name,
        "config": case.model.config.to_dict(),
        "grid": list(case.grid),
        "batch": case.batch,
        "sampling": dataclasses.asdict(case.sampling),
        "levers": None if case.levers is None else dataclasses.asdict(case.levers),
    }


def show(report: dict[str, Any]) -> None:
    sampling = report["sampling"]
    print(
        f"\n{report['model']}: batch {report['batch']}, {report['grid'][0]}x{report['grid'][1]} tokens, "
        f"{sampling['steps']} x {sampling['head_steps']} steps, {report['config']['head']} head, guidance "
        f"{sampling['guidance']}, {report['config']['dtype']}"
    )
    for way, found in report.items():
        if isinstance(found, dict) and "frames" in found:
            print(
                f"  {way} cache; first run {found['first_run_seconds']:.1f} s, predicted memory "
                f"{found['predicted_bytes'] / 2**20:.0f} MiB"
            )
            print("  frame   sees    seconds   cache MiB   over the floor")
            for row in found["frames"]:
                size, over = row["cache_bytes"] / 2**20, row["over_floor"]
                print(
                    f"  {row['frame']:5d}  {row['seen']:5d}  {row['seconds']:9.3f}  {size:10.1f}  {over:8.2f}"
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
    add("--levers", choices=("auto", "plain", "all", "apart"), default="auto")
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
