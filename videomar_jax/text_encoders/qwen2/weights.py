"""Weights of a Qwen2 decoder from the safetensors files of a Hugging Face folder.

Every tensor of the files must match one rule or be ignored on purpose (the vision tower, the head
over the vocabulary, rotary tables), and every parameter must be filled by one tensor of its shape
for each layer. All faults are reported together, before any weight is read. The language model may
be under any of `PREFIXES`: as saved from Qwen2Model, from Qwen2ForCausalLM, or as the text part
of Qwen2-VL.

Parameters keep the type of the file. Each is allocated once, stacked over the layers, in its final
place (split over a mesh if one is given), and filled tensor by tensor: the peak is the size of the
model and one tensor.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from videomar_jax.interop.formats.files import TensorFile, WeightFileError, open_tensors
from videomar_jax.interop.formats.rules import (
    TRANSPOSE,
    Rule,
    Slot,
    expected,
    faults,
    flat,
    listed,
    nested,
)
from videomar_jax.io.log import log
from videomar_jax.text_encoders.qwen2.folder import weights_path
from videomar_jax.text_encoders.qwen2.model import Qwen2, Qwen2Config

PREFIXES = ("model.language_model.", "language_model.model.", "model.", "")

_LAYER = "layers.{}"
RULES: tuple[Rule, ...] = (
    Rule("embed_tokens.weight", "embed/embedding"),
    Rule("norm.weight", "norm/scale"),
    Rule(f"{_LAYER}.input_layernorm.weight", "layers/attention_norm/scale"),
    Rule(f"{_LAYER}.self_attn.q_proj.weight", "layers/query/kernel", TRANSPOSE),
    Rule(f"{_LAYER}.self_attn.q_proj.bias", "layers/query/bias"),
    Rule(f"{_LAYER}.self_attn.k_proj.weight", "layers/key/kernel", TRANSPOSE),
    Rule(f"{_LAYER}.self_attn.k_proj.bias", "layers/key/bias"),
    Rule(f"{_LAYER}.self_attn.v_proj.weight", "layers/value/kernel", TRANSPOSE),
    Rule(f"{_LAYER}.self_attn.v_proj.bias", "layers/value/bias"),
    Rule(f"{_LAYER}.self_attn.o_proj.weight", "layers/out/kernel", TRANSPOSE),
    Rule(f"{_LAYER}.post_attention_layernorm.weight", "layers/mlp_norm/scale"),
    Rule(f"{_LAYER}.mlp.gate_proj.weight", "layers/gate/kernel", TRANSPOSE),
    Rule(f"{_LAYER}.mlp.up_proj.weight", "layers/up/kernel", TRANSPOSE),
    Rule(f"{_LAYER}.mlp.down_proj.weight", "layers/down/kernel", TRANSPOSE),
)
"""Every parameter of a decoder; in a file, one of `PREFIXES` precedes the keys."""

IGNORED = re.compile(
    r"(model\.)?visual\..*|(language_model\.)?lm_head\.weight|.*\brotary_emb\.inv_freq"
)
"""Tensors that the last hidden state does not depend on."""

DTYPES = ("float32", "bfloat16", "float16")
"""Stored types that are read."""


def load_model(folder: Path, config: Qwen2Config, mesh: Mesh | None = None) -> Qwen2:
    """The decoder with the parameters of the folder's safetensors files, in their type.

    Args:
        mesh: split parameters over these devices.
    Raises:
        FileNotFoundError: the folder holds no safetensors file.
        WeightFileError: a file is damaged, or does not fit the config; everything that does not fit
            is listed. Or a tensor holds NaN or infinity.
    """
    graph, abstract = nnx.split(nnx.eval_shape(lambda: Qwen2(config, rngs=nnx.Rngs(0))))
    shapes = {path: leaf.shape for path, leaf in flat(nnx.to_pure_dict(abstract)).items()}
    with open_tensors(weights_path(folder)) as file:
        prefix = _prefix(file)
        rules = [dataclasses.replace(rule, theirs=prefix + rule.theirs) for rule in RULES]
        slots = expected(rules, shapes)
        _check(slots, file)
        names: dict[str, list[str]] = {path: [] for path in shapes}
        for name, slot in slots.items():
            names[slot.rule.ours].append(name)
        params = {}
        for rule in rules:
            shape = shapes[rule.ours]
            sharding = _sharding(shape, mesh, stacked=rule.stacked)
            params[rule.ours] = _fill(rule, names[rule.ours], shape, file, sharding)
    log.info("read %d tensors of %s", len(slots), file.path)
    return nnx.merge(graph, nested({path: params[path] for path in shapes}))


def _prefix(file: TensorFile) -> str:
    """The one of `PREFIXES` under which the file holds a language model."""
    keys = [f"{prefix}embed_tokens.weight" for prefix in PREFIXES]
    found = [prefix for prefix, key in zip(PREFIXES, keys, strict=True) if key in file]
    if len(found) != 1:
        raise WeightFileError(
            f"{file.path} must hold one language model, found {len(found)} "
            f"(looked for {', '.join(keys)})"
        )
    return found[0]


def _check(slots: Mapping[str, Slot], file: TensorFile) -> None:
    """Raises a WeightFileError that lists every fault of the file."""
    found = {
        name: [spec]
        for name, spec in file.specs.items()
        if name in slots or not IGNORED.fullmatch(name)
    }
    lines = faults(slots, found)
    unusable, first_dtype = [], {}
    for name, slot in slots.items():
        if name not in found:
            continue
        # The layers of a stack share one array, hence one type.
        dtype = str(file.specs[name].dtype)
        first, wanted = first_dtype.setdefault(slot.rule.ours, (name, dtype))
        if dtype not in DTYPES:
            unusable.append(f"{name} ({dtype}; read are {', '.join(DTYPES)})")
        elif dtype != wanted:
            unusable.append(f"{name} ({dtype}, but {first} is {wanted})")
    if unusable:
        lines.append(listed("of a type that does not fit", unusable))
    if lines:
        raise WeightFileError("\n  ".join([f"{file.path} does not fit its config.json:", *lines]))


def _sharding(shape: Sequence[int], mesh: Mesh | None, *, stacked: bool) -> Sharding | None:
    """Splits the longest axis that the devices divide, but not the axis of layers; without such an
    axis every device has a copy."""
    if mesh is None:
        return None
    spec = [None] * len(shape)
    first = 1 if stacked else 0
    axes = [axis for axis in range(first, len(shape)) if shape[axis] % mesh.size == 0]
    if axes:
        spec[max(axes, key=lambda axis: shape[axis])] = mesh.axis_names
    return NamedSharding(mesh, PartitionSpec(*spec))


def _fill(
    rule: Rule,
    names: Sequence[str],
    shape: tuple[int, ...],
    file: TensorFile,
    sharding: Sharding | None,
) -> jax.Array:
    """One parameter of this shape from the tensors `names`, one for each layer if it is stacked."""
    if not rule.stacked:
        return jax.device_put(rule.transform.ours(file.read_finite(names[0])), sharding)
    dtype = file.specs[names[0]].dtype
    stack = jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=sharding)()
    write = _layer_writer(rule.transform.ours, sharding)
    for layer, name in enumerate(names):
        # Waiting keeps a single tensor in flight; otherwise reading would run ahead of writing.
        stack = write(stack, layer, file.read_finite(name)).block_until_ready()
    return stack


@functools.lru_cache(maxsize=32)
def _layer_writer(
    transform: Callable[[jax.Array], jax.Array], sharding: Sharding | None
) -> Callable[[jax.Array, int, np.ndarray], jax.Array]:
    """Writes one layer into the stack in place."""

    def write(stack, index, layer):
        return jax.lax.dynamic_update_index_in_dim(stack, transform(layer), index, 0)

    return jax.jit(write, donate_argnums=0, out_shardings=sharding)
