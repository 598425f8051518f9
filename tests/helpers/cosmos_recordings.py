"""Recorded Cosmos files in our layout: arrays channels last, sizes from the header."""

import json

import numpy as np

from videomar_jax.interop.formats.files import open_tensors
from videomar_jax.tokenizers.cosmos.config import CosmosConfig

FIELDS = {
    "temporal_stride": "temporal_compression",
    "spatial_stride": "spatial_compression",
    "patch": "patch_size",
    "width": "channels",
    "encoder_mults": "channels_mult",
    "decoder_mults": "decoder_channels_mult",
    "blocks": "num_res_blocks",
    "z_channels": "z_channels",
    "latent_channels": "latent_channels",
    "resolution": "resolution",
    "attention_resolutions": "attn_resolutions",
    "legacy": "legacy_mode",
}
"""Our names of sizes and those of the header."""


def recorded_config(weights):
    """The sizes of the network that was recorded, from the header of its file of weights."""
    with open_tensors(weights) as file:
        sizes = json.loads(file.metadata["config"])
    return CosmosConfig.from_dict({ours: sizes[theirs] for ours, theirs in FIELDS.items()})


def recorded_arrays(path):
    """All arrays of a file; those of videos [B, C, T, H, W] as [B, T, H, W, C]."""
    arrays = {}
    with open_tensors(path) as file:
        for name, array in file.items():
            arrays[name] = np.moveaxis(array, 1, -1) if array.ndim == 5 else array
    return arrays
