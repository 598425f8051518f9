"""The safetensors format: 8 bytes with the length of a JSON header, the header, then the tensors.

    header = {name: {"dtype": "BF16", "shape": [...], "data_offsets": [begin, end]}, ...,
              "__metadata__": {str: str}}

Offsets count from the end of the header. Together the tensors cover the rest of the file without
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
"""The format's names of types."""

_MAX_HEADER = 100_000_000
"""Bytes of a header, as the reference implementation limits it."""


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
            if not _is_table_of_texts(metadata):
                raise WeightFileError(f"{path} is corrupt: its metadata is not a table of texts.")
            specs: dict[str, TensorSpec] = {}
            self._places: dict[str, int] = {}
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


def _is_table_of_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


def _header(file: ByteFile) -> tuple[int, dict[str, Any]]:
    """(position where the tensors begin, the header)."""
    if file.size < 8:
        raise WeightFileError(f"{file.path} is not a file of weights: it has {file.size} bytes.")
    length = int.from_bytes(file.read(0, 8).tobytes(), "little")
    if length > min(_MAX_HEADER, file.size - 8):
        raise WeightFileError(
            f"{file.path} is truncated, or not a file of weights: neither a zip archive as PyTorch "
            f"writes it, nor safetensors (the header would be {length} bytes long, the file has "
            f"{file.size})."
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
    """A JSON object, which would silently keep the last of several equal keys."""
    table: dict[str, Any] = {}
    for name, value in pairs:
        if name in table:
            raise ValueError(f"the name {name!r} occurs twice")
        table[name] = value
    return table


def _entry(path: str | os.PathLike, name: str, entry: Any) -> tuple[TensorSpec, int]:
    """A tensor's shape and type, and the offset where it begins."""
    wrong = WeightFileError(f"{path} is corrupt: the header's entry for {name!r} makes no sense.")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise wrong
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or not is_shape(shape):
        raise wrong
    if not isinstance(offsets, list) or [type(offset) for offset in offsets] != [int, int]:
        raise wrong
    if dtype not in DTYPES:
        raise WeightFileError(
            f"{path}: {name!r} has the type {dtype!r}, which is not supported "
            f"({', '.join(DTYPES)})."
        )
    spec = TensorSpec(tuple(shape), DTYPES[dtype])
    begin, end = offsets
    if end - begin != spec.nbytes:
        raise wrong
    return spec, begin


def _check_layout(
    path: str | os.PathLike,
    specs: dict[str, TensorSpec],
    places: dict[str, int],
    start: int,
    size: int,
) -> None:
    """Raises a WeightFileError unless the tensors fill bytes `start` to `size` without gaps."""
    end = start
    # An empty tensor may begin where another one does: it comes first.
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
    """Writes the tensors `specs`, asking `read` for one at a time.

    Raises:
        FileExistsError: the file exists and `overwrite` is False.
    """
    names = {dtype: name for name, dtype in DTYPES.items()}
    # Larger types first, so that all tensors are aligned.
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
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of 8
    with new_file(path, overwrite=overwrite) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            file.write(stored_bytes(name, specs[name], read(name)))


def stored_bytes(name: str, spec: TensorSpec, array: np.ndarray) -> memoryview:
    """The bytes to store.

    Raises:
        ValueError: the array is not of the announced shape and type; the file would be wrong.
    """
    if array.shape != spec.shape or array.dtype != spec.dtype:
        raise ValueError(
            f"{name}: {array.dtype}{list(array.shape)} given, "
            f"{spec.dtype}{list(spec.shape)} announced."
        )
    return memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
