"""Recorded generations, replayed with their own random choices."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.videomar_recordings import channels_last, check
from videomar_jax.sampling.config import SamplingConfig
from videomar_jax.sampling.generate import FrameDraws, generate
from videomar_jax.sampling.schedules import mask_lengths, reveal_plan, temperatures


def test_unmask(case):
    g, settings = case("unmask")
    for tokens, steps in settings["cases"]:
        out = f"out/{tokens}x{steps}"
        check("unmask", "mask_len", mask_lengths(tokens, steps), g[f"{out}/mask_len"], 0)
        plan = reveal_plan(tokens, SamplingConfig(steps=steps, guidance=settings["cfg"]))
        used = g[f"{out}/num_pred"] > 0  # the plan leaves out steps that reveal nothing
        check("unmask", "num_pred", plan.count, g[f"{out}/num_pred"][used], 0)
        check("unmask", "cfg", plan.guidance, g[f"{out}/cfg"][used], 1e-5)
        assert plan.count.sum() == tokens, (
            f"{tokens} tokens in {steps} steps: {plan.count.sum()} were revealed"
        )


@pytest.mark.parametrize("name", ["sample_i2v", "sample_progressive"])
def test_generation(case, model, name):
    g, settings = case(name)
    law = "linear" if "f-" in settings["temperature"] else "constant"
    config = SamplingConfig(
        steps=settings["num_iter"],
        head_steps=settings["head_respacing"],
        guidance=settings["cfg"],
        latent_clip=settings["clip"],
        temperature_law=law,
    )
    draws = FrameDraws(*(jnp.asarray(g[f"in/{k}"]) for k in ("orders", "noise", "step_noise")))
    given, text, mask = (
        channels_last(g["in/cond_latents"]),
        jnp.asarray(g["in/text"]),
        jnp.asarray(g["in/text_mask"]),
    )
    video, trace = generate(
        model, given, text, mask, num_frames=4, config=config, draws=draws, trace=True
    )
    check(name, "latents", video, channels_last(g["out/latents"]), 5e-5)
    np.testing.assert_array_equal(video[:, : settings["n_cond"]], given)
    check(name, "z", trace.z, g["out/z"], 5e-5)
    check(name, "tokens", trace.tokens, g["out/tokens"], 5e-5)
    hidden = np.asarray(trace.hidden)
    check(name, "mask_before", hidden, g["out/mask_before"], 0)
    after = np.concatenate([hidden[:, 1:], np.zeros_like(hidden[:, :1])], axis=1)
    check(name, "pred", hidden & ~after, g["out/pred"], 0)
    lengths, plan = (
        mask_lengths(hidden.shape[-1], config.steps),
        reveal_plan(hidden.shape[-1], config),
    )
    generated = len(hidden)
    check(name, "mask_len", np.tile(lengths, (generated, 1)), g["out/mask_len"], 0)
    check(name, "cfg", np.tile(plan.guidance, (generated, 1)), g["out/cfg"], 1e-6)
    heat = np.tile(temperatures(generated, config)[:, None], (1, config.steps))
    check(name, "temperature", heat, g["out/temperature"], 5e-7)
