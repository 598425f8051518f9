"""Writes a checkpoint with random values under the published names, to measure conversions without
the published weights.

    python -m benchmarks.synthetic_checkpoint --output=random_1p4b.safetensors
    python -m benchmarks.synthetic_checkpoint --output=random.pth --preset=tiny --container=ema

Tensors are drawn and written one after another: the 1.4B model (2.8 GB in bfloat16) needs memory
for one of them. Values are normal with standard deviation 0.02, and the weights of norms are 1, so
that a forward pass stays finite.
"""

import dataclasses
import time
import zlib
from pathlib import Path

import ml_dtypes
import numpy as np
from absl import app, flags

from videomar_jax.interop.formats.files import TensorSpec, write_tensors
from videomar_jax.interop.formats.rules import Slot, expected
from videomar_jax.interop.videomar import parameter_shapes
from videomar_jax.interop.videomar_rules import RULES
from videomar_jax.models.config import PRESETS

_OUTPUT = flags.DEFINE_string("output", None, "the file to write", required=True)
_PRESET = flags.DEFINE_enum("preset", "videomar_1p4b", list(PRESETS), "the sizes of the model")
_FORMAT = flags.DEFINE_enum(
    "format", None, ["safetensors", "pth"], "the format; by default the ending of --output"
)
_CONTAINER = flags.DEFINE_enum(
    "container", "bare", ["bare", "ema"], "a bare state dict, or one under model_ema"
)
_DTYPE = flags.DEFINE_enum("dtype", "bfloat16", ["bfloat16", "float32"], "the stored type")
_SEED = flags.DEFINE_integer("seed", 0, "the seed; a tensor depends on it and on its name")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "replace a file of this name")


def random_tensor(name: str, slot: Slot, dtype: np.dtype, seed: int) -> np.ndarray:
    """One tensor of the file."""
    if slot.rule.ours.endswith("/scale"):
        return np.ones(slot.shape, dtype)
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    values = rng.standard_normal(slot.shape, np.float32)
    values *= 0.02
    return values.astype(dtype)


def main(_) -> None:
    config = dataclasses.replace(PRESETS[_PRESET.value], pooled_text=False, regression=False)
    slots = expected(RULES, parameter_shapes(config))
    dtype = np.dtype(ml_dtypes.bfloat16 if _DTYPE.value == "bfloat16" else np.float32)
    specs = {name: TensorSpec(slot.shape, dtype) for name, slot in slots.items()}
    path = Path(_OUTPUT.value)
    if _FORMAT.value is not None and path.suffix != f".{_FORMAT.value}":
        raise app.UsageError(f"--output {path} does not end in .{_FORMAT.value}")
    start = time.perf_counter()
    write_tensors(
        path,
        specs,
        lambda name: random_tensor(name, slots[name], dtype, _SEED.value),
        container="model_ema" if _CONTAINER.value == "ema" else None,
        overwrite=_OVERWRITE.value,
    )
    count = sum(spec.count for spec in specs.values())
    seconds = time.perf_counter() - start
    print(
        f"{path}: {count:,} values in {len(specs)} tensors, "
        f"{path.stat().st_size / 1e9:.2f} GB, {seconds:.1f} s"
    )


if __name__ == "__main__":
    app.run(main)
