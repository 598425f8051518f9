"""The core against numbers recorded from the reference implementation, weights read through the importer.

Every recorded case, float32, highest matmul precision, at the tolerances given beside the recordings. Where
VIDEOMAR_PARITY_TABLE names a file, the worst error of every quantity is written there as a Markdown table.
"""

import dataclasses
import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors import safe_open
from safetensors.numpy import load_file

from videomar_jax.interop.rules import expected, exported, flat
from videomar_jax.interop.videomar import parameter_shapes, read_checkpoint
from videomar_jax.interop.videomar_rules import RULES
from videomar_jax.models import attention, masking
from videomar_jax.models.diffusion import DDPM, cosine_betas, ddpm_tables, guide, kept_steps
from videomar_jax.models.diffusion_head import time_features
from videomar_jax.models.patchify import patchify, positions, unpatchify
from videomar_jax.models.rope import rotate, rotation
from videomar_jax.models.videomar import VideoMAR
from videomar_jax.sampling import decode
from videomar_jax.sampling.schedules import SamplingConfig, mask_lengths, reveal_plan, temperatures
from videomar_jax.training import step as train
from videomar_jax.training.loss import Batch, LossConfig, LossDraws, diffusion_losses, next_frame_loss
from videomar_jax.training.optimizer import OptimizerConfig, make_optimizer
from videomar_jax.training.state import TrainState

GRID = (3, 4)
SEEN: dict[tuple[str, str], tuple[str, float, float]] = {}
"""(case, quantity) → (tolerance, worst error, worst share of what is allowed) of this run."""


