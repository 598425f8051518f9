"""PyTorch's zip files without PyTorch: `.pth`, `.pt`, `.bin` (torch.save) and TorchScript `.jit`
archives.

    ROOT/data.pkl     a pickle of dictionaries, lists and (TorchScript) modules; tensors are views
    of numbered storages
    ROOT/data/KEY     the raw little-endian bytes of one storage, not compressed, with a checksum
    ROOT/byteorder    "little"

The pickle is read as data (`pickle_data`): nothing in it is executed, TorchScript's code is not
even opened. A tensor's name is the path to it, joined with dots.
"""

import math
import os
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from videomar_jax.interop.formats.base import (
    TensorFile,
    TensorSpec,
    WeightFileError,
    as_array,
    is_shape,
)
from videomar_jax.interop.formats.pickle import Global, Instance, PickleError, read_pickle
from videomar_jax.interop.formats.stored_zip import StoredZip

STORAGES: dict[str, np.dtype] = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype(np.bool_),
}
"""Names of PyTorch's storages in the module `torch`."""

_ALLOWED = {
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
    "collections.OrderedDict",
    "argparse.Namespace",
    "torch.Size",
    "torch.device",
    *(f"torch.{name}" for name in STORAGES),
    *(
        f"torch.{name}"
        for name in ("float64", "float32", "float16", "bfloat16", "int64", "int32", "uint8", "bool")
    ),
    *(f"torch.jit._pickle.build_{kind}list" for kind in ("int", "double", "bool", "tensor")),
    "torch.jit._pickle.restore_type_tag",
}
_MAX_PICKLE = 32 * 2**20
_MAX_NODES = 1_000_000
_MAX_DEPTH = 64
_SMALL = (
    64 * 2**20
)  # a tensor with repeated entries (stride 0) may be this large, whatever its storage


class Storage(NamedTuple):
    """A member of the archive seen as `count` values."""

    key: str
    dtype: np.dtype
    count: int


