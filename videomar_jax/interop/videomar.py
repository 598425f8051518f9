"""The published VideoMAR weights and ours: one table (`videomar_rules`) for import and export.

The published file is a state dict of 620 tensors, bare or inside a dictionary under "model" and
"model_ema", with names that may begin with "module.". All sizes follow from the shapes. Settings
that no shape tells (the patch size, the rotary split, the text masks) are written into the header
by our export and read from there; for a published file the published values are assumed.
"""

import dataclasses
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from videomar_jax.checks import UserError, one_of
from videomar_jax.interop.formats.files import (
    TensorFile,
    TensorSpec,
    WeightFileError,
    open_tensors,
    write_tensors,
)
from videomar_jax.interop.formats.rules import (
    Slot,
    assemble,
    expected,
    exported,
    faults,
    flat,
    nested,
    uncovered,
)
from videomar_jax.interop.videomar_rules import RULES
from videomar_jax.interop.videomar_sizes import (
    HEADER_FIELDS,
    HEADER_KEY,
    SIZES_KEY,
    check_sizes,
    header_fields,
    header_text,
    infer_sizes,
    layers,
    sizes_text,
)
from videomar_jax.models.config import ModelConfig
from videomar_jax.models.params import Params, abstract_model

Shapes = dict[str, tuple[int, ...]]

_CONTAINERS = {"ema": "model_ema", "model": "model"}
"""Which set of weights is in which dictionary of a training checkpoint."""
_WRAPPERS = re.compile(r"(?:module\.|_orig_mod\.)+")
"""Prefixes that PyTorch's data parallelism and compilation put in front of names."""
_MARKS = ("z_proj.weight", "mask_token", "decoder_norm.weight", "diffloss.net.input_proj.weight")
"""Names that only a VideoMAR has."""
_OTHERS = {
    "encoder.conv_in": "a Cosmos tokenizer",
    "decoder.conv_in": "a Cosmos tokenizer",
    "quant_conv": "a Cosmos tokenizer",
    "post_quant_conv": "a Cosmos tokenizer",
    "model.layers": "a language model",
    "layers.": "a language model",
    "model.embed_tokens": "a language model",
}
"""What a file is that has a name with this prefix instead."""


class Setting(NamedTuple):
    """A model setting that no shape tells."""

    value: Any
    origin: str
    """Where the value comes from: "file" (its header), "asked for" or "assumed"."""


@dataclasses.dataclass(frozen=True)
class ImportReport:
    """What was read, and how it was interpreted."""

    path: str
    container: str
    """"bare", "model" or "model_ema"."""
    tensors: int
    parameters: int
    stored: dict[str, int]
    """The number of tensors of each stored type."""
    config: ModelConfig
    assumed: dict[str, Setting]
    """The settings that no shape tells, by field."""
    ignored: dict[str, int]
    """The number of other tensors, by the dictionary they are in."""

    def __str__(self) -> str:
        c = self.config
        types = ", ".join(f"{count} {dtype}" for dtype, count in self.stored.items())
        settings = [
            f"{field}={value} ({origin})" for field, (value, origin) in self.assumed.items()
        ]
        place = f"from the dictionary {self.container}"
        if self.container == "bare":
            place = "a bare state dict"
        lines = [
            f"{self.path}: VideoMAR, {self.parameters:,} parameters in {self.tensors} tensors "
            f"({types}), {place}",
            f"inferred: width {c.width}, depth {c.depth}, {c.num_heads} heads of {c.head_dim}, "
            f"tokens of {c.token_dim} values, text {c.text_tokens} x {c.text_width}, "
            f"{c.head} head {c.head_width} x {c.head_depth}",
            f"not in the shapes: {', '.join(settings)}",
        ]
        if self.ignored:
            others = [f"{name} ({count} tensors)" for name, count in self.ignored.items()]
            lines.append(f"ignored: {', '.join(others)}")
        return "\n".join(lines)


