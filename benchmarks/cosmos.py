"""Time and memory of the Cosmos tokenizer at full size, with random weights.

    python -m benchmarks.cosmos                             CV8x16x16, 9 x 256 x 256, float32
    python -m benchmarks.cosmos --memory                    also what a decode of 25 and of 121
    frames needs

Prints one table and writes the same numbers to runs/benchmarks/cosmos.json (--out). Where PyTorch
and diffusers are installed, diffusers' AutoencoderKLCosmos runs the same weights on the same clip
in turn with ours, and both outputs are compared.
"""

import argparse
import importlib.util
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from videomar_jax.interop.formats.rules import expected, exported
from videomar_jax.tokenizers.cosmos.config import RELEASES, CosmosConfig
from videomar_jax.tokenizers.cosmos.rules import cosmos_rules, parameter_shapes
from videomar_jax.tokenizers.cosmos.tokenizer import CosmosTokenizer

Codec = tuple[Callable[[Any], Any], Callable[[Any], Any]]

_encode = jax.jit(CosmosTokenizer.encode)
_decode = jax.jit(CosmosTokenizer.decode)


def main() -> None:
    args = _arguments()
    config = CosmosConfig.release(args.release)
    chunk = args.chunk if args.chunk > 0 else None
    tokenizer = CosmosTokenizer.random(config, scale=1.0, dtype=args.dtype, chunk=chunk)
    codecs = {
        "videomar_jax": (
            lambda x: _encode(tokenizer, x).block_until_ready(),
            lambda z: _decode(tokenizer, z).block_until_ready(),
        )
    }
    if (
        importlib.util.find_spec("torch")
        and importlib.util.find_spec("diffusers")
        and args.dtype == "float32"
    ):
        codecs["diffusers"] = diffusers_codec(tokenizer)
    else:
        print("PyTorch and diffusers are not both here (or dtype is not float32): ours only.")
    clip = (
        np.random.default_rng(1)
        .uniform(-1, 1, (1, args.frames, args.size, args.size, 3))
        .astype(np.float32)
    )
    results = compare(codecs, clip, args.repeats)
    if args.memory:
        results["memory"] = {
            str(frames): decode_memory(tokenizer, frames, args.size) for frames in (25, 121)
        }
    report(results, args)


def compare(codecs: dict[str, Codec], clip: np.ndarray, repeats: int) -> dict[str, Any]:
    """Seconds of encode and decode, the implementations taking turns, and how far their outputs lie
    apart."""
    first = {name: (encode(clip), None) for name, (encode, _) in codecs.items()}
    latents = np.asarray(first["videomar_jax"][0])
    outputs = {
        name: (np.asarray(first[name][0]), np.asarray(decode(latents)))
        for name, (_, decode) in codecs.items()
    }
    times: dict[str, dict[str, list[float]]] = {
        name: {"encode": [], "decode": []} for name in codecs
    }
    for _ in range(repeats):
        for name, (encode, decode) in codecs.items():
            for part, function, given in (("encode", encode, clip), ("decode", decode, latents)):
                start = time.perf_counter()
                function(given)
                times[name][part].append(time.perf_counter() - start)
    ours = outputs["videomar_jax"]
    return {
        name: {part: {"best": min(t), "median": statistics.median(t)} for part, t in parts.items()}
        | {
            "difference": [
                float(np.abs(a - b).max()) for a, b in zip(outputs[name], ours, strict=True)
            ]
        }
        for name, parts in times.items()
    }


def diffusers_codec(tokenizer: CosmosTokenizer) -> Codec:
    """The same network in diffusers, on arrays in our layout."""
    import torch
    from diffusers import AutoencoderKLCosmos

    torch.set_num_threads(os.cpu_count() or 1)
    config = tokenizer.config
    widths = [
        [mults[0], *mults[1:], mults[-1]] for mults in (config.encoder_mults, config.decoder_mults)
    ]
    encoder, decoder = ([config.width * mult for mult in mults] for mults in widths)
    model = AutoencoderKLCosmos(
        encoder_block_out_channels=(config.width, *encoder[:-1]),
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
    leaves = {
        "/".join(str(k.key) for k in path): leaf
        for path, leaf in jax.tree.leaves_with_path(tokenizer.params)
    }
    specs, make = exported(slots, leaves)
    model.load_state_dict({key: torch.tensor(np.array(make(key))) for key in specs}, strict=True)

    def run(function: Callable, x: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return (
                function(torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1))))
                .movedim(1, -1)
                .numpy()
            )

    encode = lambda x: run(lambda x: model.encode(x).latent_dist.mode(), x)  # noqa: E731
    decode = lambda z: run(lambda z: model.decode(z).sample, z)  # noqa: E731
    return encode, decode


def decode_memory(tokenizer: CosmosTokenizer, frames: int, size: int) -> dict[str, int]:
    """Bytes of one compiled decode, as the compiler planned them; nothing is run."""
    side, latent_frames = (
        size // tokenizer.spatial_stride,
        1 + (frames - 1) // tokenizer.temporal_stride,
    )
    latents = jax.ShapeDtypeStruct((1, latent_frames, side, side, tokenizer.channels), jnp.float32)
    plan = _decode.lower(tokenizer, latents).compile().memory_analysis()
    parts = {
        part: getattr(plan, f"{part}_size_in_bytes") for part in ("argument", "output", "temp")
    }
    return parts | {"total": sum(parts.values()) - plan.alias_size_in_bytes}


def report(results: dict[str, Any], args: argparse.Namespace) -> None:
    """The table, and the same numbers as JSON."""
    memory = results.pop("memory", {})
    print(
        f"{args.release}, {args.frames} x {args.size} x {args.size}, {args.dtype}, chunk {args.chunk}; "
        f"best (median) of {args.repeats}, seconds; load average {os.getloadavg()[0]:.1f}"
    )
    print(f"{'':14s}{'encode':>18s}{'decode':>18s}{'both':>8s}   difference in latents, pixels")
    for name, result in results.items():
        cells = [
            f"{result[part]['best']:.2f} ({result[part]['median']:.2f})"
            for part in ("encode", "decode")
        ]
        both = sum(result[part]["best"] for part in ("encode", "decode"))
        apart = ", ".join(f"{value:.1e}" for value in result["difference"])
        print(f"{name:14s}{cells[0]:>18s}{cells[1]:>18s}{both:8.2f}   {apart}")
    for frames, parts in memory.items():
        print(
            f"decode of {frames} frames: "
            + ", ".join(f"{part} {size / 2**20:.0f} MiB" for part, size in parts.items())
        )
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
