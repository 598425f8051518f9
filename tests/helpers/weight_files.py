"""Small files of weights in every format."""

import json
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np

from videomar_jax.interop.formats.files import TensorSpec, write_tensors
from videomar_jax.interop.formats.torch_writer import _tensor, _text

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
TENSORS = {
    "a.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "a.bias": np.array([0.5, -1.25, 3.0], BFLOAT16),
    "steps": np.array(7, np.int64),
    "empty": np.zeros((0, 4), np.float32),
    "flags": np.array([True, False, True]),
}


def write(path: Path, tensors: dict[str, np.ndarray] = TENSORS, **options) -> Path:
    """A file with these tensors; its ending chooses the format."""
    specs = {name: TensorSpec(value.shape, value.dtype) for name, value in tensors.items()}
    write_tensors(path, specs, tensors.__getitem__, **options)
    return path


def write_shards(folder: Path) -> Path:
    """The same tensors in two files with an index."""
    names = list(TENSORS)
    parts = {"part-1.safetensors": names[:2], "part-2.safetensors": names[2:]}
    places = {}
    for part, members in parts.items():
        write(folder / part, {name: TENSORS[name] for name in members}, overwrite=True)
        places |= dict.fromkeys(members, part)
    index = {"metadata": {"total_size": 90}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder / "model.safetensors.index.json"


def write_archive(path: Path, program: bytes, storages: dict[str, bytes]) -> Path:
    """A zip file as PyTorch writes it, with this pickle in it."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("net/data.pkl", program)
        archive.writestr(
            "net/code/__torch__.py", "raise SystemExit('executed')", zipfile.ZIP_DEFLATED
        )
        for key, data in storages.items():
            archive.writestr(f"net/data/{key}", data)
    return path


def script_module(children: dict[str, bytes], number: int) -> bytes:
    """A TorchScript module in a pickle; children are pickled values."""
    state = b"".join(_text(name) + value for name, value in children.items())
    return f"c__torch__.___torch_mangle_{number}\nNode\n".encode() + b")\x81}(" + state + b"ub"


def script_program() -> bytes:
    """The pickle of a TorchScript archive with the tensors of `TENSORS`."""
    values = {}
    for key, (name, array) in enumerate(TENSORS.items()):
        values[name] = _tensor(str(key), name, TensorSpec(array.shape, array.dtype))
    inner = script_module(
        {"training": b"\x88", "weight": values["a.weight"], "bias": values["a.bias"]}, 1
    )
    rest = {name: values[name] for name in ("steps", "empty", "flags")}
    return b"\x80\x02" + script_module({"hook": b"N", "a": inner, **rest}, 2) + b"."


def write_script(path: Path) -> Path:
    """A TorchScript archive with the same tensors."""
    return write_archive(path, script_program(), storages())


def storages() -> dict[str, bytes]:
    """The bytes of the tensors by their storage's number."""
    return {str(key): array.tobytes() for key, array in enumerate(TENSORS.values())}


def write_any(kind: str, folder: Path) -> Path:
    """A file in this format, with the tensors of `TENSORS`."""
    if kind == "index":
        return write_shards(folder)
    if kind == "jit":
        return write_script(folder / "net.jit")
    return write(folder / f"net.{kind}", overwrite=True)


KINDS = ("safetensors", "index", "pth", "jit")
