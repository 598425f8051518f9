"""The published VideoMAR weights and ours: one table, read as an import and as an export.

The published file is a state dict of 620 tensors, bare or inside a dictionary under "model" and
"model_ema", names perhaps prefixed "module.". All sizes follow from the shapes. What no shape tells
(the patch size, the rotary split, the text masks) is written into the header by our export, taken
from there, and else assumed to be as published.
"""

import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

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
    header_fields,
    header_text,
    infer_sizes,
)
from videomar_jax.models.config import ModelConfig
from videomar_jax.models.videomar import VideoMAR

Params = dict[str, Any]
Shapes = dict[str, tuple[int, ...]]


_WRAPPERS = ("module.", "_orig_mod.")
_MARKS = ("z_proj.weight", "mask_token", "decoder_norm.weight", "diffloss.net.input_proj.weight")
_OTHERS = {
    "encoder.conv_in": "a Cosmos tokenizer",
    "decoder.conv_in": "a Cosmos tokenizer",
    "quant_conv": "a Cosmos tokenizer",
    "post_quant_conv": "a Cosmos tokenizer",
    "model.layers": "a language model",
    "layers.": "a language model",
    "model.embed_tokens": "a language model",
}


@dataclasses.dataclass(frozen=True)
class ImportReport:
    """What was read, and what it was taken for."""

    path: str
    container: str  # "bare", "model" or "model_ema"
    tensors: int
    parameters: int
    stored: dict[str, int]  # tensors of each stored type
    config: ModelConfig
    assumed: dict[
        str, tuple[Any, str]
    ]  # fields that no shape tells: value, and "file", "asked for" or "assumed"
    ignored: dict[str, int]  # tensors beside the weights, by the dictionary they stand in

    def __str__(self) -> str:
        c = self.config
        types = ", ".join(f"{count} {dtype}" for dtype, count in self.stored.items())
        lines = [
            f"{self.path}: VideoMAR, {self.parameters:,} parameters in {self.tensors} tensors ({types}), "
            f"{'a bare state dict' if self.container == 'bare' else 'from the dictionary ' + self.container}",
            f"inferred: width {c.width}, depth {c.depth}, {c.num_heads} heads of {c.head_dim}, tokens of {c.token_dim} "
            f"values, text {c.text_tokens} x {c.text_width}, {c.head} head {c.head_width} x {c.head_depth}",
            "not in the shapes: "
            + ", ".join(f"{k}={v} ({how})" for k, (v, how) in self.assumed.items()),
        ]
        if self.ignored:
            lines.append(
                "left aside: " + ", ".join(f"{k} ({n} tensors)" for k, n in self.ignored.items())
            )
        return "\n".join(lines)


def parameter_shapes(config: ModelConfig) -> Shapes:
    """The shape of each of the model's parameters by its path, without allocating any."""
    model = nnx.eval_shape(lambda: VideoMAR(config, rngs=nnx.Rngs(0)))
    return {
        path: tuple(leaf.shape) for path, leaf in flat(nnx.to_pure_dict(nnx.state(model))).items()
    }


class _Match(NamedTuple):
    """How the tensors of a file and the parameters of a model belong together."""

    report: ImportReport
    shapes: Shapes  # of the parameters
    slots: dict[str, Slot]  # by official name
    found: dict[str, list[TensorSpec]]  # likewise
    stored_as: dict[str, str]  # official name: name in the file


