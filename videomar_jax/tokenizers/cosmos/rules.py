"""Names of the Cosmos tokenizer's tensors: our parameter paths, NVIDIA's keys, diffusers' keys.

Paths are joined with "/", such as encoder/down/0/block/1/conv1/spatial/kernel. The keys of both
foreign files are derived from them part by part. `is_unused` says what a published file may hold
besides the parameters.
"""

import re
from collections.abc import Mapping
from typing import Any

from flax.traverse_util import flatten_dict

from videomar_jax.interop.formats.rules import PLAIN, Rule, Transform
from videomar_jax.tokenizers.cosmos.config import CosmosConfig
from videomar_jax.tokenizers.cosmos.model import abstract_network

CONSTANTS = (
    "encoder.patcher3d.wavelets",
    "encoder.patcher3d._arange",
    "encoder.patcher3d.patch_size_buffer",
    "decoder.unpatcher3d.wavelets",
    "decoder.unpatcher3d._arange",
)
"""Buffers that TorchScript archives hold; here they are computed."""

_SPATIAL = Transform(
    lambda x: x[:, :, 0].transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1)[:, :, None]
)
_TEMPORAL = Transform(
    lambda x: x[..., 0, 0].transpose(2, 1, 0), lambda x: x.transpose(2, 1, 0)[..., None, None]
)
_POINT = Transform(lambda x: x[..., 0, 0, 0].T, lambda x: x.T[..., None, None, None])
_KERNELS = {4: _SPATIAL, 3: _TEMPORAL, 2: _POINT}
"""By the rank of our kernel; theirs is always [outputs, inputs, time, rows, columns]."""

_SAMPLERS = {
    "encoder": ("downsample", {"spatial": "conv1", "temporal": "conv2", "point": "conv3"}),
    "decoder": ("upsample", {"temporal": "conv1", "spatial": "conv2", "point": "conv3"}),
}
_HALVES = {"spatial": "0", "temporal": "1"}
_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}

_TO_DIFFUSERS = (
    (r"\.block_1\.", "_block.resnets.0."),
    (r"\.block_2\.", "_block.resnets.1."),
    (r"\.attn_1\.0\.", "_block.attentions.0."),
    (r"\.attn_1\.1\.", "_block.temp_attentions.0."),
    (r"\.(down|up)\.", r".\1_blocks."),
    (r"\.block\.", ".resnets."),
    (r"\.attn\.(\d+)\.0\.", r".attentions.\1."),
    (r"\.attn\.(\d+)\.1\.", r".temp_attentions.\1."),
    (r"\.(down|up)sample\.", r".\1samplers.0."),
    (r"\.(conv_in|conv_out|conv1|conv2)\.0\.conv3d\.", r".\1.conv_s."),
    (r"\.(conv_in|conv_out|conv1|conv2)\.1\.conv3d\.", r".\1.conv_t."),
    (r"\.([qkv])\.conv3d\.", r".to_\1."),
    (r"\.proj_out\.conv3d\.", ".to_out.0."),
    (r"\.nin_shortcut\.conv3d\.", ".conv_shortcut."),
    (r"\.conv3d\.", "."),
)


def parameter_shapes(config: CosmosConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter by its path; nothing is allocated."""
    leaves = flatten_dict(abstract_network(config)[1])
    return {"/".join(map(str, path)): tuple(leaf.shape) for path, leaf in leaves.items()}


def official_key(path: str) -> str:
    """NVIDIA's name of one of our parameters."""
    *owners, leaf = path.split("/")
    sampler, branches = _SAMPLERS.get(owners[0], ("", {}))
    parts = []
    for before, part in zip(["", *owners], owners, strict=False):
        table = branches if before == "resample" else _HALVES
        parts.append(sampler if part == "resample" else table.get(part, part))
    parts.append("norm" if owners[-1].startswith("norm") else "conv3d")
    return ".".join([*parts, _LEAVES[leaf]])


def diffusers_key(path: str, levels: int) -> str:
    """The name of one of our parameters in diffusers' AutoencoderKLCosmos.

    levels: of the decoder, which diffusers numbers in running order.
    """
    found = re.match(r"decoder/up/(\d+)", path)
    if found:
        path = f"decoder/up/{levels - 1 - int(found[1])}{path[found.end() :]}"
    key = official_key(path)
    for pattern, replacement in _TO_DIFFUSERS:
        key = re.sub(pattern, replacement, key)
    return key


def cosmos_rules(config: CosmosConfig, *, diffusers: bool = False) -> tuple[Rule, ...]:
    """One rule for each parameter, with the keys of NVIDIA's files or of diffusers'."""
    rules = []
    for path, shape in parameter_shapes(config).items():
        key = diffusers_key(path, len(config.decoder_mults)) if diffusers else official_key(path)
        transform = _KERNELS[len(shape)] if path.endswith("/kernel") else PLAIN
        rules.append(Rule(key, path, transform))
    return tuple(rules)


def is_unused(key: str, config: CosmosConfig) -> bool:
    """Whether a published tensor has no use: a TorchScript constant, or a convolution that its
    sampler does not run (files of 2024 hold them, later ones do not)."""
    found = re.fullmatch(
        r"(?:encoder\.down|decoder\.up)\.(\d+)\.(down|up)sample\.conv[123]\.conv3d\.(weight|bias)",
        key,
    )
    if not found:
        return key in CONSTANTS
    level, side = int(found[1]), found[2]
    if side == "down":
        return level < len(config.encoder_steps)
    return 0 < level <= len(config.decoder_steps)


def nested(leaves: Mapping[str, Any]) -> dict:
    """Nested parameters from paths; numbers in a path become integer keys."""
    root: dict = {}
    for path, leaf in leaves.items():
        *owners, last = (int(part) if part.isdecimal() else part for part in path.split("/"))
        node = root
        for owner in owners:
            node = node.setdefault(owner, {})
        node[last] = leaf
    return root
