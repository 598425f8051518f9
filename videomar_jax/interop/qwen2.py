"""Qwen2 text encoders from Hugging Face folders, and from the references that saved encoders are.

Every tensor of the files matches one entry of the key tables or a part that is left aside knowingly
(the vision tower, the head over the vocabulary, rotary tables); every parameter is filled by one
tensor of its shape. All faults are
reported together, before any weight is read. The language model may stand under any of `PREFIXES`:
    as saved from
Qwen2Model, from Qwen2ForCausalLM, or as the text part of Qwen2-VL.

Parameters keep the type of the file. Each is allocated once, stacked over the layers, in its final
place (split over a mesh if one is given), and filled tensor by tensor, so that the peak is the size
of the model and one tensor.

Importing this module lets `load_text_encoder` read encoders of kind "qwen2".
"""

import dataclasses
import functools
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from absl import logging
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from videomar_jax.interop.formats.files import TensorFile, open_tensors
from videomar_jax.interop.qwen2_folder import fingerprint, read_config, read_tokenizer, weights_path
from videomar_jax.text_encoders import base
from videomar_jax.text_encoders.qwen2.encoder import Qwen2Options, Qwen2TextEncoder, Source
from videomar_jax.text_encoders.qwen2.model import Qwen2, Qwen2Config

PREFIXES = ("model.language_model.", "language_model.model.", "model.", "")
TOP = {"embed_tokens.weight": "embed.embedding", "norm.weight": "norm.scale"}
LAYER = {
    "input_layernorm.weight": "attention_norm.scale",
    "self_attn.q_proj.weight": "query.kernel",
    "self_attn.q_proj.bias": "query.bias",
    "self_attn.k_proj.weight": "key.kernel",
    "self_attn.k_proj.bias": "key.bias",
    "self_attn.v_proj.weight": "value.kernel",
    "self_attn.v_proj.bias": "value.bias",
    "self_attn.o_proj.weight": "out.kernel",
    "post_attention_layernorm.weight": "mlp_norm.scale",
    "mlp.gate_proj.weight": "gate.kernel",
    "mlp.up_proj.weight": "up.kernel",
    "mlp.down_proj.weight": "down.kernel",
}
"""Keys of one layer, behind "layers.N.". Kernels are transposed: PyTorch stores [outputs,
inputs]."""
LEFT_ASIDE = re.compile(
    r"(model\.)?visual\..*|(language_model\.)?lm_head\.weight|.*\brotary_emb\.inv_freq"
)
DTYPES = ("float32", "bfloat16", "float16")
_LISTED = 20


@dataclasses.dataclass(frozen=True)
class Slot:
    """A parameter and the tensors that fill it: one, or one for each layer of the stack."""

    shape: tuple[int, ...]
    names: tuple[str, ...]
    stacked: bool
    transposed: bool

    @property
    def tensor_shape(self) -> tuple[int, ...]:
        shape = self.shape[1:] if self.stacked else self.shape
        return shape[::-1] if self.transposed else shape


def load_qwen2(
    folder: str | os.PathLike,
    options: Qwen2Options | None = None,
    *,
    system_text_file: str | os.PathLike | None = None,
    mesh: Mesh | None = None,
) -> Qwen2TextEncoder:
    """The text encoder in a local Hugging Face folder of Qwen2 or Qwen2-VL.

    Args:
        system_text_file: read `options.system_text` from this UTF-8 file, as it stands: each blank
            and line end counts.
        mesh: split parameters and captions over these devices, all of this process.
    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, or of another model; tensors are missing, unknown or of wrong
            shape (all named).
    """
    folder, options = Path(os.path.abspath(os.path.expanduser(folder))), options or Qwen2Options()
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} is no folder: give the local folder of a Hugging Face Qwen2 model"
        )
    if system_text_file is not None:
        options = dataclasses.replace(options, system_text=_read_text(Path(system_text_file)))
    config = read_config(folder, options.dtype)
    tokenizer, pad_id = read_tokenizer(folder, config.vocab_size, options.padding_side)
    return Qwen2TextEncoder(
        model=load_model(folder, config, mesh),
        tokenizer=tokenizer,
        pad_id=pad_id,
        options=options,
        mesh=mesh,
        source=Source(folder=str(folder), fingerprint=fingerprint(folder)),
    )


@base.register
class SavedQwen2:
    """Reads what `Qwen2TextEncoder.save` wrote."""

    kind: ClassVar[str] = Qwen2TextEncoder.kind
    version: ClassVar[int] = Qwen2TextEncoder.version

    @classmethod
    def from_files(
        cls, settings: Mapping[str, Any], directory: str | os.PathLike
    ) -> Qwen2TextEncoder:
        """Raises FileNotFoundError where the folder is gone, ValueError where it holds another
        model by now."""
        names = [field.name for field in dataclasses.fields(Source)]
        source = Source(**{name: settings[name] for name in names if name in settings})
        options = Qwen2Options(
            **{name: value for name, value in settings.items() if name not in names}
        )
        header = Path(directory) / base.HEADER_FILE
        if not Path(source.folder).is_dir():
            raise FileNotFoundError(
                f"{header} refers to the text encoder in {source.folder}, which is not there: bring it back, or write "
                f"its new place under 'folder' in that file"
            )
        if (found := fingerprint(Path(source.folder))) != source.fingerprint:
            raise ValueError(
                f"{source.folder} no longer holds the text encoder that {header} refers to (fingerprint {found}, saved "
                f"{source.fingerprint}): features of another one would not fit"
            )
        return load_qwen2(source.folder, options)


