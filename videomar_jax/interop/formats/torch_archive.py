"""PyTorch's zip files without PyTorch: `.pth`, `.pt`, `.bin` (torch.save) and TorchScript `.jit`
archives.

    ROOT/data.pkl     a pickle of dictionaries, lists and (TorchScript) modules; tensors are views
                      of numbered storages
    ROOT/data/KEY     the raw little-endian bytes of one storage, uncompressed, with a checksum
    ROOT/byteorder    "little"

The pickle is read as data (`pickle`): nothing in it is executed, and TorchScript's code is not even
opened. A tensor's name is the path to it, joined with dots.
"""

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
from videomar_jax.interop.formats.pickle import (
    Global,
    Instance,
    PickleError,
    named_leaves,
    read_pickle,
)
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
"""The names that a pickle may mention besides TorchScript modules."""

# Beyond these bounds a file is refused: it is damaged or made to use up memory.
MAX_PICKLE = 32 * 2**20  # bytes of data.pkl
_MAX_REPEATED = 64 * 2**20  # bytes of a tensor that is larger than its storage (stride 0)


class Storage(NamedTuple):
    """A member of the archive, as `count` values of one type."""

    key: str
    dtype: np.dtype
    count: int


class View(NamedTuple):
    """A tensor as entries of a storage; offset and strides count values."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def end(self) -> int:
        """One past the last entry that is used; the offset if there is none."""
        if 0 in self.shape:
            return self.offset
        sizes_and_strides = zip(self.shape, self.strides, strict=True)
        return self.offset + 1 + sum((size - 1) * stride for size, stride in sizes_and_strides)

    @property
    def spec(self) -> TensorSpec:
        """The tensor's shape and type."""
        return TensorSpec(self.shape, self.storage.dtype)


def allowed_name(name: Global) -> Global:
    """The name itself, if it is allowed."""
    if str(name) in _ALLOWED or _is_module(name):
        return name
    raise PickleError(
        f"it names {name}, which is not on the list of what may appear; nothing was executed"
    )


def _is_module(name: Global) -> bool:
    """Whether this is a TorchScript module."""
    return name.module == "__torch__" or name.module.startswith("__torch__.")


def represent_call(name: Global, args: tuple) -> Any:
    """What represents the result of an allowed call; no function is called."""
    text = str(name)
    if text.startswith("torch._utils._rebuild_tensor"):
        return _view(*args[:4])
    if text == "torch._utils._rebuild_parameter" or text.startswith("torch.jit._pickle."):
        return args[0]
    if text == "collections.OrderedDict":
        return dict(args[0] if args else ())
    if _is_module(name) or text in ("argparse.Namespace", "torch.Size", "torch.device"):
        return Instance(name)
    raise PickleError(f"it calls {name}, which cannot be called")


def _view(storage: Any, offset: Any, shape: Any, strides: Any) -> View:
    """A tensor from the arguments of `_rebuild_tensor`, which may be anything."""
    if not isinstance(storage, Storage) or not is_shape((offset,)) or not is_shape(shape):
        raise PickleError("a tensor makes no sense")
    if not isinstance(strides, tuple) or len(strides) != len(shape):
        raise PickleError("a tensor's strides make no sense")
    if not all(is_shape((stride,)) for stride in strides):
        raise PickleError("a tensor's strides make no sense")
    view = View(storage, offset, tuple(shape), strides)
    if view.end > storage.count:
        raise PickleError(f"a tensor reaches beyond the end of its storage {storage.key!r}")
    storage_bytes = storage.count * storage.dtype.itemsize
    if view.spec.nbytes > max(storage_bytes, _MAX_REPEATED):
        raise PickleError("a tensor repeats its storage many times over; save it contiguously")
    return view


def _persistent(reference: Any) -> Storage:
    """The storage that a reference describes: ("storage", type, key, device, count)."""
    match reference:
        case ("storage", Global("torch", kind), str(key), str(), int(count)) if (
            kind in STORAGES and count >= 0
        ):
            return Storage(key, STORAGES[kind], count)
    raise PickleError("a storage is described in an unknown way")


def find_views(root: Any) -> dict[str, View]:
    """Every tensor below `root` by its dotted path, in the order of the file."""
    return named_leaves(root, View, ".", _inside)


def _inside(value: Any) -> Any:
    """The state of a TorchScript module; nothing of another instance; other values themselves."""
    if isinstance(value, Instance):
        return value.state if _is_module(value.kind) else None
    return value


def view_array(view: View, raw: np.ndarray) -> np.ndarray:
    """The tensor, from the bytes (uint8) of its storage from `view.offset` to `view.end`."""
    values = as_array(raw, TensorSpec((view.end - view.offset,), view.storage.dtype))
    if 0 in view.shape:
        return values.reshape(view.shape)
    strides = tuple(stride * values.dtype.itemsize for stride in view.strides)
    strided = np.lib.stride_tricks.as_strided(values, view.shape, strides)
    # ascontiguousarray makes an array of rank 1 of a scalar.
    return np.ascontiguousarray(strided).reshape(view.shape)


class TorchArchive(TensorFile):
    """One zip file written by torch.save or torch.jit.save.

    Raises:
        WeightFileError: the file is damaged, compressed or big-endian, or its pickle names
            something that is not data.
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
            if self._zip.sizes[f"{self._root}/data.pkl"] > MAX_PICKLE:
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
        """The folder of the archive that holds everything."""
        suffix = "/data.pkl"
        roots = [name.removesuffix(suffix) for name in self._zip.sizes if name.endswith(suffix)]
        if len(roots) != 1:
            raise WeightFileError(
                f"{self._zip.path} is a zip file, but not one that PyTorch writes (no data.pkl)."
            )
        return roots[0]

    def _read_views(self) -> dict[str, View]:
        """All tensors, whose storages are in place."""
        data = self._zip.read(f"{self._root}/data.pkl").tobytes()
        views = find_views(
            read_pickle(data, named=allowed_name, call=represent_call, persistent=_persistent)
        )
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
        raw = self._zip.read(member, view.offset * item, view.end * item)
        return view_array(view, raw)

    def close(self) -> None:
        """Closes the file."""
        self._zip.close()
