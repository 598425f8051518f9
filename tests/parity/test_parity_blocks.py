"""Recorded parts of the transformer, whole passes, and the importer that fills it."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import safe_open

from tests.helpers.videomar_recordings import GRID, channels_last, check, frames, layer
from videomar_jax.interop.formats.rules import flat
from videomar_jax.interop.videomar import parameter_shapes, read_checkpoint
from videomar_jax.models import attention, masking
from videomar_jax.models.incremental import (
    VisibleCache,
    commit_frame,
    empty_cache,
    frame_rotary,
    predict_frame,
    with_keys_values,
)
from videomar_jax.models.patchify import patchify, positions, unpatchify
from videomar_jax.models.rope import rotary_embedding, rotate


def test_rope(case):
    g, settings = case("rope")
    grid, frame = settings["grid_64"], settings["frame_index"]
    np.testing.assert_array_equal(
        positions(grid[0], tuple(grid[1:])).reshape(-1, 3), g["in/positions"]
    )
    split = tuple(settings["split_64"])
    whole = rotary_embedding(positions(grid[0], tuple(grid[1:])), split, settings["theta"])
    check(
        "rope",
        "y",
        rotate(frames(g["in/x"], grid[0]), whole, split).reshape(g["out/y"].shape),
        g["out/y"],
        5e-6,
    )
    one = rotary_embedding(positions(jnp.array([frame]), tuple(grid[1:])), split, settings["theta"])
    check(
        "rope",
        "y_frame",
        rotate(frames(g["in/x_frame"], 1), one, split)[:, 0],
        g["out/y_frame"],
        5e-6,
    )
    grid, split = settings["grid_128"], tuple(settings["split_128"])
    wide = rotary_embedding(positions(grid[0], tuple(grid[1:])), split, settings["theta"])
    y = rotate(frames(g["in/x128"], grid[0]), wide, split).reshape(g["out/y128"].shape)
    check("rope", "y128", y, g["out/y128"], 5e-6)


def test_self_attention(case, model):
    g, _ = case("self_attn")
    block, x, rotary = (
        layer(model.transformer.blocks, 0).self_attention,
        frames(g["in/x"], 4),
        model.rotary(4, GRID),
    )
    for name, value in zip("qkv", block.queries_keys_values(x, rotary), strict=True):
        theirs = g[f"out/{name}"]
        check("self_attn", name, value.reshape(theirs.shape), theirs, 2e-5 if name == "v" else 5e-5)
    for name, pattern in {
        "causal": attention.frame_causal,
        "full": attention.attend_frames,
    }.items():
        check(
            "self_attn",
            name,
            block(x, rotary, pattern)[0].reshape(g["in/x"].shape),
            g[f"out/{name}"],
            5e-5,
        )


def test_cross_attention(case, model):
    g, _ = case("cross_attn")
    block, x = layer(model.transformer.blocks, 0).cross_attention, frames(g["in/x"], 4)
    text = block.keys_values(jnp.asarray(g["in/ctx"]))
    for name, mask, tol in (
        ("masked", jnp.asarray(g["in/text_mask"]), 1e-5),
        ("unmasked", None, 2e-5),
    ):
        check(
            "cross_attn", name, block(x, text, mask).reshape(g["in/x"].shape), g[f"out/{name}"], tol
        )


def test_block(case, model):
    g, _ = case("block")
    block = layer(model.transformer.blocks, 1)
    text = block.cross_attention.keys_values(jnp.asarray(g["in/ctx"]))
    for tail in ("", "_small"):
        x = frames(g[f"in/x{tail}"], 4)
        y, _ = block(
            x, text, jnp.asarray(g["in/text_mask"]), model.rotary(4, GRID), attention.frame_causal
        )
        check("block", f"y{tail}", y.reshape(g[f"in/x{tail}"].shape), g[f"out/y{tail}"], 2e-4)


def test_norms(case, model):
    g, _ = case("norms")
    first = layer(model.transformer.blocks, 0)
    check("norms", "norm1", first.norm1(g["in/x_d"]), g["out/norm1"], 1e-5)
    check("norms", "final", model.transformer.norm(g["in/x_d"]), g["out/final"], 5e-6)
    check("norms", "rms", first.self_attention.q_norm(g["in/x_h"]), g["out/rms"], 5e-6)
    check("norms", "head_ln", layer(model.head.blocks, 0).norm(g["in/x_w"]), g["out/head_ln"], 5e-6)
    check("norms", "head_final", model.head.final_norm(g["in/x_w"]), g["out/head_final"], 2e-6)


def test_patchify(case):
    g, _ = case("patchify")
    latents = channels_last(g["in/latents"])
    for size in (1, 2):
        tokens, theirs = patchify(latents, size), g[f"out/tokens_p{size}"]
        check("patchify", f"tokens_p{size}", tokens.reshape(theirs.shape), theirs, 0)
        grid = (latents.shape[2] // size, latents.shape[3] // size)
        check(
            "patchify", f"latents from tokens_p{size}", unpatchify(tokens, grid, size), latents, 0
        )


def test_masking(case):
    g, settings = case("masking")
    with jax.enable_x64(True):
        rate = masking.mask_rate(jnp.asarray(g["in/u"], jnp.float64), settings["mask_ratio_min"])
        check("masking", "mask_rate", rate, g["out/mask_rate"], 1e-9)
    count, size = settings["grid"][0], int(np.prod(settings["grid"][1:]))
    orders = jnp.asarray(g["in/orders"].reshape(3, count, size) % size)
    for i, (rate, k) in enumerate(zip(g["in/mask_rates"], g["in/current_frame"], strict=True)):
        hidden = masking.num_masked(size, jnp.float32(rate))
        check("masking", "num_masked_in_frame", hidden, g["out/num_masked_in_frame"][i], 0)
        counts = masking.one_frame_counts(jnp.full(3, k), jnp.full(3, hidden), count, size)
        mask = masking.hide_last(orders, counts)
        check("masking", "mask", mask.reshape(3, -1), g["out/mask"][i], 0)
        loss_mask = np.asarray(mask & (jnp.arange(count) == k)[None, :, None]).reshape(3, -1)
        check("masking", "loss_mask", loss_mask, g["out/loss_mask"][i], 0)
        union = g["out/loss_mask_reference_union"][i] * np.asarray(mask).reshape(3, -1)
        check("masking", "loss_mask from the reference's union", loss_mask, union, 0)


def test_forward(case, model):
    g, _ = case("forward")
    tokens, mask = patchify(channels_last(g["in/latents"])), frames(g["in/mask"], 4) > 0
    text, text_mask = jnp.asarray(g["in/text"]), jnp.asarray(g["in/text_mask"])
    context = model.context(text, text_mask)
    check("forward", "tokens", tokens.reshape(g["out/tokens"].shape), g["out/tokens"], 0)
    check("forward", "ctx", context.tokens, g["out/ctx"], 2e-5)
    passes = {
        "z": (context, True, 5e-5),
        "z_nomask_text": (dataclasses.replace(context, mask=None), True, 2e-5),
        "z_dropped": (model.context(text, text_mask, jnp.asarray(g["in/drop"])), True, 5e-5),
        "z_noncausal": (context, False, 5e-5),
    }
    for name, (seen, causal, tol) in passes.items():
        z = model(tokens, mask, seen, GRID, causal=causal)
        check("forward", name, z.reshape(g["out/z"].shape), g[f"out/{name}"], tol)


def test_kv_cache(case, model):
    g, settings = case("kv_cache")
    k = settings["current_frame"]
    tokens, mask = patchify(channels_last(g["in/latents"])), frames(g["in/mask"], 4) > 0
    context = model.context(jnp.asarray(g["in/text"]), jnp.asarray(g["in/text_mask"]))
    check("kv_cache", "z_full", model(tokens, mask, context, GRID)[:, k], g["out/z_full"], 5e-5)
    context = with_keys_values(model, context)
    cache = empty_cache(model, len(tokens), k, tokens.shape[2])
    for number in range(k):
        cache = commit_frame(model, tokens[:, number], jnp.asarray(number), context, cache, GRID)
    rotary = frame_rotary(model, k, GRID)
    z = predict_frame(model, tokens[:, k], mask[:, k], rotary, context, VisibleCache(cache))
    check("kv_cache", "z_cached", z, g["out/z_cached"], 2e-5)
    for name, kept in {"k": cache.keys, "v": cache.values}.items():
        for which, index in {"0": 0, "_last": -1}.items():
            theirs = g[f"out/{name}{which}"]
            check("kv_cache", name + which, kept[index].reshape(theirs.shape), theirs, 5e-5)


def test_the_importer_fills_the_recorded_model(golden):
    """The sizes in the header of the recorded model, against those that the importer inferred from
    shapes."""
    path = golden("videomar/weights.safetensors")
    with safe_open(path, "np") as file:
        header = json.loads(file.metadata()["config"])
    config, params, report = read_checkpoint(path)
    assert (config.width, config.depth, config.num_heads) == (
        header["decoder_embed_dim"],
        header["decoder_depth"],
        header["decoder_num_heads"],
    )
    assert (config.text_tokens, config.text_width) == (header["text_len"], header["text_dim"])
    assert (config.head, config.head_width, config.head_depth) == (
        "ddpm",
        header["diffloss_w"],
        header["diffloss_d"],
    )
    assert config.latent_channels == header["vae_embed_dim"]
    assert {path: leaf.shape for path, leaf in flat(params).items()} == parameter_shapes(config)
    assert report.tensors == 76
