"""What makes generation faster gives the same video: every lever against the plain way, all
together against recorded runs, and the schedules that save work against a loop that follows them
step by step."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors import safe_open
from safetensors.numpy import load_file

from tests.helpers import plain_loop
from tests.helpers.tiny_model import GRID, tiny_model, tiny_text
from videomar_jax.interop.videomar import read_checkpoint
from videomar_jax.models.videomar import VideoMAR
from videomar_jax.sampling import fused_head as head_module
from videomar_jax.sampling import reveal as frame_module
from videomar_jax.sampling.decoder import FrameDraws, SpeedOptions, generate, generate_frames
from videomar_jax.sampling.fused_head import chunk_size
from videomar_jax.sampling.schedules import SamplingConfig

PLAIN = SpeedOptions.plain()
EVERYTHING = SpeedOptions(apart=True)
ONE_BY_ONE = {
    "fast_head": dataclasses.replace(PLAIN, fast_head=True),
    "sizes": dataclasses.replace(PLAIN, sizes=3),
    "prefixes": dataclasses.replace(PLAIN, prefixes=8),
    "few_prefixes": dataclasses.replace(PLAIN, prefixes=2),
    "last_rows": dataclasses.replace(PLAIN, last_rows=True),
    "apart": dataclasses.replace(PLAIN, apart=True),
    "everything": EVERYTHING,
}
CONFIG = SamplingConfig(steps=3, head_steps="ddim4", guidance=2.0, temperature=0.9, latent_clip=0.0)
BATCH, FRAMES = 2, 5


def given_latents(frames=1, batch=BATCH):
    return jax.random.normal(jax.random.key(7), (batch, frames, *GRID, 3))


def keys(batch=BATCH):
    return jax.random.split(jax.random.key(8), batch)


def make(model=None, levers=EVERYTHING, config=CONFIG, frames=FRAMES, **options):
    model = model or tiny_model(head="ddpm")
    given = options.pop("given", given_latents())
    options = {"keys": keys(len(given))} | options
    return generate(
        model,
        given,
        *tiny_text(len(given)),
        num_frames=frames,
        config=config,
        levers=levers,
        **options,
    )


@pytest.fixture(scope="module")
def plain():
    return make(levers=PLAIN)


# ---------------------------------------------------------------- levers that change nothing


@pytest.mark.parametrize("name", ONE_BY_ONE)
def test_a_lever_leaves_the_video_as_it_is(plain, name):
    """Relative to the largest value, because the random weights let values grow to about a
    hundred."""
    np.testing.assert_allclose(
        make(levers=ONE_BY_ONE[name]), plain, atol=1e-5 * np.abs(plain).max()
    )


def test_levers_are_pulled(monkeypatch):
    """A lever that does nothing would pass the test above."""
    calls = []
    original = VideoMAR.frame

    def spied(self, *args, **options):
        cache, rows, layers = args[4], options["rows"], options["layers"]
        calls.append(
            (
                cache.keys.shape[2],
                rows is not None,
                layers is not None,
                isinstance(options["seen"], str),
            )
        )
        return original(self, *args, **options)

    monkeypatch.setattr(VideoMAR, "frame", spied)
    sizes = []
    fast = head_module.draw_tokens_fast

    def counted(head, process, z, *args):
        sizes.append(z.shape[1])
        return fast(head, process, z, *args)

    monkeypatch.setattr(frame_module, "draw_tokens_fast", counted)
    model = tiny_model(
        head="ddpm", head_depth=1
    )  # nobody else's, so that its programs are traced here
    make(model)
    assert calls == [(n, True, True, True) for n in range(1, FRAMES)], (
        "one program for each filled length"
    )
    assert set(sizes) == {1, 2, 3}, "three reveal steps of six tokens draw 1, 2 and 3"
    calls.clear(), sizes.clear()
    make(model, PLAIN)
    assert set(calls) == {(FRAMES - 1, False, False, False)} and not sizes


@pytest.mark.parametrize("levers", [PLAIN, EVERYTHING], ids=["plain", "fast"])
def test_alone_and_in_a_batch(levers):
    """Other images, other prompts, other seeds; each video is the one it would be alone."""
    given, (text, mask) = given_latents(batch=3), tiny_text(3)
    options = dict(num_frames=3, config=CONFIG, levers=levers)
    model = tiny_model(head="ddpm")
    together = generate(model, given, text, mask, keys=keys(3), **options)
    assert np.abs(together[0, 1:] - together[1, 1:]).max() > 0.1
    for i in range(3):
        one = slice(i, i + 1)
        alone = generate(model, given[one], text[one], mask[one], keys=keys(3)[one], **options)
        np.testing.assert_allclose(together[one], alone, atol=1e-5 * np.abs(alone).max())


def test_streamed_frames_are_those_of_the_whole(plain):
    model = tiny_model(head="ddpm")
    frames = generate_frames(
        model,
        given_latents(),
        *tiny_text(),
        num_frames=FRAMES,
        config=CONFIG,
        keys=keys(),
        levers=EVERYTHING,
    )
    np.testing.assert_allclose(
        jnp.stack(list(frames), 1), plain[:, 1:], atol=1e-5 * np.abs(plain).max()
    )


@pytest.mark.parametrize(
    ("evaluations", "rows", "varying", "size"),
    [
        (25, 12, False, 25),
        (100, 72, False, 5),
        (100, 26, False, 10),
        (101, 72, False, 6),
        (25, 12, True, 3),
        (4, 5000, False, 1),
    ],
)
def test_chunks_of_head_steps(evaluations, rows, varying, size):
    assert chunk_size(evaluations, rows, varying) == size


def test_chunks_that_do_not_divide_the_steps(plain, monkeypatch):
    monkeypatch.setattr(frame_module, "chunk_size", lambda *_: 3)
    levers = SpeedOptions(
        sizes=2, prefixes=1, last_rows=False
    )  # a combination that was not compiled yet
    np.testing.assert_allclose(make(levers=levers), plain, atol=1e-5 * np.abs(plain).max())


# ---------------------------------------------------------------- recorded runs


@pytest.fixture(scope="module")
def recorded_model(golden):
    config, params, _ = read_checkpoint(golden("videomar/weights.safetensors"))
    graph = nnx.split(nnx.eval_shape(lambda: VideoMAR(config, rngs=nnx.Rngs(0))))[0]
    return nnx.merge(graph, jax.tree.map(jnp.asarray, params))


@pytest.mark.parametrize("name", ["sample_i2v", "sample_progressive"])
def test_recorded_generation(golden, recorded_model, name):
    path = golden(f"videomar/{name}.safetensors")
    with safe_open(path, "np") as file:
        settings = json.loads(file.metadata()["meta"])
    g = load_file(path)
    config = SamplingConfig(
        steps=settings["num_iter"],
        head_steps=settings["head_respacing"],
        guidance=settings["cfg"],
        latent_clip=settings["clip"],
        temperature_law="linear" if "f-" in settings["temperature"] else "constant",
    )
    draws = FrameDraws(*(jnp.asarray(g[f"in/{k}"]) for k in ("orders", "noise", "step_noise")))
    given, wanted = (
        jnp.moveaxis(jnp.asarray(g[k]), -3, -1) for k in ("in/cond_latents", "out/latents")
    )
    with jax.default_matmul_precision("highest"):
        video = generate(
            recorded_model,
            given,
            jnp.asarray(g["in/text"]),
            jnp.asarray(g["in/text_mask"]),
            num_frames=4,
            config=config,
            draws=draws,
            levers=EVERYTHING,
        )
    np.testing.assert_allclose(video, wanted, atol=5e-5)


# ---------------------------------------------------------------- schedules that save work


def check_against_loop(model, config, draws_of, head_steps=None, levers=(PLAIN, EVERYTHING)):
    draws = plain_loop.frame_draws(model, keys(), 1, 3, draws_of)
    wanted = plain_loop.plain_loop(model, given_latents(), config, 3, draws, head_steps)
    for lever in levers:
        made = make(model, lever, config, frames=3)
        np.testing.assert_allclose(
            made, wanted, atol=1e-4 * np.abs(wanted).max(), err_msg=str(lever)
        )
    return wanted


def test_head_steps_that_fall_over_the_reveal_steps():
    config = dataclasses.replace(CONFIG, head_steps="7-2")
    annealed = check_against_loop(
        tiny_model(head="ddpm"), config, "7", ["7", "4", "2"]
    )  # 4.5 to even
    longest = make(config=dataclasses.replace(CONFIG, head_steps="7"), frames=3)
    assert np.abs(annealed - longest).max() > 1e-2


def test_flow_head_steps_that_fall():
    check_against_loop(
        tiny_model(), dataclasses.replace(CONFIG, head_steps="5-1"), "5", ["5", "3", "1"]
    )


def test_heun_for_the_flow_head():
    config = dataclasses.replace(CONFIG, head_steps="3", head_solver="heun")
    heun = check_against_loop(tiny_model(), config, "3")
    assert (
        np.abs(
            heun
            - make(tiny_model(), config=dataclasses.replace(config, head_solver="euler"), frames=3)
        ).max()
        > 1e-2
    )


@pytest.mark.parametrize("interval", [(0.0, 0.5), (0.3, 1.0)])
def test_guidance_on_a_share_of_the_steps(interval):
    config = dataclasses.replace(
        CONFIG, guidance_interval=interval, guidance_schedule="constant", head_steps="3"
    )
    check_against_loop(tiny_model(), config, "3")


def test_rows_without_text_are_not_computed_where_guidance_is_off(monkeypatch):
    rows = []
    original = VideoMAR.frame

    def spied(self, tokens, *args, **options):
        rows.append(len(tokens))
        return original(self, tokens, *args, **options)

    monkeypatch.setattr(VideoMAR, "frame", spied)
    model = tiny_model(head_depth=1)
    for interval, wanted in (((0.0, 0.5), {2 * BATCH, BATCH}), ((0.0, 1.0), {2 * BATCH})):
        rows.clear()
        make(
            model,
            config=dataclasses.replace(CONFIG, head_steps="3", guidance_interval=interval),
            frames=2,
        )
        assert set(rows) == wanted