def parameter_shapes(config: ModelConfig) -> Shapes:
    """The shape of each of the model's parameters by its path; nothing is allocated."""
    _, params = abstract_model(config)
    return {path: tuple(leaf.shape) for path, leaf in flat(params).items()}


class _Selection(NamedTuple):
    """The tensors of a file that are the model's weights."""

    container: str
    """"bare", "model" or "model_ema"."""
    names: list[tuple[str, str]]
    """(name in the file, official name) of each."""
    ignored: dict[str, int]
    """The number of tensors in each other dictionary."""


class _Match(NamedTuple):
    """How the tensors of a file correspond to the parameters of a model."""

    report: ImportReport
    shapes: Shapes
    """Of the parameters."""
    slots: dict[str, Slot]
    """By official name."""
    found: dict[str, list[TensorSpec]]
    """By official name."""
    stored_as: dict[str, str]
    """Official name -> name in the file."""


def inspect_checkpoint(
    path: str | os.PathLike,
    *,
    weights: str = "ema",
    config_overrides: Mapping[str, Any] | None = None,
) -> ImportReport:
    """What `read_checkpoint` would read, from names, shapes and types alone.

    Arguments and errors are the same.
    """
    with open_tensors(path) as file:
        return _match(file, weights, config_overrides or {}).report


def read_checkpoint(
    path: str | os.PathLike,
    *,
    weights: str = "ema",
    config_overrides: Mapping[str, Any] | None = None,
    dtype: str | None = "float32",
    shardings: Any | Callable[[Params], Any] = None,
    place: Callable[[str, np.ndarray], Any] | None = None,
) -> tuple[ModelConfig, Params, ImportReport]:
    """Reads published (or exported) weights, one tensor at a time.

    Args:
        path: any file that `open_tensors` reads.
        weights: "ema" or "model", of the two sets in a training checkpoint's dictionary; a bare
            state dict has only one.
        config_overrides: model fields that no shape tells, or that concern running the model
            (dtype, attention, ...).
        dtype: type of the parameters; None keeps the stored ones.
        shardings: a tree like the parameters, or a function from their `jax.ShapeDtypeStruct`s to
            one; each parameter is then put on its devices as soon as it is complete. None leaves
            NumPy arrays.
        place: takes each parameter (path "a/b/c", array) as soon as it is complete, the largest
            first, and returns what the tree shall hold instead. A caller that writes parameters to
            disk here never holds all of them.
    Returns:
        (config, parameters as nested dictionaries, report)
    Raises:
        WeightFileError: the file does not hold a VideoMAR; all missing, unknown, repeated and
            misshapen tensors are named together. Or a tensor holds NaN, infinity or, in a narrower
            `dtype`, numbers that are too large for it.
        UserError: both `shardings` and `place` are given.
    """
    if shardings is not None and place is not None:
        raise UserError("Give shardings or place, not both: either says where parameters go.")
    with open_tensors(path) as file:
        match = _match(file, weights, config_overrides or {})
        dtypes = _dtypes(match.slots, match.found, dtype)
        place = place or _placement(match.shapes, dtypes, shardings)

        def read(name: str, dtype: np.dtype) -> np.ndarray:
            return file.read_finite(match.stored_as[name], dtype)

        params = assemble(match.slots, match.shapes, read, dtypes, place)
    return match.report.config, params, match.report


