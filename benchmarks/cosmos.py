"""Time and memory of the Cosmos tokenizer at full size, with random weights.

    python -m benchmarks.cosmos             CV8x16x16, 9 x 256 x 256, float32
    python -m benchmarks.cosmos --memory    also the memory to decode 25 and 121 frames

Prints one table and writes the same numbers to runs/benchmarks/cosmos.json (--out). If PyTorch and
diffusers are installed, diffusers' AutoencoderKLCosmos runs the same weights on the same clip,
alternating with ours, and the outputs are compared.
"""

import argparse
import importlib.util
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from videomar_jax.interop.formats.rules import expected, exported
from videomar_jax.tokenizers import latent_shape
from videomar_jax.tokenizers.cosmos.config import RELEASES, CosmosConfig
from videomar_jax.tokenizers.cosmos.rules import cosmos_rules, parameter_shapes
from videomar_jax.tokenizers.cosmos.tokenizer import CosmosTokenizer


class Codec(NamedTuple):
    """An implementation: functions that return when they have finished."""

    encode: Callable[[Any], Any]
    decode: Callable[[Any], Any]


_encode = jax.jit(CosmosTokenizer.encode)
_decode = jax.jit(CosmosTokenizer.decode)


def main() -> None:
    args = _arguments()
    config = CosmosConfig.release(args.release)
    chunk = args.chunk if args.chunk > 0 else None
    tokenizer = CosmosTokenizer.random(config, scale=1.0, dtype=args.dtype, chunk=chunk)
    ours = Codec(
        lambda x: _encode(tokenizer, x).block_until_ready(),
        lambda z: _decode(tokenizer, z).block_until_ready(),
    )
    codecs = {"videomar_jax": ours}
    installed = importlib.util.find_spec("torch") and importlib.util.find_spec("diffusers")
    if installed and args.dtype == "float32":
        codecs["diffusers"] = diffusers_codec(tokenizer)
    else:
        print("PyTorch and diffusers are not both installed (or dtype is not float32): ours only.")
    shape = (1, args.frames, args.size, args.size, 3)
    clip = np.random.default_rng(1).uniform(-1, 1, shape).astype(np.float32)
    results = compare(codecs, clip, args.repeats)
    memory = {}
    if args.memory:
        for frames in (25, 121):
            memory[str(frames)] = decode_memory(tokenizer, frames, args.size)
    report(results, memory, args)


def compare(codecs: dict[str, Codec], clip: np.ndarray, repeats: int) -> dict[str, Any]:
    """For each implementation, the seconds of encode and decode (they alternate), and how far its
    latents and pixels are from ours."""
    # The first call compiles, and is not timed.
    latents = {name: np.asarray(codec.encode(clip)) for name, codec in codecs.items()}
    ours = latents["videomar_jax"]
    pixels = {name: np.asarray(codec.decode(ours)) for name, codec in codecs.items()}
    seconds = {name: {"encode": [], "decode": []} for name in codecs}
    for _ in range(repeats):
        for name, codec in codecs.items():
            seconds[name]["encode"].append(_seconds(codec.encode, clip))
            seconds[name]["decode"].append(_seconds(codec.decode, ours))
    results = {}
    for name, parts in seconds.items():
        result: dict[str, Any] = {}
        for part, times in parts.items():
            result[part] = {"best": min(times), "median": statistics.median(times)}
        apart = [latents[name] - ours, pixels[name] - pixels["videomar_jax"]]
        result["difference"] = [float(np.abs(difference).max()) for difference in apart]
        results[name] = result
    return results


def _seconds(function: Callable[[Any], Any], given: Any) -> float:
    start = time.perf_counter()
    function(given)
    return time.perf_counter() - start


