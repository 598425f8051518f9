"""Weights of LPIPS: a network of torchvision, and the weights of the channels from `lpips` 0.1.4.

    NETWORK             its file             the channels' weights, in the package's weights/v0.1
    alex (AlexNet)      alexnet-*.pth        alex.pth
    vgg (VGG-16)        vgg16-*.pth          vgg.pth

Both lie in one folder. Nothing in a file is executed (`interop.formats`). Every parameter must be
filled by one tensor of its shape; of torchvision's file the layers that classify are not read, and
any other tensor is an error. All faults are reported together.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from videomar_jax.checks import UserError, one_of
from videomar_jax.evaluation.lpips import ARCHITECTURES, LPIPS, Architecture, NetworkName
from videomar_jax.interop.formats.files import WeightFileError, open_tensors
from videomar_jax.interop.formats.rules import Rule, Transform, expected, faults, nested

_KERNEL = Transform(lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1))
"""PyTorch's [out, in, rows, columns] and our [rows, columns, in, out]."""
_CHANNELS = Transform(lambda x: x.reshape(-1), lambda x: x.reshape(1, -1, 1, 1))
"""The kernel [1, C, 1, 1] of a convolution with one output, and our weights of C channels."""


class Source(NamedTuple):
    """The two files of a network."""

    backbone: str
    """Pattern of the name of torchvision's file."""
    published: str
    """Where that file is published."""
    heads: str
    """Name of the file with the weights of the channels."""


SOURCES: dict[NetworkName, Source] = {
    "alex": Source(
        "alexnet-*.pth",
        "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
        "alex.pth",
    ),
    "vgg": Source(
        "vgg16-*.pth",
        "https://download.pytorch.org/models/vgg16-397923af.pth",
        "vgg.pth",
    ),
}
"""The files of each network."""


def find_weights(folder: str | os.PathLike, network: NetworkName) -> tuple[Path, Path]:
    """(torchvision's file, the file with the weights of the channels) in a folder.

    Raises:
        UserError: the folder or one of the files is missing, or several could be meant; it says
            where they are to be had.
    """
    one_of("lpips_network", network, SOURCES)
    folder, source = Path(folder), SOURCES[network]
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}. {_where(network)}")
    backbones = sorted(folder.glob(source.backbone))
    heads = folder / source.heads
    if len(backbones) > 1:
        names = ", ".join(file.name for file in backbones)
        raise UserError(f"{folder} holds {names}: leave the one that LPIPS should take.")
    missing = [] if backbones else [Path(source.published).name]
    if not heads.is_file():
        missing.append(source.heads)
    if missing:
        raise UserError(f"{folder} lacks {' and '.join(missing)}. {_where(network)}")
    return backbones[0], heads


def _where(network: NetworkName) -> str:
    source = SOURCES[network]
    return (
        f"LPIPS with {ARCHITECTURES[network].title} takes a folder with two files: "
        f"{source.published} and {source.heads}, which is lpips/weights/v0.1/{source.heads} of "
        f"the package lpips 0.1.4 on PyPI. docs/evaluation.md says how to get them."
    )


def load_lpips(folder: str | os.PathLike, network: NetworkName = "alex") -> LPIPS:
    """LPIPS with the weights in a folder.

    Raises:
        UserError: a file is missing; it says where it is to be had.
        WeightFileError: a file is damaged, or one of another network.
    """
    backbone, heads = find_weights(folder, network)
    architecture = ARCHITECTURES[network]
    arrays = _read(backbone, *_backbone_rules(architecture), ignored="classifier.")
    arrays |= _read(heads, *_head_rules(architecture))
    params = nested({path: jnp.asarray(array) for path, array in arrays.items()})
    return LPIPS(network=network, params=params)


Shapes = dict[str, tuple[int, ...]]


def _backbone_rules(architecture: Architecture) -> tuple[list[Rule], Shapes]:
    """The rules of torchvision's file, and the shapes of our parameters."""
    rules, shapes = [], {}
    for layer in architecture.layers:
        ours, theirs = f"conv_{layer.number}", f"features.{layer.number}"
        rules.append(Rule(f"{theirs}.weight", f"{ours}/kernel", _KERNEL))
        rules.append(Rule(f"{theirs}.bias", f"{ours}/bias"))
        shapes[f"{ours}/kernel"] = (layer.size, layer.size, layer.inputs, layer.outputs)
        shapes[f"{ours}/bias"] = (layer.outputs,)
    return rules, shapes


def _head_rules(architecture: Architecture) -> tuple[list[Rule], Shapes]:
    """The rules of the file with the weights of the channels, and the shapes of our parameters."""
    rules, shapes = [], {}
    for number, width in enumerate(architecture.widths):
        rules.append(Rule(f"lin{number}.model.1.weight", f"head_{number}", _CHANNELS))
        shapes[f"head_{number}"] = (width,)
    return rules, shapes


def _read(
    path: Path, rules: Sequence[Rule], shapes: Shapes, ignored: str | None = None
) -> dict[str, np.ndarray]:
    """Our arrays by flat path, once every tensor has its place.

    ignored: how the names of tensors begin that are not read; None: there are none.
    """
    with open_tensors(path) as file:
        slots = expected(rules, shapes)
        found = {}
        for name, spec in file.specs.items():
            if ignored is None or not name.startswith(ignored):
                found[name] = [spec]
        wrong = faults(slots, found)
        if wrong:
            raise WeightFileError(f"{path} does not hold what LPIPS needs: " + "; ".join(wrong))
        arrays = {}
        for name, slot in slots.items():
            array = file.read_finite(name, np.dtype(np.float32))
            arrays[slot.rule.ours] = np.ascontiguousarray(slot.rule.transform.ours(array))
        return arrays
