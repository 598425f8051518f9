"""The safetensors format: 8 bytes with the length of a JSON header, the header, the tensors one
after another.

    header = {name: {"dtype": "BF16", "shape": [...], "data_offsets": [begin, end]}, ...,
    "__metadata__": {str: str}}

Offsets count from the end of the header; together the tensors cover the rest of the file without
gaps or overlaps.
"""

import json
import os
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from videomar_jax.interop.formats.base import (
    ByteFile,
    TensorFile,
    TensorSpec,
    WeightFileError,
    as_array,
    is_shape,
    new_file,
)

DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype(np.bool_),
}
"""The format's type names."""

_MAX_HEADER = 100_000_000


class SafetensorsFile(TensorFile):
    """One `.safetensors` file.

    Raises:
        WeightFileError: the header is not one, or the tensors do not fill the file exactly.
    """

    def __init__(self, path: str | os.PathLike):
        self._bytes = ByteFile(path)
        try:
            start, header = _header(self._bytes)
            metadata = header.pop("__metadata__", {})
            if not isinstance(metadata, dict) or not all(
                isinstance(text, str) for text in metadata.values()
            ):
                raise WeightFileError(f"{path} is corrupt: its metadata is not a table of texts.")
            specs, self._places = {}, {}
            for name, entry in header.items():
                specs[name], begin = _entry(path, name, entry)
                self._places[name] = start + begin
            _check_layout(path, specs, self._places, start, self._bytes.size)
        except BaseException:
            self._bytes.close()
            raise
        super().__init__(path, specs, metadata)

    def _read(self, name: str) -> np.ndarray:
        spec = self.specs[name]
        return as_array(self._bytes.read(self._places[name], spec.nbytes), spec)

    def close(self) -> None:
        """Closes the file."""
        self._bytes.close()


def _header(file: ByteFile) -> tuple[int, dict[str, Any]]:
    """(where the tensors begin, the header)."""
    if file.size < 8:
        raise WeightFileError(f"{file.path} is not a file of weights: it has {file.size} bytes.")
    length = int.from_bytes(file.read(0, 8).tobytes(), "little")
    if length > min(_MAX_HEADER, file.size - 8):
        raise WeightFileError(
            f"{file.path} is truncated, or no file of weights at all: neither a zip archive as PyTorch writes it, nor "
            f"safetensors (the header would be {length} bytes long, the file has {file.size})."
        )
    try:
        header = json.loads(
            file.read(8, length).tobytes().decode("utf-8"), object_pairs_hook=_unique
        )
    except (ValueError, RecursionError) as error:
        raise WeightFileError(
            f"{file.path} is corrupt: its safetensors header cannot be read ({error})."
        ) from error
    if not isinstance(header, dict):
        raise WeightFileError(f"{file.path} is corrupt: its safetensors header is not a table.")
    return 8 + length, header


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(
            f"the name {next(n for n in names if names.count(n) > 1)!r} stands there twice"
        )
    return table


def _entry(path: str | os.PathLike, name: str, entry: Any) -> tuple[TensorSpec, int]:
    """A tensor's shape and type, and where it begins."""
    wrong = WeightFileError(f"{path} is corrupt: the header's entry for {name!r} makes no sense.")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise wrong
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or not is_shape(shape):
        raise wrong
    if (
        not isinstance(offsets, list)
        or len(offsets) != 2
        or not all(type(place) is int for place in offsets)
    ):
        raise wrong
    if dtype not in DTYPES:
        raise WeightFileError(
            f"{path}: {name!r} has the type {dtype!r}, which is not supported ({', '.join(DTYPES)})."
        )
    spec = TensorSpec(tuple(shape), DTYPES[dtype])
    if offsets[1] - offsets[0] != spec.nbytes:
        raise wrong
    return spec, offsets[0]


def _check_layout(
    path, specs: dict[str, TensorSpec], places: dict[str, int], start: int, size: int
) -> None:
    """The tensors follow each other without gaps, and the file ends with the last one."""
    end = start
    for name in sorted(specs, key=lambda name: (places[name], specs[name].nbytes)):
        if places[name] != end:
            raise WeightFileError(
                f"{path} is corrupt: {name!r} does not begin where the tensor before it ends."
            )
        end += specs[name].nbytes
    if end != size:
        raise WeightFileError(
            f"{path} is truncated or corrupt: its tensors end at byte {end}, the file at {size}."
        )


def write_safetensors(
    path: str | os.PathLike,
    specs: Mapping[str, TensorSpec],
    read: Callable[[str], np.ndarray],
    *,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> None:
    """Writes the tensors `specs`, asking `read` for one at a time; larger types first, so that all
    are aligned.

    Raises:
        FileExistsError: the name is taken and `overwrite` is False.
    """
    names = {dtype: name for name, dtype in DTYPES.items()}
    order = sorted(specs, key=lambda name: -specs[name].dtype.itemsize)
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in order:
        spec = specs[name]
        begin, end = end, end + spec.nbytes
        header[name] = {
            "dtype": names[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with new_file(path, overwrite=overwrite) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            file.write(stored_bytes(name, specs[name], read(name)))


def stored_bytes(name: str, spec: TensorSpec, array: np.ndarray) -> memoryview:
    """The bytes to store; an array that is not what was announced is a ValueError, for the file
    would be wrong."""
    if array.shape != spec.shape or array.dtype != spec.dtype:
        raise ValueError(
            f"{name}: {array.dtype}{list(array.shape)} given, {spec.dtype}{list(spec.shape)} announced."
        )
    return memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