def load_model(folder: Path, config: Qwen2Config, mesh: Mesh | None = None) -> Qwen2:
    """The decoder with the parameters of the folder's safetensors files, in their type."""
    graph, abstract = nnx.split(nnx.eval_shape(lambda: Qwen2(config, rngs=nnx.Rngs(0))))
    shapes = dict(nnx.to_flat_state(abstract))
    with open_tensors(weights_path(folder)) as tensors:
        slots = plan({path: leaf.shape for path, leaf in shapes.items()}, config, tensors)
        arrays = {
            path: _fill(slot, tensors, _placement(slot, mesh)) for path, slot in slots.items()
        }
    logging.info(
        "read %d tensors of %s", sum(len(slot.names) for slot in slots.values()), tensors.path
    )
    return nnx.merge(
        graph,
        nnx.from_flat_state({path: leaf.replace(arrays[path]) for path, leaf in shapes.items()}),
    )


def plan(
    shapes: Mapping[tuple[str, ...], tuple[int, ...]], config: Qwen2Config, tensors: TensorFile
) -> dict[tuple[str, ...], Slot]:
    """Which tensors fill which parameter; ValueError with every fault."""
    prefixes = [prefix for prefix in PREFIXES if f"{prefix}embed_tokens.weight" in tensors]
    if len(prefixes) != 1:
        tried = ", ".join(f"{prefix}embed_tokens.weight" for prefix in PREFIXES)
        raise ValueError(
            f"{tensors.path} must hold one language model, found {len(prefixes)} (looked for {tried})"
        )
    keys = {ours: theirs for table in (TOP, LAYER) for theirs, ours in table.items()}
    slots = {}
    for path, shape in shapes.items():
        stacked = path[0] == "layers"
        key = keys[".".join(path[1:] if stacked else path)]
        layers = [f"layers.{i}." for i in range(config.depth)] if stacked else [""]
        names = tuple(f"{prefixes[0]}{layer}{key}" for layer in layers)
        slots[path] = Slot(shape, names, stacked, path[-1] == "kernel")
    _check(slots, tensors)
    return slots


def _check(slots: Mapping[tuple[str, ...], Slot], tensors: TensorFile) -> None:
    known = {name for slot in slots.values() for name in slot.names}
    unknown = [name for name in tensors if name not in known and not LEFT_ASIDE.fullmatch(name)]
    shapes, dtypes = tensors.shapes, tensors.dtypes
    missing, misfit = [], []
    for slot in slots.values():
        found = [name for name in slot.names if name in tensors]
        missing += [name for name in slot.names if name not in tensors]
        for name in found:
            shape, dtype, expected = shapes[name], str(dtypes[name]), str(dtypes[found[0]])
            if shape != slot.tensor_shape:
                misfit.append(f"{name} has shape {shape}, expected {slot.tensor_shape}")
            if dtype not in DTYPES:
                misfit.append(f"{name} is of type {dtype}, expected one of {', '.join(DTYPES)}")
            elif dtype != expected:
                misfit.append(f"{name} is of type {dtype}, but {found[0]} is of type {expected}")
    faults = {"missing": missing, "unknown": unknown, "of wrong shape or type": misfit}
    if any(faults.values()):
        raise ValueError(
            f"{tensors.path} does not fit its config.json"
            + "".join(map(_listing, faults, faults.values()))
        )


def _listing(title: str, names: list[str]) -> str:
    if not names:
        return ""
    more = [f"... and {len(names) - _LISTED} more"] if len(names) > _LISTED else []
    return "".join(
        f"\n  {line}" for line in [f"{len(names)} tensors {title}:", *names[:_LISTED], *more]
    )


def _placement(slot: Slot, mesh: Mesh | None) -> Sharding | None:
    """Splits the longest axis that the devices divide, never the axis of layers; copies the
    parameter otherwise."""
    if mesh is None:
        return None
    axes = [
        i
        for i, size in enumerate(slot.shape)
        if size % mesh.size == 0 and not (slot.stacked and i == 0)
    ]
    spec = [None] * len(slot.shape)
    if axes:
        spec[max(axes, key=lambda i: slot.shape[i])] = mesh.axis_names
    return NamedSharding(mesh, PartitionSpec(*spec))


def _fill(slot: Slot, tensors: TensorFile, sharding: Sharding | None) -> jax.Array:
    if not slot.stacked:
        value = tensors[slot.names[0]]
        return jax.device_put(value.T if slot.transposed else value, sharding)
    dtype = tensors.dtypes[slot.names[0]]
    stack = jax.jit(lambda: jnp.zeros(slot.shape, dtype), out_shardings=sharding)()
    for i, name in enumerate(slot.names):
        # Waiting keeps one tensor in flight: reading would run ahead of filling otherwise.
        stack = _setter(slot.transposed, sharding)(stack, i, tensors[name]).block_until_ready()
    return stack


@functools.lru_cache(maxsize=32)
def _setter(transposed: bool, sharding: Sharding | None):
    """Writes one layer into the stack in place."""

    def put(stack, i, layer):
        return jax.lax.dynamic_update_index_in_dim(stack, layer.T if transposed else layer, i, 0)

    return jax.jit(put, donate_argnums=0, out_shardings=sharding)


def _read_text(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"the file of the system text, {path}, is not there")
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error