def _match(file: TensorFile, weights: str, overrides: Mapping[str, Any]) -> _Match:
    """How the file fills a model.

    Raises:
        WeightFileError: it does not; the text says everything that is wrong.
    """
    one_of("weights", weights, tuple(_CONTAINERS))
    selection = _select(file, weights)
    found: dict[str, list[TensorSpec]] = {}
    for stored, name in selection.names:
        found.setdefault(name, []).append(file.specs[stored])
    config, assumed = _config(file, found, overrides)
    shapes = parameter_shapes(config)
    extra = uncovered(RULES, shapes)
    if extra:
        raise WeightFileError(
            f"{file.path} cannot fill {', '.join(extra)}: published weights have no such parts."
        )
    slots = expected(RULES, shapes)
    lines = faults(slots, found)
    if lines:
        raise WeightFileError("\n  ".join([f"{file.path} does not fit VideoMAR:", *lines]))
    report = ImportReport(
        path=str(file.path),
        container=selection.container,
        tensors=len(slots),
        parameters=sum(math.prod(shape) for shape in shapes.values()),
        stored=dict(Counter(str(specs[0].dtype) for specs in found.values())),
        config=config,
        assumed=assumed,
        ignored=selection.ignored,
    )
    stored_as = {name: stored for stored, name in selection.names}
    return _Match(report, shapes, slots, found, stored_as)


def _official(name: str) -> str:
    """The name without the prefixes of wrapped modules, of which there may be several."""
    wrapped = _WRAPPERS.match(name)
    return name[wrapped.end() :] if wrapped else name


def _select(file: TensorFile, weights: str) -> _Selection:
    """The weights that were asked for.

    Raises:
        WeightFileError: the file does not hold them, or is something else.
    """
    groups: dict[str, list[tuple[str, str]]] = {}
    for name in file:
        top, _, rest = name.partition(".")
        groups.setdefault(top, []).append((name, _official(rest)))
    present = []
    for container in _CONTAINERS.values():
        if any(name in _MARKS for _, name in groups.get(container, ())):
            present.append(container)
    if present:
        wanted = _CONTAINERS[weights]
        if wanted not in present:
            (other,) = set(_CONTAINERS) - {weights}
            raise WeightFileError(
                f"{file.path} holds {present[0]!r}, but no {wanted!r}: ask for the weights "
                f"{other!r}."
            )
        ignored = {top: len(names) for top, names in groups.items() if top != wanted}
        _check_alike(file, {container: groups[container] for container in present})
        return _Selection(wanted, groups[wanted], ignored)
    names = [(name, _official(name)) for name in file]
    official = [name for _, name in names]
    if not any(name in _MARKS or name.startswith("decoder_blocks.") for name in official):
        raise WeightFileError(f"{file.path} does not hold VideoMAR's weights: {_guess(official)}.")
    return _Selection("bare", names, {})


def _check_alike(file: TensorFile, sets: Mapping[str, Sequence[tuple[str, str]]]) -> None:
    """Raises a WeightFileError if one of two sets of weights has fewer blocks than the other."""
    for prefix in ("decoder_blocks", "diffloss.net.res_blocks"):
        counts = {}
        for container, names in sets.items():
            counts[container] = layers({official: None for _, official in names}, prefix)
        if len(set(counts.values())) > 1:
            found = ", ".join(f"{count} in {container!r}" for container, count in counts.items())
            raise WeightFileError(
                f"{file.path} is incomplete: of {prefix} there are {found}. Take another copy."
            )


def _guess(names: Sequence[str]) -> str:
    """What a file with tensors of these names seems to be."""
    for prefix, kind in _OTHERS.items():
        if any(name.startswith(prefix) for name in names):
            return f"it looks like {kind}"
    return f"it holds {', '.join(names[:3]) or 'no tensor at all'}"


def _config(
    file: TensorFile, found: Mapping[str, Sequence[TensorSpec]], overrides: Mapping[str, Any]
) -> tuple[ModelConfig, dict[str, Setting]]:
    """The config, and where those of its settings come from that no shape tells."""
    try:
        given = header_fields(file.metadata)
        settings = given | dict(overrides)
        sizes = infer_sizes(
            {name: specs[0].shape for name, specs in found.items()}, settings.get("patch_size", 1)
        )
        if sizes.problems:
            # The depths alone tell which names there must be, so all faults are found at once.
            slots = expected(RULES, parameter_shapes(ModelConfig.from_dict(sizes.fields)))
            lines = [*faults(slots, found, shapes=False), *sizes.problems]
            raise UserError("\n  ".join(["", *lines]))
        config = ModelConfig.from_dict(sizes.fields | settings)
        check_sizes(file.metadata, config)
    except ValueError as error:
        raise WeightFileError(f"{file.path} does not fit VideoMAR: {error}") from error
    assumed = {}
    for field in HEADER_FIELDS:
        origin = "assumed"
        if field in overrides:
            origin = "asked for"
        elif field in given:
            origin = "file"
        assumed[field] = Setting(getattr(config, field), origin)
    return config, assumed


