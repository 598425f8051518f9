"""Files of torch.save before PyTorch 1.6, without PyTorch.

Such a file is a row of five pickles, followed by the raw bytes of the storages:

    a magic number, the format's version, facts about the machine that wrote it,
    the dictionaries and tensors, the keys of the storages in the order in which they follow,
    then for each key its number of values (8 bytes, little-endian) and the values

The pickles are read as data (`pickle`) and nothing in them is executed. There are no checksums.
"""

import io
import os
from typing import Any

import numpy as np

from videomar_jax.interop.formats.base import ByteFile, TensorFile, WeightFileError
from videomar_jax.interop.formats.pickle import Global, PickleError, read_pickle
from videomar_jax.interop.formats.torch_archive import (
    MAX_PICKLE,
    STORAGES,
    Storage,
    View,
    allowed_name,
    find_views,
    represent_call,
    view_array,
)

LEGACY_START = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."
"""The first pickle: the magic number."""
_VERSION = 1001


class LegacyTorchFile(TensorFile):
    """One file written by torch.save in the layout that preceded zip files.

    Raises:
        WeightFileError: the file is damaged or big-endian, or a pickle names something that is not
            data.
    """

    def __init__(self, path: str | os.PathLike):
        self._bytes = ByteFile(path)
        self._storages: dict[str, Storage] = {}
        try:
            self._views, self._places = self._read_description()
        except PickleError as error:
            self._bytes.close()
            raise WeightFileError(f"{path} is refused: {error}.") from error
        except BaseException:
            self._bytes.close()
            raise
        super().__init__(path, {name: view.spec for name, view in self._views.items()}, {})

    def _read_description(self) -> tuple[dict[str, View], dict[str, int]]:
        """Every tensor by its name, and the position of every storage by its key."""
        head = self._bytes.read(0, min(self._bytes.size, MAX_PICKLE)).tobytes()
        stream = io.BytesIO(head)
        _, version, machine, root, keys = (self._next_value(stream) for _ in range(5))
        if version != _VERSION:
            raise PickleError(f"the version of its layout is {version!r}, not {_VERSION}")
        if not isinstance(machine, dict) or machine.get("little_endian") is not True:
            raise PickleError("it was not written on a little-endian machine")
        texts = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
        if not texts or sorted(keys) != sorted(self._storages):
            raise PickleError("the list of its storages is not that of its tensors")
        return find_views(root), self._find_storages(keys, stream.tell())

    def _next_value(self, stream: io.BytesIO) -> Any:
        """What the next pickle of the row describes."""
        return read_pickle(
            stream, named=allowed_name, call=represent_call, persistent=self._storage
        )

    def _storage(self, reference: Any) -> Storage:
        """The storage of a reference: ("storage", type, key, device, count, view of another)."""
        match reference:
            case ("storage", Global("torch", kind), str(key), str(), int(count), None) if (
                kind in STORAGES and count >= 0
            ):
                storage = Storage(key, STORAGES[kind], count)
                if self._storages.setdefault(key, storage) != storage:
                    raise PickleError(f"the storage {key!r} is described in two ways")
                return storage
        raise PickleError("a storage is described in an unknown way")

    def _find_storages(self, keys: list[str], position: int) -> dict[str, int]:
        """Where the values of each storage begin; they must fill the rest of the file."""
        places = {}
        for key in keys:
            storage = self._storages[key]
            count = int.from_bytes(self._bytes.read(position, 8).tobytes(), "little")
            if count != storage.count:
                raise PickleError(
                    f"the storage {key!r} has {count} values instead of {storage.count}"
                )
            places[key] = position + 8
            position += 8 + count * storage.dtype.itemsize
        if position != self._bytes.size:
            raise PickleError(
                f"it is truncated or corrupt: its tensors end at byte {position}, the file at "
                f"{self._bytes.size}"
            )
        return places

    def _read(self, name: str) -> np.ndarray:
        view = self._views[name]
        item = view.storage.dtype.itemsize
        begin = self._places[view.storage.key] + view.offset * item
        return view_array(view, self._bytes.read(begin, (view.end - view.offset) * item))

    def close(self) -> None:
        """Closes the file."""
        self._bytes.close()
