"""Recorded Cosmos files as our arrays: channels last, sizes from the header."""

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


def recorded_config(weights):
    with open_tensors(weights) as file:
        sizes = json.loads(file.metadata["config"])
    return CosmosConfig.from_dict({ours: sizes[theirs] for ours, theirs in FIELDS.items()})


def recorded_arrays(path):
    with open_tensors(path) as file:
        return {
            name: np.moveaxis(file[name], 1, -1) if file[name].ndim == 5 else file[name]
            for name in file
        }
