"""Comparing what a checkpoint holds with what is asked for.

Names, shapes and dtypes must agree; an error names the array that differs. Only the description
beside the arrays is read for it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import jax
import numpy as np

from videomar_jax.checks import UserError

PyTree: TypeAlias = Any
Path: TypeAlias = tuple[str, ...]
_LISTED = 10
"""How many names a message lists at most."""


class CheckpointMismatch(UserError):
    """A checkpoint is intact, but not what was asked for."""


def leaves(tree: PyTree) -> dict[Path, Any]:
    """The leaves by the names on the way to them; a tuple, a list and a saved list agree."""
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {
        tuple(jax.tree_util.keystr((key,), simple=True) for key in path): leaf
        for path, leaf in flat
    }


def check_compatible(
    folder: str, part: str, stored: Mapping[Path, Any], wanted: Mapping[Path, Any]
) -> None:
    """Checks that the arrays on disk are those asked for.

    Args:
        folder, part: where the arrays are stored, for the message.
        stored, wanted: what has a shape and a dtype, by path (`leaves`).
    Raises:
        CheckpointMismatch: names, shapes or dtypes differ; the text says which.
    """
    prefix = f"Checkpoint {folder} does not fit"
    missing = [path for path in wanted if path not in stored]
    unexpected = [path for path in stored if path not in wanted]
    faults = []
    if missing:
        faults.append(f"it lacks {_listed(part, missing)}")
    if unexpected:
        faults.append(f"it holds unexpected {_listed(part, unexpected)}")
    if faults:
        raise CheckpointMismatch(
            f"{prefix}: {'; '.join(faults)}. It is of another model size or, if the names are of "
            f"opt_state, of another optimizer: build what is restored with the configuration it "
            f"was saved with."
        )
    for path, leaf in wanted.items():
        found = stored[path]
        name = "/".join((part, *path))
        if tuple(found.shape) != tuple(leaf.shape):
            raise CheckpointMismatch(
                f"{prefix}: {name} has shape {tuple(found.shape)} in the checkpoint, "
                f"{tuple(leaf.shape)} here. It is of another model size: use the configuration it "
                f"was saved with."
            )
        if np.dtype(found.dtype) != np.dtype(leaf.dtype):
            raise CheckpointMismatch(
                f"{prefix}: {name} is {found.dtype} in the checkpoint, {leaf.dtype} here. Ask for "
                f"{found.dtype} and cast afterwards, or set the parameter dtype it was saved with."
            )


def restore_target(stored: PyTree, wanted: Mapping[Path, Any]) -> PyTree:
    """The tree on disk, with descriptions of where its arrays are to go.

    Args:
        stored: the tree of a checkpoint's description; it names the same leaves as `wanted`.
        wanted: shapes, arrays or NumPy arrays by path.
    """
    targets = [_leaf_target(wanted[path]) for path in leaves(stored)]
    return jax.tree.unflatten(jax.tree.structure(stored), targets)


def arrange_like(tree: PyTree, read: Mapping[Path, Any]) -> PyTree:
    """What was read, in the structure of `tree`."""
    return jax.tree.unflatten(jax.tree.structure(tree), [read[path] for path in leaves(tree)])


def _listed(part: str, paths: Sequence[Path]) -> str:
    names = ", ".join("/".join((part, *path)) for path in paths[:_LISTED])
    more = len(paths) - _LISTED
    return f"{names} and {more} more" if more > 0 else names


def _leaf_target(leaf: Any) -> Any:
    if isinstance(leaf, np.ndarray):
        return leaf
    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
        if jax.process_count() > 1:
            raise ValueError(
                "With several processes every leaf of `like` needs a sharding, or must be a NumPy "
                "array."
            )
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
