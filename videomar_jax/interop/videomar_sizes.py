"""The configuration of the VideoMAR in a file of weights: sizes from shapes, the rest from its
header.

Shapes tell all sizes, and the head by its last layer (2P rows: noise and variance; P rows:
velocity). They do not tell the fields in `HEADER_FIELDS`. Our exports carry these as JSON in the
header; published files are assumed to have the published values.
"""

import dataclasses
import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple, get_args

from videomar_jax.checks import UserError
from videomar_jax.models.config import ModelConfig

HEADER_KEY = "videomar_jax"
SIZES_KEY = "videomar_jax_sizes"
"""Entry of the header with all sizes of the exported model, so that a missing block is noticed."""
HEADER_FIELDS = (
    "patch_size",
    "rope_split",
    "rope_base",
    "rope_frame_origin",
    "text_mask",
    "null_text_mask",
    "flow_time",
)
"""Fields of the model that change its output and do not show in any shape."""

NEVER_PUBLISHED = ("regression", "pooled_text", "history_levels")
"""Parts of ours without a place in a published file; an export refuses them or leaves them out."""

_LARGEST = 2**24
"""A size above this means that the file is something else."""
_MANY_LAYERS = 1000
_FIRST = "decoder_blocks.0"
_NET = "diffloss.net"
_SOURCES: dict[str, tuple[tuple[str, int], ...]] = {
    "width": (
        ("z_proj.weight", 0),
        ("z_proj.bias", 0),
        ("decoder_norm.weight", 0),
        ("mask_token", 2),
    ),
    "token": (("z_proj.weight", 1), (f"{_NET}.input_proj.weight", 1)),
    "text_tokens": (("fake_latent", 1),),
    "text_width": (("context_embed.weight", 1),),
    "head_dim": tuple(
        (f"{_FIRST}.{part}_norm.weight", 0) for part in ("attn1.q", "attn1.k", "attn2.q", "attn2.k")
    ),
    "hidden": ((f"{_FIRST}.ff.net.0.proj.weight", 0), (f"{_FIRST}.ff.net.2.weight", 1)),
    "head_width": (
        (f"{_NET}.input_proj.weight", 0),
        (f"{_NET}.input_proj.bias", 0),
        (f"{_NET}.cond_embed.bias", 0),
    ),
    "outputs": ((f"{_NET}.final_layer.linear.weight", 0), (f"{_NET}.final_layer.linear.bias", 0)),
}
"""Where each size is found, as (tensor, axis); if they disagree, the most frequent value counts."""


class InferredSizes(NamedTuple):
    """What the shapes of a file tell."""

    fields: dict[str, Any]
    """Fields of the model; `depth` and `head_depth` are always among them."""
    problems: list[str]
    """What could not be inferred, and why."""


def layers(names: Mapping[str, Any], prefix: str) -> int:
    """The number of layers `prefix.N.`, at least 1: the highest N plus 1, unless that makes no
    sense."""
    pattern = re.compile(re.escape(prefix) + r"\.(\d{1,9})\.")
    numbers = set()
    for name in names:
        match = pattern.match(name)
        if match:
            numbers.add(int(match[1]))
    count = max(numbers, default=0) + 1
    return count if count <= _MANY_LAYERS else min(max(len(numbers), 1), _MANY_LAYERS)


def infer_sizes(shapes: Mapping[str, tuple[int, ...]], patch_size: int) -> InferredSizes:
    """The model's sizes from the shapes of its tensors under their official names."""
    sizes, problems = {}, []
    for size, sources in _SOURCES.items():
        values = Counter()
        for key, axis in sources:
            if key in shapes and axis < len(shapes[key]):
                values[shapes[key][axis]] += 1
        value = values.most_common(1)[0][0] if values else 0
        if 0 < value <= _LARGEST:
            sizes[size] = value
        else:
            places = ", ".join(key for key, _ in sources)
            problems.append(f"the {size} cannot be inferred: it is a size of {places}")
    fields: dict[str, Any] = {
        "depth": layers(shapes, "decoder_blocks"),
        "head_depth": layers(shapes, f"{_NET}.res_blocks"),
    }
    if problems:
        return InferredSizes(fields, problems)
    for field in ("width", "text_tokens", "text_width", "head_width"):
        fields[field] = sizes[field]
    for field, whole, part in (
        ("num_heads", "width", "head_dim"),
        ("mlp_ratio", "hidden", "width"),
    ):
        if sizes[whole] % sizes[part]:
            problems.append(
                f"the {whole} {sizes[whole]} is not a multiple of the {part} {sizes[part]}"
            )
        fields[field] = sizes[whole] // sizes[part]
    token = sizes["token"]
    if patch_size < 1 or token % patch_size**2:
        problems.append(f"tokens of {token} values cannot be patches of {patch_size}x{patch_size}")
    else:
        fields["latent_channels"] = token // patch_size**2
    heads = {2 * token: "ddpm", token: "flow"}
    if sizes["outputs"] not in heads:
        problems.append(
            f"the head's last layer has {sizes['outputs']} rows; a DDPM head has {2 * token}, "
            f"a flow head {token}"
        )
    fields["head"] = heads.get(sizes["outputs"], "ddpm")
    return InferredSizes(fields, problems)


