"""Writes a file that torch.load reads as a dictionary of tensors, without PyTorch and one tensor at
a time.

The layout is that of `torch_archive`. The pickle is written by hand, since Python's pickler can
only name functions that it can import. Storages begin at multiples of 64 bytes, as PyTorch writes
them, so that the file can be mapped into memory.
"""

import math
import os
import struct
import zipfile
from collections.abc import Callable, Mapping

import numpy as np

from videomar_jax.checks import UserError
from videomar_jax.interop.formats.base import TensorSpec, new_file
from videomar_jax.interop.formats.safetensors import stored_bytes
from videomar_jax.interop.formats.torch_archive import STORAGES

_ROOT = "archive"
_ALIGNMENT = 64
_EPOCH = (1980, 1, 1, 0, 0, 0)
"""The time of every member, so that equal tensors give equal files."""


def write_torch(
    path: str | os.PathLike,
    specs: Mapping[str, TensorSpec],
    read: Callable[[str], np.ndarray],
    *,
    container: str | None = None,
    overwrite: bool = False,
) -> None:
    """Writes {name: tensor}, or {container: {name: tensor}}, asking `read` for one tensor at a
    time.

    Raises:
        FileExistsError: the file exists and `overwrite` is False.
        UserError: a type that PyTorch's storages do not have.
    """
    items = {}
    for i, (name, spec) in enumerate(specs.items()):
        items[name] = _tensor(str(i), name, spec)
    program = _dictionary(items)
    if container is not None:
        program = _dictionary({container: program})
    with (
        new_file(path, overwrite=overwrite) as file,
        zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive,
    ):
        _add(archive, "data.pkl", b"\x80\x02" + program + b".")
        _add(archive, "byteorder", b"little")
        for i, (name, spec) in enumerate(specs.items()):
            _add(archive, f"data/{i}", stored_bytes(name, spec, read(name)))
        _add(archive, "version", b"3\n")


def _add(archive: zipfile.ZipFile, name: str, data: bytes | memoryview) -> None:
    """Adds a member whose bytes begin at a multiple of 64."""
    info = zipfile.ZipInfo(f"{_ROOT}/{name}", _EPOCH)
    info.file_size = len(data)
    is_large = info.file_size >= zipfile.ZIP64_LIMIT // 2
    # The local header has 30 bytes, then the name, then 4 bytes and the padding as extra data; a
    # large member has 20 more bytes.
    begin = archive.fp.tell() + 30 + len(info.filename) + 4 + (20 if is_large else 0)
    padding = -begin % _ALIGNMENT
    info.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding
    with archive.open(info, "w", force_zip64=is_large) as member:
        member.write(data)


def _dictionary(items: Mapping[str, bytes]) -> bytes:
    """Instructions that make a dictionary; the values are instructions too."""
    return b"}(" + b"".join(_text(name) + value for name, value in items.items()) + b"u"


def _text(text: str) -> bytes:
    data = text.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def _whole(number: int) -> bytes:
    if number < 2**31:
        return b"J" + struct.pack("<i", number)
    data = number.to_bytes(8, "little")
    return b"\x8a" + bytes([len(data)]) + data


def _whole_numbers(numbers: list[int]) -> bytes:
    return b"(" + b"".join(_whole(number) for number in numbers) + b"t"


def _tensor(key: str, name: str, spec: TensorSpec) -> bytes:
    """Instructions that make a contiguous tensor over the storage `key`: a call of
    `torch._utils._rebuild_tensor_v2`."""
    kinds = {dtype: kind for kind, dtype in STORAGES.items()}
    if spec.dtype not in kinds:
        raise UserError(
            f"{name} has the type {spec.dtype}, which a PyTorch file of this kind cannot hold."
        )
    strides = [math.prod(spec.shape[i + 1 :]) for i in range(len(spec.shape))]
    storage = (
        b"("
        + _text("storage")
        + f"ctorch\n{kinds[spec.dtype]}\n".encode()
        + _text(key)
        + _text("cpu")
    )
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + storage
        + _whole(spec.count)
        + b"tQ"
        + _whole(0)
        + _whole_numbers(list(spec.shape))
        + _whole_numbers(strides)
        + b"\x89ccollections\nOrderedDict\n)RtR"
    )
