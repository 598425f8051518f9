"""A table that says where each tensor of a foreign file goes, read in both directions.

One `Rule` is a kind of key: the foreign name, our parameter's path, and how the array is turned.
    "{}" in the foreign
name is the number of a layer; such tensors are stacked along the leading axis of our parameter.
From the table and the
shapes of our parameters follows everything else: which tensors a file must hold and of what shape
    (`expected`), what
is wrong with the one at hand (`faults`), our parameters (`assemble`), and the tensors of an export
(`exported`).
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from videomar_jax.interop.formats.base import TensorSpec

_LISTED = 12


@dataclasses.dataclass(frozen=True)
class Transform:
    """How a foreign array becomes ours, and back; both only change the view."""

    ours: Callable[[Any], Any]
    theirs: Callable[[Any], Any]


PLAIN = Transform(lambda x: x, lambda x: x)
TRANSPOSE = Transform(
    lambda x: x.T, lambda x: x.T
)  # PyTorch's linear weight [out, in], our kernel [in, out]
ONE_AXIS = Transform(lambda x: x[0], lambda x: x[None])  # drops a leading axis of length 1
TWO_AXES = Transform(lambda x: x[0, 0], lambda x: x[None, None])


@dataclasses.dataclass(frozen=True)
class Rule:
    """One kind of key."""

    theirs: str
    ours: str  # the path, joined with "/"
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
    shape: tuple[int, ...]


def flat(params: Mapping[str, Any]) -> dict[str, Any]:
    """{"a/b/c": leaf} of nested dictionaries."""
    return flatten_dict(params, sep="/")


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flat`."""
    return unflatten_dict(dict(leaves), sep="/")


def expected(rules: Sequence[Rule], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Slot]:
    """Every tensor that the foreign file must hold for parameters of these (flat) shapes."""
    slots: dict[str, Slot] = {}
    for rule in rules:
        shape = shapes[rule.ours]
        layers: Iterable[int | None] = range(shape[0]) if rule.stacked else (None,)
        single = shape[1:] if rule.stacked else shape
        theirs = rule.transform.theirs(np.broadcast_to(np.empty(()), single)).shape
        for layer in layers:
            slots[rule.theirs.format(layer)] = Slot(rule, layer, theirs)
    return slots


def uncovered(rules: Sequence[Rule], shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Our parameters that no rule fills."""
    return sorted(set(shapes) - {rule.ours for rule in rules})


def faults(
    slots: Mapping[str, Slot], found: Mapping[str, Sequence[TensorSpec]], *, shapes: bool = True
) -> list[str]:
    """What is wrong with a file, one line for each sort of fault; `found` has several entries for a
    repeated name.

    `shapes=False` when the sizes are not known: names and types only.
    """
    shared = [name for name in slots if name in found]
    wrong = [
        f"{name} {list(found[name][0].shape)} instead of {list(slots[name].shape)}"
        for name in shared
        if shapes and found[name][0].shape != slots[name].shape
    ]
    not_real = [
        f"{name} ({found[name][0].dtype})" for name in shared if not _is_real(found[name][0].dtype)
    ]
    sorts = {
        "missing": [name for name in slots if name not in found],
        "unknown": [name for name in found if name not in slots],
        "there more than once": [name for name in found if len(found[name]) > 1],
        "of another shape": wrong,
        "not of a floating type": not_real,
    }
    return [listed(sort, names) for sort, names in sorts.items() if names]


def listed(sort: str, names: Sequence[str]) -> str:
    """ "3 missing: a, b, c", cut after a dozen names."""
    more = f", and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"{len(names)} {sort}: {', '.join(names[:_LISTED])}{more}"


def _is_real(dtype: np.dtype) -> bool:
    return dtype.kind == "f" or dtype.name.startswith(("bfloat", "float"))


def assemble(
    slots: Mapping[str, Slot],
    shapes: Mapping[str, tuple[int, ...]],
    read: Callable[[str], np.ndarray],
    dtypes: Mapping[str, np.dtype],
    place: Callable[[str, np.ndarray], Any],
) -> dict[str, Any]:
    """Our parameters, each allocated once and filled layer by layer, the largest first: then the
    moment at which a parameter exists here and on the device comes while little else is in memory.

    Args:
        read: reads a foreign tensor by its name in `slots`.
        dtypes: the type of each parameter, by flat path.
        place: takes a path and the finished array, returns what the tree holds (the array, or its
            copy on a device).
    """
    names: dict[str, list[str]] = {}
    for name, slot in slots.items():
        names.setdefault(slot.rule.ours, []).append(name)
    out = {}
    for path in sorted(names, key=lambda path: -int(np.prod(shapes[path], dtype=np.int64))):
        array = np.empty(shapes[path], dtypes[path])
        for name in names[path]:
            slot = slots[name]
            array[... if slot.layer is None else slot.layer] = slot.rule.transform.ours(read(name))
        out[path] = place(path, array)
    return nested({path: out[path] for path in shapes if path in out})


def exported(
    slots: Mapping[str, Slot], params: Mapping[str, Any]
) -> tuple[dict[str, TensorSpec], Callable[[str], np.ndarray]]:
    """(shape and type of every foreign tensor, a function that makes one of them) from flat
    parameters."""
    specs = {
        name: TensorSpec(slot.shape, np.dtype(params[slot.rule.ours].dtype))
        for name, slot in slots.items()
    }

    def make(name: str) -> np.ndarray:
        slot = slots[name]
        value = params[slot.rule.ours]
        return slot.rule.transform.theirs(
            np.asarray(value if slot.layer is None else value[slot.layer])
        )

    return specs, make
