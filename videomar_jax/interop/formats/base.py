"""The interface of all files of weights, and how new files are written.

A `TensorFile` maps names to arrays. Opening one reads names, shapes and types only; an array is
read from disk when it is asked for and belongs to the caller, so a conversion needs memory for one
tensor at a time. bfloat16 and the 8-bit floats are NumPy arrays of `ml_dtypes`. `safetensors` and
`torch_archive` implement the formats.
"""

import abc
import contextlib
import dataclasses
import math
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from videomar_jax.checks import UserError, not_finite
from videomar_jax.io.files import check_regular, replacing

_LARGEST = 2**48
"""Entries of a tensor; a larger number means that the file is damaged."""
_MAX_RANK = 32
"""Axes of a tensor, likewise."""


class WeightFileError(UserError):
    """A file of weights cannot be used; the text names the file and what is wrong with it."""


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """Shape and NumPy type of a stored tensor."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def count(self) -> int:
        """The number of values."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The number of bytes, without padding."""
        return self.count * self.dtype.itemsize


def is_shape(value: Any) -> bool:
    """Whether `value` is a list or tuple of whole numbers that can be the shape of an array."""
    return (
        isinstance(value, (list, tuple))
        and len(value) <= _MAX_RANK
        and all(type(size) is int and 0 <= size <= _LARGEST for size in value)
        and math.prod(size for size in value if size) <= _LARGEST
    )


def as_array(raw: np.ndarray, spec: TensorSpec) -> np.ndarray:
    """The tensor that these bytes (uint8 [n]) hold, without a copy where possible."""
    if spec.dtype == np.bool_:
        return (raw != 0).reshape(spec.shape)
    return raw.view(spec.dtype).reshape(spec.shape)


class ByteFile:
    """A file that is read at any position; may be used from several threads."""

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        check_regular(self.path)
        self._file = open(self.path, "rb", buffering=0)
        self._lock = threading.Lock()
        self.size = os.fstat(self._file.fileno()).st_size

    def read(self, start: int, count: int) -> np.ndarray:
        """`count` bytes from `start`, uint8 [count].

        Raises:
            WeightFileError: they are not all in the file.
        """
        if start < 0 or count < 0 or start + count > self.size:
            raise WeightFileError(
                f"{self.path} is truncated or corrupt: bytes {start} to {start + count} are "
                f"expected, but the file has {self.size}."
            )
        out = np.empty(count, np.uint8)
        view = memoryview(out)
        done = 0
        with self._lock:
            self._file.seek(start)
            while done < count:
                received = self._file.readinto(view[done:])
                if not received:
                    raise WeightFileError(f"{self.path} became shorter while it was read.")
                done += received
        return out

    def close(self) -> None:
        """Closes the file; further reads fail."""
        self._file.close()


# Not Mapping[str, np.ndarray]: type checkers at run time would read a tensor to look at its type.
class TensorFile(Mapping, abc.ABC):
    """Names and arrays of one file, or of one model in several files; a context manager.

    `file[name]` reads the tensor from disk, every time, and checks what can be checked.

    Attributes:
        specs: shape and type of every tensor, by name.
        metadata: texts of the file's header.
    """

    def __init__(
        self, path: str | os.PathLike, specs: Mapping[str, TensorSpec], metadata: Mapping[str, str]
    ):
        self.path = Path(path)
        self.specs = dict(specs)
        self.metadata = dict(metadata)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor."""
        return {name: spec.shape for name, spec in self.specs.items()}

    @property
    def dtypes(self) -> dict[str, np.dtype]:
        """The NumPy type of every tensor."""
        return {name: spec.dtype for name, spec in self.specs.items()}

    @property
    def nbytes(self) -> int:
        """The bytes of all tensors together."""
        return sum(spec.nbytes for spec in self.specs.values())

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.specs:
            raise KeyError(f"{self.path} holds no tensor {name!r}.")
        return self._read(name)

    def read_finite(self, name: str, dtype: np.dtype | str | None = None) -> np.ndarray:
        """The tensor `name` in another type (None: its own), once all of its values are finite.

        Raises:
            WeightFileError: it holds NaN or infinity, or numbers too large for the type.
        """
        array = self[name]
        with np.errstate(over="ignore"):  # an overflow is an error of our own below
            cast = array if dtype is None else array.astype(dtype, copy=False)
        fault = not_finite(cast)
        if not fault:
            return cast
        own_fault = not_finite(array)
        if own_fault:
            raise WeightFileError(
                f"{self.path}: the tensor {name} holds {own_fault}. A model with such weights "
                f"makes nothing: take another copy of the file, or an earlier checkpoint."
            )
        raise WeightFileError(
            f"{self.path}: the tensor {name} ({array.dtype}) does not fit {cast.dtype}: it would "
            f"hold {fault}. Read it in a wider type."
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self.specs)

    def __len__(self) -> int:
        return len(self.specs)

    def __contains__(self, name: object) -> bool:
        return name in self.specs

    def __enter__(self):
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @abc.abstractmethod
    def _read(self, name: str) -> np.ndarray:
        """The tensor, freshly read."""

    @abc.abstractmethod
    def close(self) -> None:
        """Closes the file; names and shapes remain available."""


@contextlib.contextmanager
def new_file(path: str | os.PathLike, *, overwrite: bool = False) -> Iterator[BinaryIO]:
    """A new file that gets its name when the block ends; after an exception nothing of it remains.

    Raises:
        FileExistsError: the file exists and `overwrite` is False.
        FileNotFoundError: its folder does not exist.
    """
    path = Path(path)
    if path.is_dir() or (path.exists() and not overwrite):
        raise FileExistsError(
            f"{path} exists already; choose another name or ask for it to be overwritten."
        )
    if not path.parent.is_dir():
        raise FileNotFoundError(f"Cannot write {path}: the folder {path.parent} does not exist.")
    with replacing(path, overwrite=overwrite) as part, open(part, "wb") as file:
        yield file
