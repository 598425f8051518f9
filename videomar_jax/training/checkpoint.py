"""Checkpoints: what is needed to go on as if nothing had happened, in one directory per step.

A checkpoint of step n is the state after n updates. On disk it is one Orbax composite,

    DIRECTORY/n/params/       one folder for each named part of the state ("params", "ema", "opt_state", ...),
    DIRECTORY/n/ema/          a tree of arrays each, so that sampling reads the averaged weights alone
    DIRECTORY/n/progress/     a small JSON object: the data position and whatever else the loop must remember

Three promises:

1. Writing never stops training for longer than the copy to host memory, and a step appears under its name only once it
   is complete: what a killed run leaves behind carries a temporary name, is ignored, and is overwritten later.
2. What comes back equals what was saved bit by bit, in the tree and on the devices the caller describes, which need
   not be those of the run that saved it.
3. Nothing is cast, cut, padded or left out: the first array that does not fit is named before anything is read.

Every process of a run calls every method, in the same order.
"""

import json
import logging
import os
from collections.abc import Mapping
from typing import Any, TypeAlias

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, EveryNSteps, LatestN

PyTree: TypeAlias = Any
_Path: TypeAlias = tuple[str, ...]

_PROGRESS = "progress"
_LISTED = 10
_log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one run. Use it as a context manager, or call `close()`: saving goes on in the background.

    Args:
      directory: a local path or a bucket URL (`gs://...`); it is created by the first save, never by reading.
      keep_last: how many of the newest checkpoints stay.
      keep_every: steps divisible by this number stay for good; None keeps only the newest.
    """

    def __init__(self, directory: str | os.PathLike, *, keep_last: int = 3, keep_every: int | None = None):
        if keep_last < 1:
            raise ValueError(f"keep_last must be at least 1, or a run could not be resumed; got {keep_last}.")
        if keep_every is not None and keep_every < 1:
            raise ValueError(f"keep_every must be a positive number of steps, or None; got {keep_every}.")
        path = os.fspath(directory)
        path = path if "://" in path else os.path.abspath(os.path.expanduser(path))
        policies = [LatestN(keep_last)] + ([EveryNSteps(keep_every)] if keep_every else [])
        options = ocp.CheckpointManagerOptions(
            create=False,
            preservation_policy=AnyPreservationPolicy(policies),
            cleanup_tmp_directories=False,  # Orbax cleans up in a thread, which may meet a new save of the same step
        )
        self._manager = ocp.CheckpointManager(path, options=options)

    def save(self, step: int, state: Mapping[str, PyTree], progress: Mapping[str, Any]) -> None:
        """Starts writing checkpoint `step` and returns; the arrays may be donated right away.

        Args:
          state: named trees of arrays, such as {"params": ..., "ema": ..., "opt_state": ...}.
          progress: a small mapping that JSON can hold.

        A step that exists already is left as it is. Raises ValueError where `step` lies before the newest checkpoint
        (going on from an older one needs a directory of its own), TypeError where `progress` is not JSON.
        """
        if _PROGRESS in state:
            raise ValueError(f"'{_PROGRESS}' cannot name a part of the state: the progress is stored under it.")
        json.dumps(progress)  # here rather than in the writing thread, where the error would surface one save later
        if step in self.all_steps():
            _log.info("Checkpoint %d exists in %s; it stays as it is.", step, self._manager.directory)
            return
        latest = self.latest_step()
        if latest is not None and step < latest:
            raise ValueError(
                f"Checkpoint {step} would lie before the newest one, {latest}, in {self._manager.directory}. To go on "
                f"from an older step use another directory, or delete the later checkpoints first."
            )
        self._manager.directory.mkdir(parents=True, exist_ok=True)
        items = {name: ocp.args.StandardSave(tree) for name, tree in state.items()}
        items[_PROGRESS] = ocp.args.JsonSave(dict(progress))
        self._manager.save(step, args=ocp.args.Composite(**items), force=True)

    def restore(self, step: int, like: Mapping[str, PyTree]) -> tuple[dict[str, PyTree], dict[str, Any]]:
        """Reads the parts of checkpoint `step` that `like` names, and its progress; other parts are not touched.

        Args:
          like: for each part a tree of `jax.ShapeDtypeStruct` or arrays. A sharding on a leaf says where its array
            goes; without one it goes to the first device (one process only). A NumPy leaf gives a NumPy array.

        Returns:
          (state, progress): `state` has the names and tree structures of `like`.

        Raises:
          FileNotFoundError: there is no such checkpoint; the message lists those there are.
          ValueError: a part is missing, or its arrays differ from `like` in name, shape or dtype.
        """
        self.wait()
        if step not in self.all_steps():
            raise FileNotFoundError(f"There is no checkpoint {step} in {self._manager.directory}: {self._inventory()}.")
        folder = self._manager.directory / str(step)
        absent = sorted(set(like) - {part.name for part in folder.iterdir()})
        if absent:
            there = sorted(part.name for part in folder.iterdir() if part.is_dir() and part.name != _PROGRESS)
            raise ValueError(f"Checkpoint {folder} has no part {absent}; it holds {there}.")
        stored = {name: ocp.StandardCheckpointHandler().metadata(folder / name).tree for name in like}
        for name, tree in like.items():
            _check_fits(str(folder), name, _leaves(stored[name]), _leaves(tree))
        targets = {name: _target(stored[name], _leaves(tree)) for name, tree in like.items()}
        items = {name: ocp.args.StandardRestore(target) for name, target in targets.items()}
        read = self._manager.restore(step, args=ocp.args.Composite(**items, **{_PROGRESS: ocp.args.JsonRestore()}))
        return {name: _arranged_like(tree, _leaves(read[name])) for name, tree in like.items()}, read[_PROGRESS]

    def all_steps(self) -> list[int]:
        """The steps that have a checkpoint, ascending; one still being written by this run counts."""
        return sorted(self._manager.all_steps())

    def latest_step(self) -> int | None:
        """The newest of `all_steps()`, None where there is none."""
        return max(self.all_steps(), default=None)

    def wait(self) -> None:
        """Returns when everything saved so far is on disk; raises what went wrong while writing."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, then lets go of the writing threads."""
        self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _inventory(self) -> str:
        if steps := self.all_steps():
            return f"it holds {', '.join(map(str, steps))}"
        return "it holds no complete one" if self._manager.directory.exists() else "the directory does not exist"


