"""Opens and writes files of weights of every supported kind; what a file is gets read from its
content.

    .safetensors                 one file
    *.index.json                 the table of a sharded model: {"weight_map": {tensor: file}}, files
    beside it
    .pth .pt .bin                zip files of torch.save            .jit     TorchScript archives
    a folder                     its index, or its only .safetensors file

    with open_tensors("model.pth") as file:
        file.shapes["z_proj.weight"], file["z_proj.weight"]

Names, shapes and types are known at once; arrays come from the disk one by one.
"""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from videomar_jax.interop.formats.base import TensorFile, TensorSpec, WeightFileError
from videomar_jax.interop.formats.safetensors import SafetensorsFile, write_safetensors
from videomar_jax.interop.formats.torch_archive import TorchArchive
from videomar_jax.interop.formats.torch_writer import write_torch

__all__ = ["TensorFile", "TensorSpec", "WeightFileError", "open_tensors", "write_tensors"]

TORCH_SUFFIXES = (".pth", ".pt", ".bin")
_MAX_INDEX = 100_000_000


def open_tensors(path: str | os.PathLike) -> TensorFile:
    """Opens a file of weights; arrays are read when they are asked for. Nothing in the file is ever
    executed.

    Raises:
        FileNotFoundError: no such file, or a folder without weights.
        WeightFileError: truncated, corrupt, of an unknown kind, or with more than data in it.
    """
    path = Path(path)
    if path.is_dir():
        path = _only_file(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no file {path}.")
    if path.name.endswith(".index.json"):
        return ShardedFile(path)
    with open(path, "rb") as file:
        start = file.read(4)
    if start == b"PK\x03\x04":
        return TorchArchive(path)
    if path.suffix in TORCH_SUFFIXES and start[:1] == b"\x80":
        raise WeightFileError(
            f"{path} is a bare pickle (PyTorch before 1.6, or something else); save it again with a newer torch.save."
        )
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
    """Several files named by an index; each tensor must stand in the file that the index names, and
    nowhere else."""

    def __init__(self, path: Path):
        places, metadata = _read_index(path)
        self._places, self._files, specs = places, {}, {}
        try:
            for shard in dict.fromkeys(places.values()):
                if not (path.parent / shard).is_file():
                    raise WeightFileError(
                        f"{path} names the file {shard!r}, which is not beside it."
                    )
                self._files[shard] = open_tensors(path.parent / shard)
                expected = {name for name, place in places.items() if place == shard}
                held = self._files[shard].specs
                if set(held) != expected:
                    wrong = sorted(set(held) ^ expected)
                    raise WeightFileError(
                        f"{path} and {shard} disagree about {len(wrong)} tensors, such as {wrong[0]}."
                    )
                specs |= held
        except BaseException:
            self.close()
            raise
        super().__init__(path, {name: specs[name] for name in places}, metadata)

    def _read(self, name: str) -> np.ndarray:
        return self._files[self._places[name]][name]

    def close(self) -> None:
        """Closes all parts."""
        for file in self._files.values():
            file.close()


def _read_index(path: Path) -> tuple[dict[str, str], dict[str, str]]:
    """(file of every tensor, metadata)."""
    if path.stat().st_size > _MAX_INDEX:
        raise WeightFileError(f"{path} is too large to be an index.")
    try:
        index = json.loads(path.read_bytes().decode("utf-8"))
        places, metadata = index["weight_map"], index.get("metadata") or {}
        texts = {str(key): str(value) for key, value in metadata.items()}
        good = all(
            isinstance(shard, str) and shard == Path(shard).name for shard in places.values()
        )
        good = good and not any(
            shard.endswith(".index.json") or "\0" in shard for shard in places.values()
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightFileError(
            f"{path} is corrupt: not the index of a sharded model ({error!r})."
        ) from error
    if not good:
        raise WeightFileError(
            f"{path} names something that is not a file beside it; it is refused."
        )
    return places, texts


def write_tensors(
    path: str | os.PathLike,
    specs: Mapping[str, TensorSpec],
    read: Callable[[str], np.ndarray],
    *,
    container: str | None = None,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> None:
    """Writes tensors to a `.safetensors` or PyTorch file (by its ending), asking `read` for one at
    a time.

    Args:
        container: put the tensors into a dictionary of this name; in safetensors it becomes a
            prefix "NAME.".
        metadata: texts for the header; PyTorch files have no place for them.
    Raises:
        FileExistsError: the name is taken and `overwrite` is False. The file appears only when it
            is complete.
        ValueError: another ending.
    """
    path = Path(path)
    if path.suffix in TORCH_SUFFIXES:
        write_torch(path, specs, read, container=container, overwrite=overwrite)
    elif path.suffix == ".safetensors":
        prefix = f"{container}." if container else ""
        prefixed = {prefix + name: spec for name, spec in specs.items()}
        write_safetensors(
            path,
            prefixed,
            lambda name: read(name.removeprefix(prefix)),
            metadata=metadata,
            overwrite=overwrite,
        )
    else:
        raise ValueError(
            f"Cannot tell the format of {path}: end its name in .safetensors or {', '.join(TORCH_SUFFIXES)}."
        )
