"""Tables that say where each tensor of a foreign file belongs, used for import and export.

One `Rule` is one kind of key: the foreign name, the path of our parameter, and how the axes of the
array are rearranged. "{}" in the foreign name is the number of a layer; such tensors are stacked
along the leading axis of our parameter. Everything else follows from the table and the shapes of
our parameters: which tensors a file must hold and of what shape (`expected`), what is wrong with a
given file (`faults`), our parameters (`assemble`), and the tensors of an export (`exported`).
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from videomar_jax.interop.formats.base import TensorSpec

_LISTED = 12
"""Names that a message lists."""


@dataclasses.dataclass(frozen=True)
class Transform:
    """How a foreign array becomes ours, and back; neither copies."""

    ours: Callable[[Any], Any]
    theirs: Callable[[Any], Any]


PLAIN = Transform(lambda x: x, lambda x: x)
TRANSPOSE = Transform(lambda x: x.T, lambda x: x.T)
"""PyTorch's linear weight [out, in] and our kernel [in, out]."""
ONE_AXIS = Transform(lambda x: x[0], lambda x: x[None])
"""Drops a leading axis of length 1."""
TWO_AXES = Transform(lambda x: x[0, 0], lambda x: x[None, None])
"""Drops two of them."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """One kind of key."""

    theirs: str
    """The foreign name; "{}" is the number of a layer."""
    ours: str
    """The path of our parameter, joined with "/"."""
    transform: Transform = PLAIN

    @property
    def stacked(self) -> bool:
        """Whether the foreign file has one tensor for each layer."""
        return "{}" in self.theirs


@dataclasses.dataclass(frozen=True)
class Slot:
    """One tensor of the foreign file."""

    rule: Rule
    layer: int | None
    """Its index in our stacked parameter; None if that is not stacked."""
    shape: tuple[int, ...]
    """The shape that it must have in the file."""


def flat(params: Mapping[str, Any]) -> dict[str, Any]:
    """{"a/b/c": leaf} of nested dictionaries."""
    return flatten_dict(params, sep="/")


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flat`."""
    return unflatten_dict(dict(leaves), sep="/")


def expected(rules: Sequence[Rule], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Slot]:
    """Every tensor, by foreign name, that a file must hold for parameters of these shapes (by
    flat path)."""
    slots: dict[str, Slot] = {}
    for rule in rules:
        shape = shapes[rule.ours]
        layers: Iterable[int | None] = range(shape[0]) if rule.stacked else (None,)
        single = shape[1:] if rule.stacked else shape
        # A view of one number: no memory is needed to learn the shape.
        example = np.broadcast_to(np.empty(()), single)
        foreign_shape = rule.transform.theirs(example).shape
        for layer in layers:
            slots[rule.theirs.format(layer)] = Slot(rule, layer, foreign_shape)
    return slots


def uncovered(rules: Sequence[Rule], shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Our parameters that no rule fills."""
    return sorted(set(shapes) - {rule.ours for rule in rules})


def faults(
    slots: Mapping[str, Slot], found: Mapping[str, Sequence[TensorSpec]], *, shapes: bool = True
) -> list[str]:
    """What is wrong with a file: one line for each sort of fault, none if all is well.

    Args:
        slots: what the file must hold.
        found: what it holds; a name that occurs repeatedly has several entries.
        shapes: compare shapes; False where the sizes are not known.
    """
    wrong_shape, not_floating = [], []
    for name, slot in slots.items():
        if name not in found:
            continue
        spec = found[name][0]
        if shapes and spec.shape != slot.shape:
            wrong_shape.append(f"{name} {list(spec.shape)} instead of {list(slot.shape)}")
        if not _is_floating(spec.dtype):
            not_floating.append(f"{name} ({spec.dtype})")
    sorts = {
        "missing": [name for name in slots if name not in found],
        "unknown": [name for name in found if name not in slots],
        "there more than once": [name for name in found if len(found[name]) > 1],
        "of another shape": wrong_shape,
        "not of a floating type": not_floating,
    }
    return [listed(sort, names) for sort, names in sorts.items() if names]


def listed(sort: str, names: Sequence[str]) -> str:
    """A line such as "3 missing: a, b, c", cut after a dozen names."""
    more = f", and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"{len(names)} {sort}: {', '.join(names[:_LISTED])}{more}"


def _is_floating(dtype: np.dtype) -> bool:
    # The types of ml_dtypes are of kind "V" for NumPy.
    return dtype.kind == "f" or dtype.name.startswith(("bfloat", "float"))


def assemble(
    slots: Mapping[str, Slot],
    shapes: Mapping[str, tuple[int, ...]],
    read: Callable[[str, np.dtype], np.ndarray],
    dtypes: Mapping[str, np.dtype],
    place: Callable[[str, np.ndarray], Any],
) -> dict[str, Any]:
    """Our parameters as nested dictionaries, each allocated once and filled layer by layer.

    Args:
        slots: the tensors of the file.
        shapes: of our parameters, by flat path.
        read: reads a foreign tensor by its name in `slots`, in the type of our parameter.
        dtypes: the type of each parameter, by flat path.
        place: takes a path and the finished array; returns what the result holds (the array, or its
            copy on a device).
    """
    names: dict[str, list[str]] = {}
    for name, slot in slots.items():
        names.setdefault(slot.rule.ours, []).append(name)
    out = {}
    # The largest first: while a parameter is both here and on its device, little else is in memory.
    for path in sorted(names, key=lambda path: -math.prod(shapes[path])):
        array = np.empty(shapes[path], dtypes[path])
        for name in names[path]:
            slot = slots[name]
            index = ... if slot.layer is None else slot.layer
            array[index] = slot.rule.transform.ours(read(name, dtypes[path]))
        out[path] = place(path, array)
    return nested({path: out[path] for path in shapes if path in out})


def exported(
    slots: Mapping[str, Slot], params: Mapping[str, Any]
) -> tuple[dict[str, TensorSpec], Callable[[str], np.ndarray]]:
    """(shape and type of every foreign tensor, a function that makes the tensor of a name).

    params: our parameters by flat path.
    """
    specs = {}
    for name, slot in slots.items():
        specs[name] = TensorSpec(slot.shape, np.dtype(params[slot.rule.ours].dtype))

    def make(name: str) -> np.ndarray:
        slot = slots[name]
        value = params[slot.rule.ours]
        if slot.layer is not None:
            value = value[slot.layer]
        return slot.rule.transform.theirs(np.asarray(value))

    return specs, make
