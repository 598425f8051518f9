"""The I3D network of FVD beside the same network in PyTorch: how far apart, and how fast.

    python -m benchmarks.i3d --i3d=i3d-kinetics-400.ckpt --python=TORCH/bin/python

Random clips go through `evaluation.i3d` here and through `benchmarks/torch_i3d.py` in an
interpreter that has PyTorch, in turns and with the same weights, clips and batch size. Prints the
largest difference of a feature and the ratio of the times (the fastest pass of each), and writes
JSON. A difference above 1e-4 of the features' spread is an error.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.measuring import argument_parser, run_command, write_report
from videomar_jax.checks import UserError, at_least
from videomar_jax.evaluation.i3d import I3D
from videomar_jax.evaluation.i3d_weights import LAYOUTS, load_i3d
from videomar_jax.interop.formats.rules import expected, exported, flat
from videomar_jax.io.paths import user_path

LARGEST = 1e-4
BATCH = 4


def torch_state(params: Any) -> dict[str, np.ndarray]:
    """Our parameters as the state dict of PyTorch; the gains of the norms are ones."""
    leaves = {path: np.asarray(leaf) for path, leaf in flat(params).items()}
    shapes = {path: leaf.shape for path, leaf in leaves.items()}
    specs, make = exported(expected(LAYOUTS["pytorch"].rules, shapes), leaves)
    state = {name: np.ascontiguousarray(make(name)) for name in specs}
    for name in list(state):
        if name.endswith(".bn.bias"):
            state[f"{name.removesuffix('bias')}weight"] = np.ones_like(state[name])
    return state


def compare(params: Any, clips: np.ndarray, python: str, passes: int) -> dict[str, Any]:
    """The differences and the seconds of both.

    Raises:
        UserError: the other interpreter fails, such as for want of PyTorch.
    """
    network = I3D(params=params, batch_size=BATCH)
    network.features(clips[:BATCH])  # compiles
    ours: list[float] = []
    theirs: list[float] = []
    found, other = np.zeros(0), {}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        np.savez(place / "weights.npz", **torch_state(params))
        np.save(place / "clips.npy", clips)
        for _ in range(passes):
            start = time.perf_counter()
            found = network.features(clips)
            ours.append(time.perf_counter() - start)
            other = _in_torch(python, place)
            theirs += other["seconds"].tolist()
    difference = float(np.abs(found - other["features"]).max())
    return {
        "clips": list(clips.shape),
        "largest_difference": difference,
        "spread": float(other["features"].std()),
        "seconds": {"jax": ours, "torch": theirs},
        "ratio": min(theirs) / min(ours),
        "versions": {"jax": jax.__version__, "torch": str(other["versions"][0])},
        "torch_threads": int(other["versions"][1]),
        "device": jax.devices()[0].device_kind,
    }


def _in_torch(python: str, place: Path) -> dict[str, np.ndarray]:
    script = Path(__file__).with_name("torch_i3d.py")
    files = [str(place / name) for name in ("weights.npz", "clips.npy", "features.npz")]
    done = subprocess.run([python, str(script), *files], capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{python} did not run PyTorch's network:\n{done.stderr[-2000:]}")
    with np.load(files[-1]) as arrays:
        return dict(arrays)


def main(words: Sequence[str] | None = None) -> None:
    args = _arguments(words)
    at_least("--clips", args.clips, 1)
    at_least("--passes", args.passes, 1)
    params = load_i3d(user_path(args.i3d, "--i3d"))
    rng = np.random.default_rng(0)
    clips = rng.integers(0, 256, (args.clips, 16, 64, 64, 3), dtype=np.uint8)
    report = compare(params, clips, args.python, args.passes)
    print("| largest difference | spread of the features | s a clip, JAX | s a clip, PyTorch |")
    print("|---|---|---|---|")
    best = [min(report["seconds"][name]) / args.clips for name in ("jax", "torch")]
    print(
        f"| {report['largest_difference']:.1e} | {report['spread']:.2f} | {best[0]:.3f} | "
        f"{best[1]:.3f} |"
    )
    print(f"JAX is {report['ratio']:.2f} times as fast as PyTorch {report['versions']['torch']}.")
    write_report(report, args.out, "i3d")
    if not report["largest_difference"] <= LARGEST * max(1.0, report["spread"]):
        raise UserError(f"The features differ by {report['largest_difference']:.1e}.")


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argument_parser(__doc__)
    parser.add_argument("--i3d", required=True, help="the network's weights")
    parser.add_argument("--python", default=sys.executable, help="an interpreter with PyTorch")
    parser.add_argument("--clips", type=int, default=8, help="clips of 16 frames of 64x64")
    parser.add_argument("--passes", type=int, default=2, help="passes of each, in turns")
    parser.add_argument("--out", help="the JSON file")
    return parser.parse_args(words)


if __name__ == "__main__":
    run_command(main)
