"""Nested dictionaries of NumPy arrays: pickles of them, and Flax's msgpack files.

A tensor's name is the path of keys to it, joined with "/"; keys may hold slashes themselves. Unlike
the other formats these have no index, so that a file is held in memory as a whole while it is open.

A pickle is read as data (`pickle`): an array is a call of `numpy.core.multiarray._reconstruct` with
a state (version, shape, type, Fortran order, bytes), as pickle protocols 3 and 4 write it. Nothing
is called, and other names are refused. Msgpack has no instructions that could be executed.
"""

import os
import re
from typing import Any

import numpy as np

from videomar_jax.interop.formats.base import (
    ByteFile,
    TensorFile,
    TensorSpec,
    WeightFileError,
    is_shape,
)
from videomar_jax.interop.formats.pickle import (
    Global,
    Instance,
    PickleError,
    named_leaves,
    read_pickle,
)

_MAX_BYTES = 2 * 2**30
"""Of a file; it is read as a whole."""
_RECONSTRUCT = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
_ALLOWED = {*_RECONSTRUCT, "numpy.ndarray", "numpy.dtype"}
"""The names that a pickle may mention."""
_CODE = re.compile(r"b1|[iu][1248]|f[248]")
"""NumPy's codes of types without their byte order."""


class ArrayTree(TensorFile):
    """The arrays of a nested dictionary, all of them in memory."""

    def __init__(self, path: str | os.PathLike, arrays: dict[str, np.ndarray]):
        specs = {name: TensorSpec(array.shape, array.dtype) for name, array in arrays.items()}
        super().__init__(path, specs, {})
        self._arrays = arrays

    def _read(self, name: str) -> np.ndarray:
        return np.array(self._arrays[name], order="C")

    def close(self) -> None:
        """Frees the arrays."""
        self._arrays = {}


def open_numpy_pickle(path: str | os.PathLike) -> ArrayTree:
    """Reads a pickle of nested dictionaries of NumPy arrays.

    Raises:
        WeightFileError: it is damaged, or names something that is not data.
    """
    data = _whole(path)
    try:
        root = read_pickle(data, named=_named, call=_call, persistent=_persistent)
        leaves = named_leaves(root, _Array, "/")
        arrays = {name: _array(name, leaf) for name, leaf in leaves.items()}
    except PickleError as error:
        raise WeightFileError(f"{path} is refused: {error}.") from error
    return _filled(path, arrays)


def open_flax_msgpack(path: str | os.PathLike) -> ArrayTree:
    """Reads what `flax.serialization.to_bytes` or `msgpack_serialize` wrote.

    Raises:
        WeightFileError: it is damaged, or something else.
    """
    from flax.serialization import msgpack_restore  # late: it imports JAX

    data = _whole(path)
    try:
        arrays = named_leaves(msgpack_restore(data), np.ndarray, "/")
    except PickleError as error:
        raise WeightFileError(f"{path} is refused: {error}.") from error
    # Msgpack and Flax raise what they happen to run into.
    except Exception as error:
        raise WeightFileError(
            f"{path} is truncated or corrupt: it begins like a msgpack file of Flax and cannot be "
            f"read as one ({type(error).__name__}: {error})."
        ) from error
    return _filled(path, arrays)


def _whole(path: str | os.PathLike) -> bytes:
    """The bytes of a file."""
    file = ByteFile(path)
    try:
        if file.size > _MAX_BYTES:
            raise WeightFileError(
                f"{path} has {file.size} bytes: a file of this format is read as a whole, and may "
                f"have {_MAX_BYTES}."
            )
        return file.read(0, file.size).tobytes()
    finally:
        file.close()


def _filled(path: str | os.PathLike, arrays: dict[str, np.ndarray]) -> ArrayTree:
    if not arrays:
        raise WeightFileError(f"{path} holds no arrays in nested dictionaries.")
    return ArrayTree(path, arrays)


# What stands for NumPy's objects


class _Array(Instance):
    """An array; its state holds shape, type and bytes."""


class _Type(Instance):
    """A type; its state holds the byte order."""

    def __init__(self, kind: Global, code: str):
        super().__init__(kind)
        self.code = code

    @property
    def dtype(self) -> np.dtype:
        """NumPy's type."""
        match self.state:
            case (int(), "<" | ">" | "|" as order, None, None, None, *_):
                return np.dtype(order + self.code)
        raise PickleError("the type of an array is described in an unknown way")


def _named(name: Global) -> Global:
    """The name itself, if it is allowed."""
    if str(name) in _ALLOWED:
        return name
    raise PickleError(
        f"it names {name}, which is not on the list of what may appear; nothing was executed"
    )


def _call(name: Global, args: tuple) -> Instance:
    """What represents the result of an allowed call; no function is called."""
    match args:
        case (Global("numpy", "ndarray"), (0,), bytes()) if str(name) in _RECONSTRUCT:
            return _Array(name)
        case (str(code), *_) if str(name) == "numpy.dtype" and _CODE.fullmatch(code):
            return _Type(name, code)
    raise PickleError(
        f"it calls {name} with something else than a plain array; save float32 arrays"
    )


def _persistent(reference: Any) -> Any:
    raise PickleError("it refers to something outside itself")


def _array(name: str, leaf: _Array) -> np.ndarray:
    """The array that a leaf describes, as a view of the pickle's bytes."""
    match leaf.state:
        case (int(), tuple(shape), _Type() as kind, bool(is_fortran), bytes(data)) if is_shape(
            shape
        ):
            spec = TensorSpec(shape, kind.dtype)
        case _:
            raise PickleError(f"the array {name} is described in an unknown way")
    if len(data) != spec.nbytes:
        raise PickleError(f"the array {name} has {len(data)} bytes instead of {spec.nbytes}")
    return np.frombuffer(data, spec.dtype).reshape(shape, order="F" if is_fortran else "C")
