"""A checkpoint written array by array, and the types of the arrays in a checkpoint.

`Checkpoints.save` takes a tree of all arrays. `StreamedCheckpoint` takes them one after another and
needs the memory of a few: a model can be converted in less memory than it has. On disk there is no
difference; `Checkpoints` reads both.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict, unflatten_dict
from orbax.checkpoint import v1

from videomar_jax.checkpoints.digests import write_digests
from videomar_jax.checkpoints.manager import Checkpoints
from videomar_jax.io.log import log

_ITEM = "state"  # Orbax's name for the tree of a checkpoint that is saved in pieces


class StreamedCheckpoint:
    """Checkpoint `step` of a new `directory`, with one part: `put` every array, then `commit`.

    Until `commit` returns, the directory must not be read; after a failure it must be deleted.

    Args:
        part: the name of the part, such as "ema".
        bytes_at_once: arrays are collected up to this size before they are written.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        part: str,
        *,
        step: int = 0,
        bytes_at_once: int = 2**27,
    ):
        self._directory, self._part, self._step = Path(directory), part, step
        self._bytes_at_once = bytes_at_once
        self._pieces = self._directory.with_name(f"{self._directory.name}.pieces")
        self._waiting: dict[str, np.ndarray] = {}

    def put(self, path: str, array: np.ndarray) -> None:
        """Adds the array at the place "a/b/c" of the tree; it must not change afterwards."""
        self._waiting[path] = array
        if sum(waiting.nbytes for waiting in self._waiting.values()) >= self._bytes_at_once:
            self._write()

    def commit(self, progress: Mapping[str, Any]) -> None:
        """Completes the checkpoint; `progress` as in `Checkpoints.save`."""
        self._write()
        v1.partial.finalize(self._pieces)
        # Orbax has no way to save a composite from pieces: a placeholder is saved and replaced.
        with Checkpoints(self._directory) as checkpoints:
            checkpoints.save(self._step, {self._part: {"stand-in": np.zeros(1)}}, progress)
        part = self._directory / str(self._step) / self._part
        shutil.rmtree(part)
        os.replace(self._pieces / _ITEM, part)
        shutil.rmtree(self._pieces)
        write_digests(part.parent)

    def _write(self) -> None:
        if self._waiting:
            v1.partial.save(self._pieces, unflatten_dict(self._waiting, sep="/"))
            self._waiting = {}


def stored_types(directory: str | os.PathLike, step: int, part: str) -> dict[str, np.dtype]:
    """{"a/b/c": dtype} of the arrays in one part of a checkpoint.

    Empty if there is no such part or it cannot be read; `Checkpoints.restore` then says why.
    """
    try:
        tree = ocp.StandardCheckpointHandler().metadata(Path(directory) / str(step) / part).tree
    except Exception as error:  # whatever the readers of several file formats raise
        log.debug("no types of %s in checkpoint %d of %s: %r", part, step, directory, error)
        return {}
    arrays: Mapping[str, Any] = flatten_dict(tree, sep="/")
    return {path: np.dtype(array.dtype) for path, array in arrays.items()}