def inspect_checkpoint(
    path: str | os.PathLike,
    *,
    weights: str = "ema",
    config_overrides: Mapping[str, Any] | None = None,
) -> ImportReport:
    """What `read_checkpoint` will find, from names, shapes and types alone; arguments and errors
    are the same."""
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
            state dict has one.
        config_overrides: model fields that no shape tells, or that are a matter of running (dtype,
            attention, ...).
        dtype: type of the parameters; None keeps the stored ones.
        shardings: a tree like the parameters, or a function from their `jax.ShapeDtypeStruct`s to
            one; each parameter is then put on its devices as soon as it is complete. None leaves
            numpy arrays.
        place: takes each parameter ("a/b/c", array) as soon as it is complete, the largest first,
            and returns what
            the tree shall hold in its stead: who writes parameters down as they come never holds
                them all.
    Returns:
        (config, parameters as nested dictionaries, report)
    Raises:
        WeightFileError: not such a file; all missing, unknown, repeated and misshapen tensors are
            named together.
        ValueError: both `shardings` and `place` are given.
    """
    if shardings is not None and place is not None:
        raise ValueError("Give shardings or place, not both: either says where parameters go.")
    with open_tensors(path) as file:
        match = _match(file, weights, config_overrides or {})
        dtypes = _dtypes(match.slots, match.found, dtype)
        place = place or _placement(match.shapes, dtypes, shardings)
        params = assemble(
            match.slots, match.shapes, lambda name: file[match.stored_as[name]], dtypes, place
        )
    return match.report.config, params, match.report


def _match(file: TensorFile, weights: str, overrides: Mapping[str, Any]) -> _Match:
    """Finds out what the file holds, or raises a WeightFileError that says everything that is wrong
    with it."""
    if weights not in ("ema", "model"):
        raise ValueError(f"weights is {weights!r}; it may be 'ema' or 'model'.")
    container, names, ignored = _select(file, weights)
    found: dict[str, list[TensorSpec]] = {}
    for stored, name in names:
        found.setdefault(name, []).append(file.specs[stored])
    config, assumed = _config(file, found, overrides)
    shapes = parameter_shapes(config)
    if extra := uncovered(RULES, shapes):
        raise WeightFileError(
            f"{file.path} cannot fill {', '.join(extra)}: published weights have no such parts."
        )
    slots = expected(RULES, shapes)
    if lines := faults(slots, found):
        raise WeightFileError("\n  ".join([f"{file.path} does not fit VideoMAR:", *lines]))
    types = dict(Counter(str(specs[0].dtype) for specs in found.values()))
    count = sum(int(np.prod(shape, dtype=np.int64)) for shape in shapes.values())
    report = ImportReport(
        str(file.path), container, len(slots), count, types, config, assumed, ignored
    )
    return _Match(report, shapes, slots, found, {name: stored for stored, name in names})


def _select(file: TensorFile, weights: str) -> tuple[str, list[tuple[str, str]], dict[str, int]]:
    """(container, [(name in the file, official name)], number of tensors left aside in each other
    container)."""

    def official(name: str) -> str:
        while prefix := next((p for p in _WRAPPERS if name.startswith(p)), ""):
            name = name.removeprefix(prefix)
        return name

    groups: dict[str, list[tuple[str, str]]] = {}
    for name in file:
        top, _, rest = name.partition(".")
        groups.setdefault(top, []).append((name, official(rest)))
    held = [
        top
        for top in ("model", "model_ema")
        if any(name in _MARKS for _, name in groups.get(top, ()))
    ]
    if held:
        wanted = "model_ema" if weights == "ema" else "model"
        if wanted not in held:
            other = "model" if wanted == "model_ema" else "ema"
            raise WeightFileError(
                f"{file.path} holds {held[0]!r}, but no {wanted!r}: ask for the weights {other!r}."
            )
        return (
            wanted,
            groups[wanted],
            {top: len(names) for top, names in groups.items() if top != wanted},
        )
    names = [(name, official(name)) for name in file]
    if not any(name in _MARKS or name.startswith("decoder_blocks.") for _, name in names):
        looks = next(
            (what for mark, what in _OTHERS.items() if any(n.startswith(mark) for _, n in names)),
            None,
        )
        some = ", ".join(name for name, _ in names[:3]) or "no tensor at all"
        hint = f"it looks like {looks}" if looks else f"it holds {some}"
        raise WeightFileError(f"{file.path} does not hold VideoMAR's weights: {hint}.")
    return "bare", names, {}


def _config(
    file: TensorFile, found: Mapping[str, Sequence[TensorSpec]], overrides: Mapping[str, Any]
) -> tuple[ModelConfig, dict[str, tuple[Any, str]]]:
    """The config, and where its fields that no shape tells come from."""
    try:
        given = header_fields(file.metadata)
        wanted = given | dict(overrides)
        fields, problems = infer_sizes(
            {k: v[0].shape for k, v in found.items()}, wanted.get("patch_size", 1)
        )
        if problems:
            slots = expected(RULES, parameter_shapes(ModelConfig.from_dict(fields)))
            raise ValueError("\n  ".join(["", *faults(slots, found, shapes=False), *problems]))
        config = ModelConfig.from_dict(fields | wanted)
    except ValueError as error:
        raise WeightFileError(f"{file.path} does not fit VideoMAR: {error}") from error
    origin = {
        field: "asked for" if field in overrides else "file" if field in given else "assumed"
        for field in HEADER_FIELDS
    }
    return config, {field: (getattr(config, field), how) for field, how in origin.items()}


def _dtypes(slots: Mapping[str, Slot], found, dtype: str | None) -> dict[str, np.dtype]:
    """The type of each parameter; stored types of a stack are joined where they differ."""
    out: dict[str, np.dtype] = {}
    for name, slot in slots.items():
        own = found[name][0].dtype if dtype is None else np.dtype(jax.numpy.dtype(dtype))
        path = slot.rule.ours
        out[path] = np.promote_types(out[path], own) if path in out else own
    return out


def _placement(shapes: Shapes, dtypes, shardings) -> Callable[[str, np.ndarray], Any]:
    """What happens to a finished parameter."""
    if shardings is None:
        return lambda path, array: array
    if callable(shardings):
        structs = {
            path: jax.ShapeDtypeStruct(shape, dtypes[path]) for path, shape in shapes.items()
        }
        shardings = shardings(nested(structs))
    table = flat(shardings)
    if missing := sorted(set(shapes) - set(table)):
        raise ValueError(f"No sharding is given for {', '.join(missing)}.")

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
        params: as `read_checkpoint` gives them or training has them.
        path: its ending chooses the format: .safetensors, or .pth, which torch.load reads.
        container: "bare" state dict, or "ema", a dictionary that holds it as "model_ema", as
            published evaluation code expects it.
        drop_regression: leave out the auxiliary readout of training, which sampling does not use.
    Raises:
        ValueError: the model has parts that the published one lacks, or parameters that do not fit
            its config.
        FileExistsError: the name is taken and `overwrite` is False. Half a file is never left
            behind.
    """
    if container not in ("bare", "ema"):
        raise ValueError(f"container is {container!r}; it may be 'bare' or 'ema'.")
    given, shapes = flat(params), parameter_shapes(config)
    wrong = sorted(
        p
        for p in set(given) | set(shapes)
        if p not in given or shapes.get(p) != tuple(given[p].shape)
    )
    if wrong:
        raise ValueError(f"These parameters do not fit the config: {', '.join(wrong)}.")
    extra = uncovered(RULES, shapes)
    kept = [path for path in extra if not (drop_regression and path.startswith("regression/"))]
    if kept:
        readout = all(path.startswith("regression/") for path in kept)
        hint = (
            "; drop_regression=True (--drop_regression of the command) leaves out the readout"
            if readout
            else ""
        )
        raise ValueError(
            f"The published model has no {', '.join(kept)}; such a model cannot be exported{hint}."
        )
    slots = expected(RULES, shapes)
    specs, make = exported(slots, given)
    write_tensors(
        path,
        specs,
        make,
        container="model_ema" if container == "ema" else None,
        metadata={"format": "pt", HEADER_KEY: header_text(config)},
        overwrite=overwrite,
    )
