"""Opens and writes files of weights of every supported format.

    .safetensors       one file
    *.index.json       the index of a sharded model: {"weight_map": {tensor: file}}, with the files
                       beside it
    .pth .pt .bin      files of torch.save: zip files, and those of PyTorch before 1.6
    .jit               TorchScript archives
    .ckpt .pkl         pickles of nested dictionaries of NumPy arrays
    .flax .msgpack     the same as Flax writes them (flax.serialization)
    a folder           its index, or its only .safetensors file

The format is recognised by the content.

    with open_tensors("model.pth") as file:
        file.shapes["z_proj.weight"], file["z_proj.weight"]

Names, shapes and types are available at once; arrays are read from disk one by one.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from videomar_jax.checks import UserError
from videomar_jax.interop.formats.array_tree import open_flax_msgpack, open_numpy_pickle
from videomar_jax.interop.formats.base import TensorFile, TensorSpec, WeightFileError
from videomar_jax.interop.formats.safetensors import SafetensorsFile, write_safetensors
from videomar_jax.interop.formats.torch_archive import TorchArchive
from videomar_jax.interop.formats.torch_legacy import LEGACY_START, LegacyTorchFile
from videomar_jax.interop.formats.torch_writer import write_torch
from videomar_jax.io.files import check_regular, read_json

__all__ = ["TensorFile", "TensorSpec", "WeightFileError", "open_tensors", "write_tensors"]

TORCH_SUFFIXES = (".pth", ".pt", ".bin")
# How pickles begin, and the tables of msgpack that have entries.
_PICKLE, _PROTOCOLS = 0x80, range(2, 6)
_MSGPACK_MAPS = {*range(0x81, 0x90), 0xDE, 0xDF}
_MAX_INDEX = 100_000_000
"""Bytes of an index; a larger file is something else."""


def open_tensors(path: str | os.PathLike) -> TensorFile:
    """Opens a file of weights; arrays are read when they are asked for.

    Nothing in the file is ever executed.

    Raises:
        FileNotFoundError: no such file, or a folder without weights.
        WeightFileError: the file is truncated, corrupt, of an unknown format, or contains something
            other than data.
    """
    path = Path(path)
    if path.is_dir():
        path = _only_file(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no file {path}.")
    check_regular(path)
    if path.name.endswith(".index.json"):
        return ShardedFile(path)
    with open(path, "rb") as file:
        start = file.read(len(LEGACY_START))
    if start.startswith(b"PK\x03\x04"):
        return TorchArchive(path)
    if start == LEGACY_START:
        return LegacyTorchFile(path)
    if path.suffix in TORCH_SUFFIXES and start[:1] == b"\x80":
        raise WeightFileError(
            f"{path} is a bare pickle, which torch.save did not write; save it again with "
            f"torch.save."
        )
    # A safetensors file begins with the length of its header, then the header, a JSON object.
    if len(start) > 8 and start[8:9] != b"{":
        if start[0] == _PICKLE and start[1] in _PROTOCOLS:
            return open_numpy_pickle(path)
        if start[0] in _MSGPACK_MAPS:
            return open_flax_msgpack(path)
    return SafetensorsFile(path)


def _only_file(folder: Path) -> Path:
    for pattern in ("*.safetensors.index.json", "*.safetensors", "*.index.json"):
        found = sorted(folder.glob(pattern))
        if len(found) == 1:
            return found[0]
        if found:
            raise WeightFileError(
                f"{folder} holds {', '.join(f.name for f in found)}: name the file you mean."
            )
    raise FileNotFoundError(
        f"{folder} holds no safetensors file and no index; name the file of weights itself."
    )


class ShardedFile(TensorFile):
    """Several files named by an index; each tensor must be in the file that the index names, and in
    no other."""

    def __init__(self, path: Path):
        self._places, metadata = _read_index(path)
        self._files: dict[str, TensorFile] = {}
        specs: dict[str, TensorSpec] = {}
        try:
            for shard in dict.fromkeys(self._places.values()):
                if not (path.parent / shard).is_file():
                    raise WeightFileError(
                        f"{path} names the file {shard!r}, which is not beside it."
                    )
                self._files[shard] = open_tensors(path.parent / shard)
                found = self._files[shard].specs
                expected = {name for name, place in self._places.items() if place == shard}
                wrong = sorted(set(found) ^ expected)
                if wrong:
                    raise WeightFileError(
                        f"{path} and {shard} disagree about {len(wrong)} tensors, "
                        f"such as {wrong[0]}."
                    )
                specs |= found
        except BaseException:
            self.close()
            raise
        super().__init__(path, {name: specs[name] for name in self._places}, metadata)

    def _read(self, name: str) -> np.ndarray:
        return self._files[self._places[name]][name]

    def close(self) -> None:
        """Closes all files."""
        for file in self._files.values():
            file.close()


def _read_index(path: Path) -> tuple[dict[str, str], dict[str, str]]:
    """(file of every tensor, metadata)."""
    if path.stat().st_size > _MAX_INDEX:
        raise WeightFileError(f"{path} is too large to be an index.")
    try:
        index = read_json(path)
        places, metadata = index["weight_map"], index.get("metadata") or {}
        texts = {str(key): str(value) for key, value in metadata.items()}
        good = all(_names_a_neighbour(shard) for shard in places.values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightFileError(
            f"{path} is corrupt: not the index of a sharded model ({error!r})."
        ) from error
    if not good:
        raise WeightFileError(
            f"{path} names something that is not a file beside it; it is refused."
        )
    return places, texts


def _names_a_neighbour(shard: object) -> bool:
    """Whether this is a plain file name, and not that of an index, which could name itself."""
    if not isinstance(shard, str) or shard != Path(shard).name:
        return False
    return not shard.endswith(".index.json") and "\0" not in shard


def write_tensors(
    path: str | os.PathLike,
    specs: Mapping[str, TensorSpec],
    read: Callable[[str], np.ndarray],
    *,
    container: str | None = None,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> None:
    """Writes a `.safetensors` or PyTorch file, as its ending says.

    The file gets its name when it is complete.

    Args:
        specs: shape and type of every tensor.
        read: returns the tensor of a name; tensors are asked for one at a time.
        container: put the tensors into a dictionary of this name; in safetensors it becomes a
            prefix "NAME.".
        metadata: texts for the header; PyTorch files have no place for them.
    Raises:
        FileExistsError: the file exists and `overwrite` is False.
        UserError: another ending.
    """
    path = Path(path)
    if path.suffix in TORCH_SUFFIXES:
        write_torch(path, specs, read, container=container, overwrite=overwrite)
    elif path.suffix == ".safetensors":
        prefix = f"{container}." if container else ""
        write_safetensors(
            path,
            {prefix + name: spec for name, spec in specs.items()},
            lambda name: read(name.removeprefix(prefix)),
            metadata=metadata,
            overwrite=overwrite,
        )
    else:
        raise UserError(
            f"Cannot tell the format of {path}: end its name in .safetensors or "
            f"{', '.join(TORCH_SUFFIXES)}."
        )