def _dtypes(
    slots: Mapping[str, Slot], found: Mapping[str, Sequence[TensorSpec]], dtype: str | None
) -> dict[str, np.dtype]:
    """The type of each parameter; where the stored types of a stack differ, the one that holds
    all."""
    out: dict[str, np.dtype] = {}
    for name, slot in slots.items():
        wanted = found[name][0].dtype if dtype is None else np.dtype(jax.numpy.dtype(dtype))
        path = slot.rule.ours
        out[path] = np.promote_types(out[path], wanted) if path in out else wanted
    return out


def _placement(
    shapes: Shapes, dtypes: Mapping[str, np.dtype], shardings: Any
) -> Callable[[str, np.ndarray], Any]:
    """What is done with a finished parameter; `shardings` as for `read_checkpoint`."""
    if shardings is None:
        return lambda path, array: array
    if callable(shardings):
        structs = {}
        for path, shape in shapes.items():
            structs[path] = jax.ShapeDtypeStruct(shape, dtypes[path])
        shardings = shardings(nested(structs))
    table = flat(shardings)
    missing = sorted(set(shapes) - set(table))
    if missing:
        raise UserError(f"No sharding is given for {', '.join(missing)}.")

    def place(path: str, array: np.ndarray) -> jax.Array:
        placed = jax.make_array_from_callback(array.shape, table[path], lambda index: array[index])
        return placed.block_until_ready()

    return place


def write_checkpoint(
    params: Params,
    config: ModelConfig,
    path: str | os.PathLike,
    *,
    container: str = "bare",
    drop_regression: bool = False,
    overwrite: bool = False,
) -> None:
    """Writes parameters under the published names, one tensor at a time and in their own type.

    Args:
        params: as `read_checkpoint` returns them, or as they are trained.
        path: its ending chooses the format: .safetensors, or .pth, which torch.load reads.
        container: "bare" for a state dict, "ema" for a dictionary that holds it as "model_ema", as
            published evaluation code expects it.
        drop_regression: leave out the auxiliary readout of training, which sampling does not use.
    Raises:
        UserError: the model has parts that the published one lacks, or parameters that do not fit
            its config.
        FileExistsError: the file exists and `overwrite` is False. The file appears only when it is
            complete.
    """
    one_of("container", container, ("bare", "ema"))
    leaves, shapes = flat(params), parameter_shapes(config)
    given = {path: tuple(leaf.shape) for path, leaf in leaves.items()}
    wrong = [path for path in given | shapes if given.get(path) != shapes.get(path)]
    if wrong:
        raise UserError(f"These parameters do not fit the config: {', '.join(sorted(wrong))}.")
    extra = uncovered(RULES, shapes)
    readout = []
    if not config.residual:
        # Of a residual the readout is the mean, which sampling does use.
        readout = [path for path in extra if path.startswith("regression/")]
    refused = [path for path in extra if not (drop_regression and path in readout)]
    if refused:
        hint = ""
        if refused == readout:
            hint = (
                "; drop_regression=True (--drop_regression of the command) leaves out the readout"
            )
        raise UserError(
            f"The published model has no {', '.join(refused)}; such a model cannot be "
            f"exported{hint}."
        )
    slots = expected(RULES, shapes)
    specs, make = exported(slots, leaves)
    write_tensors(
        path,
        specs,
        make,
        container="model_ema" if container == "ema" else None,
        metadata={"format": "pt", HEADER_KEY: header_text(config), SIZES_KEY: sizes_text(config)},
        overwrite=overwrite,
    )