@pytest.fixture(autouse=True)
def highest_precision():
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(autouse=True, scope="module")
def parity_table():
    SEEN.clear()
    yield
    if name := os.environ.get("VIDEOMAR_PARITY_TABLE"):
        rows = [
            f"| {case} | {what} | {tol} | {worst:.1e} | {share:.0%} |"
            for (case, what), (tol, worst, share) in SEEN.items()
        ]
        head = ["| case | quantity | tolerance | worst error seen | of the allowance |", "|---|---|---|---|---|"]
        Path(name).write_text("\n".join(head + rows) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def model(golden) -> VideoMAR:
    """The recorded model, unrolled by nothing, with float32 parameters on the device."""
    config, params, _ = read_checkpoint(golden("videomar/weights.safetensors"))
    graph = nnx.split(nnx.eval_shape(lambda: VideoMAR(config, rngs=nnx.Rngs(0))))[0]
    return nnx.merge(graph, jax.tree.map(jnp.asarray, params))


@pytest.fixture
def case(golden):
    """Reads a recorded case: its tensors and its settings."""

    def read(name: str) -> tuple[dict[str, np.ndarray], dict]:
        path = golden(f"videomar/{name}.safetensors")
        with safe_open(path, "np") as file:
            settings = json.loads(file.metadata()["meta"])
        return load_file(path), settings

    return read


def check(case: str, what: str, ours, theirs, atol: float, rtol: float = 0.0) -> None:
    """Compares with absolute plus relative tolerance (0, 0: exactly) and notes the worst difference."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape, f"{case}, {what}: {ours.shape} instead of {theirs.shape}"
    error = np.abs(ours - theirs)
    assert np.isfinite(error).all(), f"{case}, {what}: not finite"
    relative = rtol and not atol
    worst = float((error / np.where(theirs == 0, 1, np.abs(theirs)) if relative else error).max())
    text = " + ".join([f"{atol:g}"] * bool(atol) + [f"{rtol:g} relative"] * bool(rtol)) or "exact"
    allowed = atol + rtol * np.abs(theirs)
    share = float((error / np.where(allowed == 0, 1, allowed)).max())
    before = SEEN.get((case, what), ("", 0.0, 0.0))
    SEEN[case, what] = (text, max(worst, before[1]), max(share, before[2]))
    assert (error <= allowed).all(), f"{case}, {what}: off by {worst:.3g}, allowed {text}"


def channels_last(latents: np.ndarray) -> jax.Array:
    """[..., T, C, h, w] → [..., T, h, w, C]."""
    return jnp.asarray(np.moveaxis(latents, -3, -1))


def layer(modules, index: int):
    """One layer of a stack."""
    return jax.tree.map(lambda leaf: leaf[index], modules)


def frames(x: np.ndarray, count: int) -> jax.Array:
    """[B, T*S, ...] → [B, T, S, ...]."""
    return jnp.asarray(x).reshape(len(x), count, -1, *x.shape[2:])


def official(tree) -> dict[str, np.ndarray]:
    """Parameters, gradients or averages under the published names: the exporter's own view."""
    leaves = flat(tree)
    specs, make = exported(expected(RULES, {path: leaf.shape for path, leaf in leaves.items()}), leaves)
    return {name: make(name) for name in specs}


# ---------------------------------------------------------------- parts of the transformer


def test_rope(case):
    g, settings = case("rope")
    grid, frame = settings["grid_64"], settings["frame_index"]
    np.testing.assert_array_equal(positions(grid[0], tuple(grid[1:])).reshape(-1, 3), g["in/positions"])
    split = tuple(settings["split_64"])
    whole = rotation(positions(grid[0], tuple(grid[1:])), split, settings["theta"])
    check("rope", "y", rotate(frames(g["in/x"], grid[0]), whole, split).reshape(g["out/y"].shape), g["out/y"], 5e-6)
    one = rotation(positions(jnp.array([frame]), tuple(grid[1:])), split, settings["theta"])
    check("rope", "y_frame", rotate(frames(g["in/x_frame"], 1), one, split)[:, 0], g["out/y_frame"], 5e-6)
    grid, split = settings["grid_128"], tuple(settings["split_128"])
    wide = rotation(positions(grid[0], tuple(grid[1:])), split, settings["theta"])
    y = rotate(frames(g["in/x128"], grid[0]), wide, split).reshape(g["out/y128"].shape)
    check("rope", "y128", y, g["out/y128"], 5e-6)


def test_self_attention(case, model):
    g, _ = case("self_attn")
    block, x, turns = layer(model.transformer.blocks, 0).self_attention, frames(g["in/x"], 4), model.rotation(4, GRID)
    for name, value in zip("qkv", block.queries_keys_values(x, turns), strict=True):
        theirs = g[f"out/{name}"]
        check("self_attn", name, value.reshape(theirs.shape), theirs, 2e-5 if name == "v" else 5e-5)
    for name, mix in {"causal": attention.frame_causal, "full": attention.whole_clip}.items():
        check("self_attn", name, block(x, turns, mix)[0].reshape(g["in/x"].shape), g[f"out/{name}"], 5e-5)


def test_cross_attention(case, model):
    g, _ = case("cross_attn")
    block, x = layer(model.transformer.blocks, 0).cross_attention, frames(g["in/x"], 4)
    text = block.keys_values(jnp.asarray(g["in/ctx"]))
    for name, mask, tol in (("masked", jnp.asarray(g["in/text_mask"]), 1e-5), ("unmasked", None, 2e-5)):
        check("cross_attn", name, block(x, text, mask).reshape(g["in/x"].shape), g[f"out/{name}"], tol)


def test_block(case, model):
    g, _ = case("block")
    block = layer(model.transformer.blocks, 1)
    text = block.cross_attention.keys_values(jnp.asarray(g["in/ctx"]))
    for tail in ("", "_small"):
        x = frames(g[f"in/x{tail}"], 4)
        y, _ = block(x, text, jnp.asarray(g["in/text_mask"]), model.rotation(4, GRID), attention.frame_causal)
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
        check("patchify", f"latents from tokens_p{size}", unpatchify(tokens, grid, size), latents, 0)


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


# ---------------------------------------------------------------- passes


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
    cache = model.empty_cache(len(tokens), k, tokens.shape[2])
    for number in range(k):
        cache = model.remember(tokens[:, number], jnp.asarray(number), context, cache, GRID)
    z = model.frame(tokens[:, k], mask[:, k], jnp.asarray(k), context, cache, GRID)
    check("kv_cache", "z_cached", z, g["out/z_cached"], 2e-5)
    for name, kept in {"k": cache.keys, "v": cache.values}.items():
        for which, index in {"0": 0, "_last": -1}.items():
            theirs = g[f"out/{name}{which}"]
            check("kv_cache", name + which, kept[index].reshape(theirs.shape), theirs, 5e-5)


def guided_output(output: jax.Array, guidance: float) -> tuple[jax.Array, jax.Array]:
    """(guided noise of the rows with text, variance values of all rows) of 2n rows."""
    noise, variance = jnp.split(output, 2, axis=-1)
    return guide(*jnp.split(noise, 2), jnp.float32(guidance)), variance


def test_head(case, model):
    g, _ = case("head")
    t = jnp.asarray(g["in/t"])
    check("head", "sinusoid", time_features(t), g["out/sinusoid"], 5e-4)
    check("head", "temb", model.head.time_embedding(t), g["out/temb"], 5e-5)
    check("head", "y", model.head(jnp.asarray(g["in/x"]), t, jnp.asarray(g["in/c"])), g["out/y"], 2e-5)
    rows = jnp.tile(g["in/x_cfg"][: len(t)], (2, 1))
    output = model.head(rows, jnp.tile(t, 2), jnp.asarray(g["in/c_cfg"]))
    for guidance, tol in ((1, 2e-5), (3, 5e-5)):
        noise, variance = guided_output(output, guidance)
        y = jnp.concatenate([jnp.tile(noise, (2, 1)), variance], axis=-1)
        check("head", f"y_cfg{guidance}", y, g[f"out/y_cfg{guidance}"], tol)


# ---------------------------------------------------------------- diffusion


def test_loss(case, model):
    g, _ = case("loss")
    process, t, target, noise = DDPM(), *(jnp.asarray(g[f"in/{k}"]) for k in ("t", "target", "noise"))
    x_t = process.noised(target, t, noise)
    check("loss", "x_t", x_t, g["out/x_t"], 2e-6)
    output = model.head(x_t, t, jnp.asarray(g["in/z"]))
    check("loss", "model_out", output, g["out/model_out"], 2e-5)
    mse, vb = process.loss_terms(output, target, x_t, t, noise)
    for name, value in {"mse": mse, "vb": vb, "loss": process.loss(output, target, x_t, t, noise)}.items():
        tolerance = (1e-5 if name == "mse" else 1e-6, 0.0 if name == "mse" else 2e-4)
        check("loss", name, value, g[f"out/{name}"], *((2e-5, 0.0) if name == "mse" else tolerance))
        check("loss", f"{name}_f64", value, g[f"out/{name}_f64"], *tolerance)


def test_loss_reductions_and_gradients(case, model):
    g, _ = case("loss")
    mask, supervised = jnp.asarray(g["in/mask"]), jnp.asarray(g["in/mask"] * g["in/loss_mask"])
    draws = LossDraws(
        current=jnp.zeros(1, int), orders=jnp.zeros((1, 1, 32), int), num_masked=jnp.zeros((1, 1), int),
        drop=jnp.zeros(1, bool), times=jnp.asarray(g["in/t"])[None, None, None],
        noise=jnp.asarray(g["in/noise"])[None, None, None],
    )  # fmt: skip
    target = jnp.asarray(g["in/target"])[None, None]

    def total(model, z):
        rows = diffusion_losses(model, z[None, None], target, draws)[0, 0, 0]
        return jnp.sum(rows * supervised) / jnp.sum(mask), rows

    z = jnp.asarray(g["in/z"])
    (value, rows), (grads, grad_z) = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(model, z)
    for name in ("total_den_mask", "total_den_mask_f64"):
        check("loss", name, value, g[f"out/{name}"], 1e-6, 2e-4)
    sums = {"total_den_lossmask": (supervised, supervised), "total_mask_only": (mask, mask)}
    for name, (weight, count) in sums.items():
        check("loss", name, jnp.sum(rows * weight) / jnp.sum(count), g[f"out/{name}"], 1e-6, 2e-4)
    named = official(nnx.to_pure_dict(nnx.state(grads)))
    check("loss", "grad_z", grad_z, g["out/grad_z"], 1e-7)
    check("loss", "grad_final_w", named["diffloss.net.final_layer.linear.weight"], g["out/grad_final_w"], 5e-6)
    check("loss", "grad_input_w", named["diffloss.net.input_proj.weight"], g["out/grad_input_w"], 5e-7)


def test_schedules(case):
    g, _ = case("schedules")
    tables = {}
    for key, theirs in g.items():
        _, name, table = key.split("/")
        if name not in tables:
            tables[name] = ddpm_tables(kept_steps("" if name == "train1000" else name), cosine_betas())
        rtol = 0.0 if table == "timestep_map" else 1e-12
        check("schedules", table, tables[name][table], theirs, 0, rtol)
    assert len(g) == 11 * 13, f"{len(g)} tables were compared; the recording has 11 respacings of 13 tables"


# (x, pred_x0, final) for guidance 1 and 3
P_SAMPLE = {
    "p_sample": {"1.0": (5e-5, 5e-4, 1e-5), "3.0": (1e-4, 1e-3, 2e-5)},
    "p_sample_25": {"1.0": (2e-1, 2e-1, 2e-1), "3.0": (1.0, 1.0, 1.0)},
}


@pytest.mark.parametrize("temperature", ["1.0", "0.95"])
@pytest.mark.parametrize("guidance", ["1.0", "3.0"])
@pytest.mark.parametrize("name", P_SAMPLE)
def test_p_sample(case, model, name, guidance, temperature):
    g, settings = case(name)
    process, start, noise = DDPM(), jnp.asarray(g["in/noise"]), jnp.asarray(g["in/step_noise"])
    plan = process.plan(settings["respacing"])
    guided, z = guidance != "1.0", jnp.asarray(g["in/z"])
    z = z if guided else z[: len(start)]
    scale, heat = jnp.float32(guidance), jnp.float32(temperature)
    out = f"out/T{temperature}_cfg{guidance}"
    tol_x, tol_clean, tol_final = P_SAMPLE[name][guidance]

    @jax.jit
    def one(x, step, injected):
        output = model.head(jnp.tile(x, (1 + guided, 1)), step["time"], z)
        noise, variance = guided_output(output, scale) if guided else jnp.split(output, 2, axis=-1)
        _, _, clean = process.posterior(noise, variance[: len(x)], x, step)
        null = output[len(x) :] if guided else None
        return process.advance(x, output[: len(x)], null, step, injected, scale, heat), clean

    x = process.start(start, heat)
    for i in range(len(noise)):
        x, clean = one(x, jax.tree.map(lambda table, i=i: table[i], plan), noise[i])
        check(name, f"x, guidance {guidance}", x, g[f"{out}/x"][i], tol_x)
        check(name, f"pred_x0, guidance {guidance}", clean, g[f"{out}/pred_x0"][i], tol_clean)
    rows = z.reshape(1 + guided, len(start), -1)
    final = decode.draw_tokens(model, rows, start[None], noise[:, None], plan, scale, heat)
    check(name, f"final, guidance {guidance}", final[0], g[f"{out}/final"], tol_final)


# ---------------------------------------------------------------- generation


def test_unmask(case):
    g, settings = case("unmask")
    for tokens, steps in settings["cases"]:
        out = f"out/{tokens}x{steps}"
        check("unmask", "mask_len", mask_lengths(tokens, steps), g[f"{out}/mask_len"], 0)
        plan = reveal_plan(tokens, SamplingConfig(steps=steps, guidance=settings["cfg"]))
        used = g[f"{out}/num_pred"] > 0  # the plan leaves out steps that reveal nothing
        check("unmask", "num_pred", plan.count, g[f"{out}/num_pred"][used], 0)
        check("unmask", "cfg", plan.guidance, g[f"{out}/cfg"][used], 1e-5)
        assert plan.count.sum() == tokens, f"{tokens} tokens in {steps} steps: {plan.count.sum()} were revealed"


@pytest.mark.parametrize("name", ["sample_i2v", "sample_progressive"])
def test_generation(case, model, name):
    g, settings = case(name)
    law = "linear" if "f-" in settings["temperature"] else "constant"
    config = SamplingConfig(
        steps=settings["num_iter"], head_steps=settings["head_respacing"], guidance=settings["cfg"],
        clip=settings["clip"], temperature_law=law,
    )  # fmt: skip
    draws = decode.FrameDraws(*(jnp.asarray(g[f"in/{k}"]) for k in ("orders", "noise", "step_noise")))
    given, text, mask = channels_last(g["in/cond_latents"]), jnp.asarray(g["in/text"]), jnp.asarray(g["in/text_mask"])
    video, trace = decode.generate(
        model, given, text, mask, num_frames=4, config=config, draws=draws, trace=True
    )  # fmt: skip
    check(name, "latents", video, channels_last(g["out/latents"]), 5e-5)
    np.testing.assert_array_equal(video[:, : settings["n_cond"]], given)
    check(name, "z", trace.z, g["out/z"], 5e-5)
    check(name, "tokens", trace.tokens, g["out/tokens"], 5e-5)
    hidden = np.asarray(trace.hidden)
    check(name, "mask_before", hidden, g["out/mask_before"], 0)
    after = np.concatenate([hidden[:, 1:], np.zeros_like(hidden[:, :1])], axis=1)
    check(name, "pred", hidden & ~after, g["out/pred"], 0)
    lengths, plan = mask_lengths(hidden.shape[-1], config.steps), reveal_plan(hidden.shape[-1], config)
    generated = len(hidden)
    check(name, "mask_len", np.tile(lengths, (generated, 1)), g["out/mask_len"], 0)
    check(name, "cfg", np.tile(plan.guidance, (generated, 1)), g["out/cfg"], 1e-6)
    heat = np.tile(temperatures(generated, config)[:, None], (1, config.steps))
    check(name, "temperature", heat, g["out/temperature"], 5e-7)


# ---------------------------------------------------------------- training

# name → tolerance of the gradient of step 0, of the parameter and of its average after three steps
TRAINED = {
    "mask_token": (2e-7, 5e-6, 2e-6),
    "fake_latent": (2e-8, 5e-5, 1e-5),
    "z_proj.weight": (2e-7, 2e-6, 1e-6),
    "context_embed.bias": (5e-8, 5e-7, 1e-6),
    "decoder_blocks.0.scale_shift_table": (2e-7, 2e-6, 2e-6),
    "decoder_blocks.0.norm1.weight": (2e-7, 2e-6, 5e-6),
    "decoder_blocks.0.attn1.wqkv.weight": (5e-7, 5e-4, None),
    "decoder_blocks.1.attn1.q_norm.weight": (1e-7, 2e-6, 5e-6),
    "decoder_blocks.1.attn2.wkv.weight": (2e-8, 2e-4, None),
    "decoder_norm.bias": (1e-7, 5e-7, 5e-7),
    "diffloss.net.input_proj.weight": (1e-7, 5e-7, 1e-6),
    "diffloss.net.res_blocks.0.adaLN_modulation.1.weight": (2e-7, 1e-4, 2e-5),
    "diffloss.net.final_layer.linear.weight": (5e-7, 2e-5, 5e-6),
    "diffloss.net.time_embed.mlp.0.weight": (5e-8, 1e-4, 5e-5),
}


def recorded_draws(g: dict[str, np.ndarray], draws_per_token: int) -> tuple[list[LossDraws], list[Batch]]:
    """The random choices and the batches of the recorded steps."""
    steps, clips, count = g["in/latents"].shape[:3]
    size = g["in/orders"].shape[-1] // count
    rows = (draws_per_token, clips, count, size)
    draws, batches = [], []
    for s in range(steps):
        k = int(g["in/current_frame"][s])
        now = slice(k, k + 1)  # the reference draws for all frames, but only frame k carries loss
        draws.append(LossDraws(
            current=jnp.full(clips, k), orders=jnp.asarray(g["in/orders"][s].reshape(clips, count, size) % size),
            num_masked=jnp.full((clips, count), masking.num_masked(size, jnp.float32(g["in/mask_rate"][s]))),
            drop=jnp.asarray(g["in/drop"][s]), times=jnp.asarray(g["in/t"][s].reshape(rows)[:, :, now]),
            noise=jnp.asarray(g["in/noise"][s].reshape(*rows, -1)[:, :, now]),
        ))  # fmt: skip
        text = (jnp.asarray(g[f"in/{name}"][s]) for name in ("text", "text_mask"))
        batches.append(Batch(channels_last(g["in/latents"][s]), *text))
    return draws, batches


def test_train_steps(case, model, monkeypatch):
    g, settings = case("train_steps")
    draws, batches = recorded_draws(g, settings["diffusion_batch_mul"])
    loss_config = LossConfig(draws_per_token=settings["diffusion_batch_mul"], normaliser=settings["normaliser"])
    graph, state = nnx.split(model)
    params = nnx.to_pure_dict(state)

    def loss_of(params):
        return next_frame_loss(nnx.merge(graph, params), batches[0], draws[0], loss_config)[0]

    gradients = official(jax.jit(jax.grad(loss_of))(params))
    for name, (tol, _, _) in TRAINED.items():
        check("train_steps", f"gradient {name}", gradients[name], g[f"out/grad/{name}"], tol)

    beta1, beta2 = settings["betas"]
    config = OptimizerConfig(
        beta1=beta1, beta2=beta2, epsilon=settings["eps"], weight_decay=settings["weight_decay"],
        clip_norm=settings["grad_clip"], ema_decay=settings["ema_rate"],
    )  # fmt: skip
    rates = jnp.asarray(settings["lrs"])
    optimizer = make_optimizer(config, lambda step: rates[step])
    # The package's own step, told the recorded choices instead of random ones: step s draws with fold_in(key, s).
    key = jax.random.key(0)
    keys = jax.vmap(lambda s: jax.random.key_data(jax.random.fold_in(key, s)))(jnp.arange(len(draws)))
    stacked = [jnp.stack(leaves) for leaves in zip(*map(jax.tree.leaves, draws), strict=True)]

    def replay(key, *_):
        which = jnp.argmax(jnp.all(keys == jax.random.key_data(key), axis=-1))
        return jax.tree.unflatten(jax.tree.structure(draws[0]), [leaf[which] for leaf in stacked])

    monkeypatch.setattr(train, "draw", replay)
    step = train.make_train_step(graph, optimizer, loss_config, config)
    params = jax.tree.map(jnp.array, params)  # the state is donated; the model is shared by other tests
    state = TrainState(jnp.asarray(0), params, jax.tree.map(jnp.array, params), optimizer.init(params))
    for s, batch in enumerate(batches):
        state, metrics = step(state, batch, key)
        check("train_steps", "losses", metrics["loss"], g["out/losses"][s], 5e-6)
        check("train_steps", "grad_norm", metrics["gradient_norm"], g["out/grad_norm"][s], 5e-5)
    after, average = official(state.params), official(state.ema)
    for name, (_, tol, tol_average) in TRAINED.items():
        check("train_steps", f"parameter {name}", after[name], g[f"out/param/{name}"], tol)
        if tol_average is not None:
            check("train_steps", f"average {name}", average[name], g[f"out/ema/{name}"], tol_average)
    compared = sum(key.split("/")[1] in ("grad", "param", "ema") for key in g if key.startswith("out/"))
    assert compared == sum(3 - (tols[2] is None) for tols in TRAINED.values()), "a recorded tensor was not compared"


def test_the_importer_fills_the_recorded_model(golden):
    """Sizes of the recorded model, told by its own header, against what the importer inferred from shapes."""
    path = golden("videomar/weights.safetensors")
    with safe_open(path, "np") as file:
        told = json.loads(file.metadata()["config"])
    config, params, report = read_checkpoint(path)
    assert (config.width, config.depth, config.num_heads) == (
        told["decoder_embed_dim"], told["decoder_depth"], told["decoder_num_heads"],
    )  # fmt: skip
    assert (config.text_tokens, config.text_width) == (told["text_len"], told["text_dim"])
    assert (config.head, config.head_width, config.head_depth) == ("ddpm", told["diffloss_w"], told["diffloss_d"])
    assert config.latent_channels == told["vae_embed_dim"]
    assert {path: leaf.shape for path, leaf in flat(params).items()} == parameter_shapes(config)
    assert report.tensors == 76
