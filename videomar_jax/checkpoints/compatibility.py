"""What lies in a checkpoint held against what is asked for: the same names, shapes and dtypes, or
an error that says which array differs. Nothing is read for it but the description that stands
beside the arrays."""

from typing import Any, TypeAlias

import jax
import numpy as np

PyTree: TypeAlias = Any
Path: TypeAlias = tuple[str, ...]
_LISTED = 10


class Unfit(ValueError):
    """A whole checkpoint that is not what was asked for."""


def leaves(tree: PyTree) -> dict[Path, Any]:
    """The leaves by the names on the way to them, so that a tuple, a list and a saved list
    agree."""
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {
        tuple(jax.tree_util.keystr((key,), simple=True) for key in path): leaf
        for path, leaf in flat
    }


def check_fits(folder: str, part: str, stored: dict[Path, Any], wanted: dict[Path, Any]) -> None:
    """Raises an error that names what differs between the arrays on disk and those asked for."""

    def name(path: Path) -> str:
        return "/".join((part, *path))

    def listed(paths: list[Path]) -> str:
        more = f" and {len(paths) - _LISTED} more" if len(paths) > _LISTED else ""
        return ", ".join(map(name, paths[:_LISTED])) + more

    missing = [path for path in wanted if path not in stored]
    unexpected = [path for path in stored if path not in wanted]
    if missing or unexpected:
        faults = [f"it lacks {listed(missing)}"] * bool(missing)
        faults += [f"it holds unexpected {listed(unexpected)}"] * bool(unexpected)
        raise Unfit(
            f"Checkpoint {folder} does not fit: {'; '.join(faults)}. It is of another model size or, where the names "
            f"are of opt_state, of another optimizer: build what is restored with the configuration it was saved with."
        )
    for path, leaf in wanted.items():
        there = stored[path]
        if tuple(there.shape) != tuple(leaf.shape):
            raise Unfit(
                f"Checkpoint {folder} does not fit: {name(path)} has shape {tuple(there.shape)} in the checkpoint, "
                f"{tuple(leaf.shape)} here. It is of another model size: use the configuration it was saved with."
            )
        if np.dtype(there.dtype) != np.dtype(leaf.dtype):
            raise Unfit(
                f"Checkpoint {folder} does not fit: {name(path)} is {there.dtype} in the checkpoint, {leaf.dtype} "
                f"here. Ask for {there.dtype} and cast afterwards, or set the parameter dtype it was saved with."
            )


def target(stored: PyTree, wanted: dict[Path, Any]) -> PyTree:
    """The tree on disk with the places where its arrays are to go; it names the same leaves as
    `wanted`."""
    return jax.tree.unflatten(
        jax.tree.structure(stored), [_placed(wanted[path]) for path in leaves(stored)]
    )


def _placed(leaf: Any) -> Any:
    if isinstance(leaf, np.ndarray):
        return leaf
    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
        if jax.process_count() > 1:
            raise ValueError(
                "With several processes every leaf of `like` needs a sharding, or must be a NumPy array."
            )
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def arranged_like(tree: PyTree, read: dict[Path, Any]) -> PyTree:
    """What was read, in the structure of `tree`."""
    return jax.tree.unflatten(jax.tree.structure(tree), [read[path] for path in leaves(tree)])