class View(NamedTuple):
    """A tensor: entries of a storage, sizes and strides counted in values."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def last(self) -> int:
        """One past the last entry it uses; equal to the offset where it is empty."""
        if 0 in self.shape:
            return self.offset
        return (
            self.offset
            + 1
            + sum((size - 1) * step for size, step in zip(self.shape, self.strides, strict=True))
        )

    @property
    def spec(self) -> TensorSpec:
        """Shape and type."""
        return TensorSpec(self.shape, self.storage.dtype)


def _named(name: Global) -> Global:
    if str(name) in _ALLOWED or _is_module(name):
        return name
    raise PickleError(
        f"it names {name}, which is not on the list of what may appear; nothing was executed"
    )


def _is_module(name: Global) -> bool:
    """Whether this is a TorchScript module."""
    return name.module == "__torch__" or name.module.startswith("__torch__.")


def _call(name: Global, args: tuple) -> Any:
    """What stands for the result of an allowed call; none of them is made."""
    text = str(name)
    if text.startswith("torch._utils._rebuild_tensor"):
        return _view(*args[:4])
    if text == "torch._utils._rebuild_parameter" or text.startswith("torch.jit._pickle."):
        return args[0]
    if text == "collections.OrderedDict":
        return {key: value for key, value in (args[0] if args else ())}
    if _is_module(name) or text in ("argparse.Namespace", "torch.Size", "torch.device"):
        return Instance(name)
    raise PickleError(f"it calls {name}, which cannot be called")


def _view(storage: Any, offset: Any, shape: Any, strides: Any) -> View:
    if not isinstance(storage, Storage) or not is_shape((offset,)) or not is_shape(shape):
        raise PickleError("a tensor makes no sense")
    if (
        not isinstance(strides, tuple)
        or len(strides) != len(shape)
        or not all(is_shape((step,)) for step in strides)
    ):
        raise PickleError("a tensor's strides make no sense")
    view = View(storage, offset, tuple(shape), strides)
    if view.last > storage.count:
        raise PickleError(f"a tensor reaches beyond the end of its storage {storage.key!r}")
    if math.prod(shape) * storage.dtype.itemsize > max(
        storage.count * storage.dtype.itemsize, _SMALL
    ):
        raise PickleError("a tensor repeats its storage many times over; save it contiguously")
    return view


def _persistent(reference: Any) -> Storage:
    match reference:
        case ("storage", Global("torch", kind), str(key), str(), int(count)) if (
            kind in STORAGES and count >= 0
        ):
            return Storage(key, STORAGES[kind], count)
    raise PickleError("a storage is described in a way that is not understood")


def _tensors(root: Any) -> dict[str, View]:
    """Every tensor below `root` under its dotted path."""
    found: dict[str, View] = {}
    waiting, nodes = [((), root)], 0
    while waiting:
        path, value = waiting.pop()
        nodes += 1
        if nodes > _MAX_NODES or len(path) > _MAX_DEPTH:
            raise PickleError("it nests without end")
        if isinstance(value, Instance):
            value = value.state if _is_module(value.kind) else None
        if isinstance(value, View):
            name = ".".join(path)
            if name in found:
                raise PickleError(f"two tensors are named {name!r}")
            found[name] = value
        elif isinstance(value, dict):
            waiting += [((*path, str(key)), child) for key, child in reversed(value.items())]
        elif type(value) in (list, tuple):
            waiting += [((*path, str(i)), child) for i, child in reversed(list(enumerate(value)))]
    return found


class TorchArchive(TensorFile):
    """One zip file written by torch.save or torch.jit.save.

    Raises:
        WeightFileError: damaged, compressed, big-endian, or its pickle names something that is not
            data.
    """

    def __init__(self, path: str | os.PathLike):
        self._zip = StoredZip(path)
        try:
            self._root = self._find_root()
            order = f"{self._root}/byteorder"
            if order in self._zip.sizes and self._zip.read(order).tobytes() != b"little":
                raise WeightFileError(
                    f"{path} was written on a big-endian machine, which is not supported."
                )
            if self._zip.sizes[f"{self._root}/data.pkl"] > _MAX_PICKLE:
                raise WeightFileError(
                    f"{path}: its data.pkl is too large to be the description of some weights."
                )
            self._views = self._read_views()
        except PickleError as error:
            self._zip.close()
            raise WeightFileError(f"{path} is refused: {error}.") from error
        except BaseException:
            self._zip.close()
            raise
        super().__init__(path, {name: view.spec for name, view in self._views.items()}, {})

    def _find_root(self) -> str:
        roots = [
            name.removesuffix("/data.pkl") for name in self._zip.sizes if name.endswith("/data.pkl")
        ]
        if len(roots) != 1:
            raise WeightFileError(
                f"{self._zip.path} is a zip file, but not one that PyTorch writes (no data.pkl)."
            )
        return roots[0]

    def _read_views(self) -> dict[str, View]:
        data = self._zip.read(f"{self._root}/data.pkl").tobytes()
        views = _tensors(read_pickle(data, named=_named, call=_call, persistent=_persistent))
        for name, view in views.items():
            member = f"{self._root}/data/{view.storage.key}"
            if self._zip.sizes.get(member) != view.storage.count * view.storage.dtype.itemsize:
                raise PickleError(
                    f"the storage {view.storage.key!r} of {name!r} is missing or has another size"
                )
            self._zip.locate(member)
        return views

    def _read(self, name: str) -> np.ndarray:
        view = self._views[name]
        item = view.storage.dtype.itemsize
        member = f"{self._root}/data/{view.storage.key}"
        raw = self._zip.read(member, view.offset * item, view.last * item)
        values = as_array(raw, TensorSpec((view.last - view.offset,), view.storage.dtype))
        if 0 in view.shape:
            return values.reshape(view.shape)
        steps = tuple(step * values.dtype.itemsize for step in view.strides)
        return np.ascontiguousarray(
            np.lib.stride_tricks.as_strided(values, view.shape, steps)
        ).reshape(view.shape)

    def close(self) -> None:
        """Closes the file."""
        self._zip.close()
