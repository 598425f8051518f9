"""The Cosmos network against recordings of the reference: single layers, every module's output,
both ends."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.helpers.cosmos_recordings import recorded_arrays, recorded_config
from videomar_jax.interop.formats.files import open_tensors
from videomar_jax.tokenizers.cosmos import layers
from videomar_jax.tokenizers.cosmos.config import Step
from videomar_jax.tokenizers.cosmos.model import patches
from videomar_jax.tokenizers.cosmos.tokenizer import CosmosTokenizer, load_cosmos
from videomar_jax.tokenizers.cosmos.windows import reconstruct_windows
from videomar_jax.tokenizers.haar import haar_patches, haar_unpatch

MODELS = {
    "cv8x16x16": "video9",
    "cv8x8x8": "video9",
    "cv4x8x8": "video9",
    "cv4x8x8_lowres": "video5",
    "attn_levels": "video9",
}
encode, decode = jax.jit(CosmosTokenizer.encode), jax.jit(CosmosTokenizer.decode)


# Single layers

DOWN = {"conv1.conv3d": "spatial", "conv2.conv3d": "temporal", "conv3.conv3d": "point"}
UP = {"conv1.conv3d": "temporal", "conv2.conv3d": "spatial", "conv3.conv3d": "point"}
ATTENTION = {"norm.norm": "norm"} | {f"{part}.conv3d": part for part in ("q", "k", "v", "proj_out")}
BLOCK = {
    "norm1.norm": "norm1",
    "norm2.norm": "norm2",
    "nin_shortcut.conv3d": "nin_shortcut",
    "conv1.0.conv3d": "conv1.spatial",
    "conv1.1.conv3d": "conv1.temporal",
    "conv2.0.conv3d": "conv2.spatial",
    "conv2.1.conv3d": "conv2.temporal",
}


def unit_layer(name):
    """(layer, foreign name of each of its modules) of a recorded unit."""
    if name.startswith(("down", "up")):
        code = name.split("_")[1]  # such as "s1t0"
        step = Step(space=code[1] == "1", time=code[3] == "1")
        if name.startswith("down"):
            return layers.Downsample(6, step), DOWN
        return layers.Upsample(6, step), UP
    if name == "attn_spatial":
        return layers.SpatialAttention(6), ATTENTION
    if name.startswith("attn"):
        return layers.TemporalAttention(6, stride=1), ATTENTION
    if name.startswith("res"):
        return layers.ResidualBlock(6, 9 if name == "res_change" else 6), BLOCK
    if name.startswith("norm"):
        return layers.FrameNorm(6), {"norm": ""}
    make = {"conv_s": layers.SpatialConv, "conv_t": layers.TemporalConv, "conv_1": layers.PointConv}
    return make[name.removesuffix("_image")](6, 9), {"conv3d": ""}


def fill(layer, parts, arrays):
    """Puts recorded weights [outputs, inputs, time, rows, columns] into a layer, without the
    importer's rules."""
    for key, value in arrays.items():
        owner, leaf = key.rsplit(".", 1)
        target = layer
        for attribute in filter(None, parts[owner].split(".")):
            target = getattr(target, attribute)
        if target is None:  # recorded, but not used in the computation
            assert isinstance(layer, (layers.Downsample, layers.Upsample))
            continue
        if leaf == "bias":
            param = target.bias
        else:
            param = target.kernel if hasattr(target, "kernel") else target.scale
            value = value.transpose(2, 3, 4, 1, 0) if value.ndim == 5 else value
        assert param.shape == value.reshape(param.shape).shape
        param[...] = jnp.asarray(value.reshape(param.shape))


def test_single_layers_match_the_recordings(golden):
    arrays = recorded_arrays(golden("cosmos/units.safetensors"))
    units = sorted({name.split(".")[0] for name in arrays})
    assert len(units) >= 11
    for unit in units:
        layer, parts = unit_layer(unit)
        fill(layer, parts, raw_weights(golden, unit))
        x, want = arrays[f"{unit}.x"], arrays[f"{unit}.y"]
        takes_past = isinstance(
            layer,
            (
                layers.TemporalConv,
                layers.TemporalAttention,
                layers.ResidualBlock,
                layers.Downsample,
                layers.Upsample,
            ),
        )

        @jax.jit
        def run(x, layer=layer, takes_past=takes_past):
            return layer(x, layers.Past(capacity=x.shape[1])) if takes_past else layer(x)

        np.testing.assert_allclose(run(x), want, atol=1e-5, rtol=1e-5, err_msg=unit)


def raw_weights(golden, unit):
    """The weights of a unit by their foreign names, in the recorded layout."""
    prefix = f"{unit}.w."
    with open_tensors(golden("cosmos/units.safetensors")) as file:
        names = [name for name in file if name.startswith(prefix)]
        return {name.removeprefix(prefix): file[name] for name in names}


# Whole networks

TRACED = (
    layers.SpatialConv,
    layers.ConvPair,
    layers.ResidualBlock,
    layers.SpatialAttention,
    layers.AttentionPair,
    layers.Downsample,
    layers.Upsample,
    layers.FrameNorm,
    layers.PointConv,
)