def diffusers_codec(tokenizer: CosmosTokenizer) -> Codec:
    """The same network in diffusers, on arrays in our layout."""
    import torch
    from diffusers import AutoencoderKLCosmos

    torch.set_num_threads(os.cpu_count() or 1)
    config = tokenizer.config
    # diffusers' encoder list begins with the first convolution; its decoder list ends with the
    # middle, which is as wide as the last level.
    encoder = [config.width * mult for mult in config.encoder_mults]
    decoder = [config.width * mult for mult in (*config.decoder_mults, config.decoder_mults[-1])]
    model = AutoencoderKLCosmos(
        encoder_block_out_channels=(config.width, *encoder),
        decode_block_out_channels=tuple(decoder),
        num_layers=config.blocks,
        patch_size=config.patch,
        resolution=config.resolution,
        spatial_compression_ratio=config.spatial_stride,
        temporal_compression_ratio=config.temporal_stride,
        attention_resolutions=config.attention_resolutions,
        latent_channels=config.latent_channels,
    ).eval()
    slots = expected(cosmos_rules(config, diffusers=True), parameter_shapes(config))
    leaves = {}
    for path, leaf in jax.tree.leaves_with_path(tokenizer.params):
        leaves["/".join(str(entry.key) for entry in path)] = leaf
    specs, make = exported(slots, leaves)
    model.load_state_dict({key: torch.tensor(np.array(make(key))) for key in specs}, strict=True)

    def channels_first(x: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1)))

    @torch.inference_mode()
    def encode(clip: np.ndarray) -> np.ndarray:
        return model.encode(channels_first(clip)).latent_dist.mode().movedim(1, -1).numpy()

    @torch.inference_mode()
    def decode(latents: np.ndarray) -> np.ndarray:
        return model.decode(channels_first(latents)).sample.movedim(1, -1).numpy()

    return Codec(encode, decode)


def decode_memory(tokenizer: CosmosTokenizer, frames: int, size: int) -> dict[str, int]:
    """Bytes of one compiled decode, as the compiler planned them; nothing is run."""
    shape = (1, *latent_shape(tokenizer, frames, size, size), tokenizer.channels)
    latents = jax.ShapeDtypeStruct(shape, jnp.float32)
    plan = _decode.lower(tokenizer, latents).compile().memory_analysis()
    parts = {
        "argument": plan.argument_size_in_bytes,
        "output": plan.output_size_in_bytes,
        "temp": plan.temp_size_in_bytes,
    }
    return parts | {"total": sum(parts.values()) - plan.alias_size_in_bytes}


def report(
    results: dict[str, Any], memory: dict[str, dict[str, int]], args: argparse.Namespace
) -> None:
    """Prints the table and writes the same numbers as JSON."""
    print(
        f"{args.release}, {args.frames} x {args.size} x {args.size}, {args.dtype}, "
        f"chunk {args.chunk}; best (median) of {args.repeats}, seconds; "
        f"load average {os.getloadavg()[0]:.1f}"
    )
    print(f"{'':14s}{'encode':>18s}{'decode':>18s}{'both':>8s}   difference in latents, pixels")
    for name, result in results.items():
        cells, both = "", 0.0
        for part in ("encode", "decode"):
            best, median = result[part]["best"], result[part]["median"]
            cells += f"{f'{best:.2f} ({median:.2f})':>18s}"
            both += best
        apart = ", ".join(f"{value:.1e}" for value in result["difference"])
        print(f"{name:14s}{cells}{both:8.2f}   {apart}")
    for frames, parts in memory.items():
        sizes = [f"{part} {size / 2**20:.0f} MiB" for part, size in parts.items()]
        print(f"decode of {frames} frames: {', '.join(sizes)}")
    if memory:
        print(f"ratio of the totals {memory['121']['total'] / memory['25']['total']:.2f}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    settings = vars(args) | {"out": str(args.out)}
    numbers = {"settings": settings, "seconds": results, "decode_memory": memory}
    args.out.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--release", default="CV8x16x16", choices=list(RELEASES))
    parser.add_argument("--frames", type=int, default=9)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--chunk", type=int, default=2, help="latent frames at a time; 0 for the whole clip"
    )
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/cosmos.json"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