def _leaves(tree: PyTree) -> dict[_Path, Any]:
    """The leaves by the names on the way to them, so that a tuple, a list and a saved list agree."""
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {tuple(jax.tree_util.keystr((key,), simple=True) for key in path): leaf for path, leaf in flat}


def _check_fits(folder: str, part: str, stored: dict[_Path, Any], wanted: dict[_Path, Any]) -> None:
    """Raises a ValueError that names what differs between the arrays on disk and those asked for."""

    def name(path: _Path) -> str:
        return "/".join((part, *path))

    def listed(paths: list[_Path]) -> str:
        more = f" and {len(paths) - _LISTED} more" if len(paths) > _LISTED else ""
        return ", ".join(map(name, paths[:_LISTED])) + more

    missing = [path for path in wanted if path not in stored]
    unexpected = [path for path in stored if path not in wanted]
    if missing or unexpected:
        faults = [f"it lacks {listed(missing)}"] * bool(missing)
        faults += [f"it holds unexpected {listed(unexpected)}"] * bool(unexpected)
        raise ValueError(
            f"Checkpoint {folder} does not fit: {'; '.join(faults)}. It is of another model size or, where the names "
            f"are of opt_state, of another optimizer: build what is restored with the configuration it was saved with."
        )
    for path, leaf in wanted.items():
        there = stored[path]
        if tuple(there.shape) != tuple(leaf.shape):
            raise ValueError(
                f"Checkpoint {folder} does not fit: {name(path)} has shape {tuple(there.shape)} in the checkpoint, "
                f"{tuple(leaf.shape)} here. It is of another model size: use the configuration it was saved with."
            )
        if np.dtype(there.dtype) != np.dtype(leaf.dtype):
            raise ValueError(
                f"Checkpoint {folder} does not fit: {name(path)} is {there.dtype} in the checkpoint, {leaf.dtype} "
                f"here. Ask for {there.dtype} and cast afterwards, or set the parameter dtype it was saved with."
            )


def _target(stored: PyTree, wanted: dict[_Path, Any]) -> PyTree:
    """The tree on disk with the places where its arrays are to go; it names the same leaves as `wanted`."""
    leaves, treedef = _leaves(stored), jax.tree.structure(stored)
    return jax.tree.unflatten(treedef, [_placed(wanted[path]) for path in leaves])


def _placed(leaf: Any) -> Any:
    if isinstance(leaf, np.ndarray):
        return leaf
    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
        if jax.process_count() > 1:
            raise ValueError("With several processes every leaf of `like` needs a sharding, or must be a NumPy array.")
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _arranged_like(tree: PyTree, read: dict[_Path, Any]) -> PyTree:
    return jax.tree.unflatten(jax.tree.structure(tree), [read[path] for path in _leaves(tree)])