def traced(monkeypatch, tokenizer, pixels, latents):
    """The output of every module, by our path, in an encode of `pixels` and a decode of `latents`,
    compiled as one program."""
    outputs = {}
    for cls in TRACED:

        def call(self, *args, _call=cls.__call__):
            outputs[id(self)] = _call(self, *args)
            return outputs[id(self)]

        monkeypatch.setattr(cls, "__call__", call)

    @jax.jit
    def run(tokenizer, pixels, latents):
        outputs.clear()
        network = tokenizer.network()
        capacity = latents.shape[1]
        ends = {
            "latent": network.encode(pixels, layers.Past(capacity=capacity)),
            "recon": network.decode(latents, layers.Past(capacity=capacity)),
            "encoder.patcher3d": patches(pixels, tokenizer.config.patch, layers.Past()),
        }
        modules = {".".join(map(str, path)): module for path, module in nnx.iter_modules(network)}
        return ends | {
            path: outputs[id(module)] for path, module in modules.items() if id(module) in outputs
        }

    return run(tokenizer, pixels, latents)


def our_path(recorded):
    """Our path of a recorded module, such as "05.enc.down.0.downsample"."""
    parts = recorded.split(".")
    if recorded[0].isdigit():
        parts = parts[1:]
    ours = {"enc": "encoder", "dec": "decoder", "downsample": "resample", "upsample": "resample"}
    parts = [ours.get(part, part) for part in parts]
    # The spatial and the temporal half of a pair are numbered 0 and 1.
    is_half = parts[-2:-1] and (parts[-2] in ("conv_in", "attn_1") or parts[-3:-2] == ["attn"])
    if is_half:
        parts[-1] = {"0": "spatial", "1": "temporal"}[parts[-1]]
    return ".".join(parts)


@pytest.mark.parametrize("model", [*MODELS, "image"])
def test_every_module_matches_the_recordings(golden, monkeypatch, model):
    name, case = ("cv8x16x16", "image") if model == "image" else (model, MODELS[model])
    weights = golden(f"cosmos/{name}.weights.safetensors")
    tokenizer = load_cosmos(weights, config=recorded_config(weights), scale=1.0)
    want = recorded_arrays(golden(f"cosmos/{name}.{case}.safetensors"))
    got = traced(monkeypatch, tokenizer, jnp.asarray(want["x"]), jnp.asarray(want["latent"]))
    for key in set(want) - {"x", "latent", "recon"}:
        np.testing.assert_allclose(
            got[our_path(key)], want[key], atol=1e-4, rtol=1e-4, err_msg=f"{model} {key}"
        )
    np.testing.assert_allclose(got["latent"], want["latent"], atol=2e-5, rtol=0, err_msg=model)
    np.testing.assert_allclose(got["recon"], want["recon"], atol=5e-5, rtol=0, err_msg=model)


def test_later_frames_change_nothing_before_them(golden):
    """Recorded pairs: two clips with a common start, and the start alone."""
    weights = golden("cosmos/cv8x16x16.weights.safetensors")
    tokenizer = load_cosmos(weights, config=recorded_config(weights), scale=1.0, chunk=2)
    want = recorded_arrays(golden("cosmos/cv8x16x16.causality.safetensors"))
    a, tail = want["x_a"], want["x_b_tail"]
    b = np.concatenate([a[:, : -tail.shape[1]], tail], axis=1)
    for name, clip in (
        ("latent_a", a),
        ("latent_b", b),
        ("latent_a_first1", a[:, :1]),
        ("latent_a_first9", a[:, :9]),
    ):
        np.testing.assert_allclose(
            encode(tokenizer, clip), want[name], atol=2e-5, rtol=0, err_msg=name
        )
    latents = want["latent_a"]
    for name, part in (
        ("recon_a", latents),
        ("recon_a_from1", latents[:, :1]),
        ("recon_a_from2", latents[:, :2]),
    ):
        np.testing.assert_allclose(
            decode(tokenizer, part), want[name], atol=5e-5, rtol=0, err_msg=name
        )


def test_windows_match_the_recorded_command(golden):
    weights = golden("cosmos/cv8x8x8.weights.safetensors")
    tokenizer = load_cosmos(weights, config=recorded_config(weights))
    with open_tensors(golden("cosmos/cv8x8x8.wrapper.safetensors")) as file:
        video, want, window = file["a.video_u8"], file["a.recon_u8"], int(file["a.window"][0])
    got = reconstruct_windows(tokenizer, video, window=window)
    assert np.abs(got.astype(int) - want.astype(int)).max() <= 1


def test_bfloat16_stays_near_the_recordings(golden):
    weights = golden("cosmos/cv8x16x16.weights.safetensors")
    config = recorded_config(weights)
    tokenizer = dataclasses.replace(
        load_cosmos(weights, config=config, scale=1.0), dtype="bfloat16"
    )
    want = recorded_arrays(golden("cosmos/cv8x16x16.video9.safetensors"))
    for got, name, limit in (
        (encode(tokenizer, want["x"]), "latent", 0.015),
        (decode(tokenizer, want["latent"]), "recon", 0.02),
    ):
        assert got.dtype == jnp.float32
        assert np.sqrt(np.mean(np.square(np.asarray(got) - want[name]))) < limit, name


@pytest.mark.parametrize("case, patch", [("p4", 4), ("p2", 2), ("p4_c2", 4), ("p4_image", 4)])
def test_haar_bands_match_in_float64(golden, case, patch):
    arrays = recorded_arrays(golden("cosmos/patcher_f64.safetensors"))
    np.testing.assert_allclose(
        haar_patches(arrays[f"{case}.x"], patch), arrays[f"{case}.patched"], atol=1e-12, rtol=0
    )
    back = haar_unpatch(arrays[f"{case}.y_random"], patch)
    np.testing.assert_allclose(back, arrays[f"{case}.unpatched_random"], atol=1e-12, rtol=0)