def header_text(config: ModelConfig) -> str:
    """The fields that no shape tells, as our exports carry them."""
    return json.dumps({field: getattr(config, field) for field in HEADER_FIELDS})


def sizes_text(config: ModelConfig) -> str:
    """All sizes of a model, as our exports carry them."""
    return json.dumps(config.sizes())


def check_sizes(metadata: Mapping[str, str], config: ModelConfig) -> None:
    """Compares the sizes in the header, if there are any, with those of the tensors.

    Raises:
        UserError: they differ, or the header holds something else.
    """
    if SIZES_KEY not in metadata:
        return
    try:
        announced = json.loads(metadata[SIZES_KEY])
    except (ValueError, RecursionError) as error:
        raise UserError(f"its header's entry {SIZES_KEY!r} is not JSON ({error}).") from error
    if not isinstance(announced, dict):
        raise UserError(f"its header's entry {SIZES_KEY!r} does not describe a model.")
    found = config.sizes()
    differing = [
        f"{name} {found[name]}, not {value!r}"
        for name, value in announced.items()
        if name in found and name not in NEVER_PUBLISHED and found[name] != value
    ]
    if differing:
        raise UserError(
            f"its tensors are not all of the model that was exported ({', '.join(differing)}): "
            f"take another copy of the file."
        )


def unusual_count(config: ModelConfig, presets: Mapping[str, ModelConfig]) -> str:
    """What is unusual about the number of blocks, in words; "" where a preset has as many."""
    counts = {name: (preset.depth, preset.head_depth) for name, preset in presets.items()}
    alike = {name: counts[name] for name in presets if presets[name].width == config.width}
    if (config.depth, config.head_depth) in (alike or counts).values():
        return ""
    known = [f"{name} {depth} and {head}" for name, (depth, head) in (alike or counts).items()]
    return (
        f"{config.depth} blocks of the transformer and {config.head_depth} of the head were found; "
        f"{', '.join(known)}. If your model has more, the file is incomplete"
    )


def header_fields(metadata: Mapping[str, str]) -> dict[str, Any]:
    """The fields in the header; none in a published file.

    Raises:
        UserError: the header holds something else.
    """
    if HEADER_KEY not in metadata:
        return {}
    try:
        fields = json.loads(metadata[HEADER_KEY])
    except (ValueError, RecursionError) as error:
        raise UserError(f"its header's entry {HEADER_KEY!r} is not JSON ({error}).") from error
    if not isinstance(fields, dict) or not set(fields) <= set(HEADER_FIELDS):
        raise UserError(f"its header's entry {HEADER_KEY!r} does not describe a model.")
    wrong = [field for field, value in fields.items() if not _fits(field, value)]
    if wrong:
        raise UserError(
            f"its header's entry {HEADER_KEY!r} has a strange value for {', '.join(wrong)}."
        )
    return fields


def _fits(field: str, value: Any) -> bool:
    """Whether a field of the header has a value of its type."""
    match field:
        case "patch_size":
            return type(value) is int
        case "rope_split":
            if value is None:
                return True
            return isinstance(value, list) and all(type(channels) is int for channels in value)
        case "rope_base":
            return type(value) in (int, float) and 0 < value < math.inf
        case "text_mask":
            return type(value) is bool
        case _:
            kind = next(f.type for f in dataclasses.fields(ModelConfig) if f.name == field)
            return value in get_args(kind)
