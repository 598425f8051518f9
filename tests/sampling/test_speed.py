"""Speed options are really in use; the buckets they round up to waste least.

That none of them changes a video is shown in `test_reference`.
"""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors import safe_open
from safetensors.numpy import load_file

from tests.helpers.tiny_model import tiny_model, tiny_text
from tests.helpers.tiny_video import generated, given_latents, sample_keys
from videomar_jax.interop.videomar import read_checkpoint
from videomar_jax.models import incremental
from videomar_jax.models.videomar import VideoMAR
from videomar_jax.sampling import reveal
from videomar_jax.sampling.config import SamplingConfig
from videomar_jax.sampling.generate import FrameDraws, generate, generate_frames
from videomar_jax.sampling.schedules import reveal_plan
from videomar_jax.sampling.speed import (
    SpeedOptions,
    ceil_div,
    round_up,
    token_buckets,
    visible_length,
)

PLAIN = SpeedOptions.plain()
EVERYTHING = SpeedOptions(unstack_layers=True)
CONFIG = SamplingConfig(steps=3, head_steps="ddim4", guidance=2.0, temperature=0.9, latent_clip=0.0)
BATCH, FRAMES = 2, 5


def make(model=None, speed=EVERYTHING, config=CONFIG, frames=FRAMES):
    model = model or tiny_model(head="ddpm")
    return generated(config, num_frames=frames, model=model, speed=speed)


@pytest.fixture(scope="module")
def plain():
    return make(speed=PLAIN)


def test_speed_options_are_in_use(monkeypatch):
    """An option that does nothing would keep the video as it is, too."""
    calls = []
    original = incremental.predict_frame

    def spied(model, *args, **options):
        past = args[4]
        calls.append(
            dict(
                length=past.cache.keys.shape[2],
                some_tokens=options["token_indices"] is not None,
                layers=options["layers"] is not None,
                masked=past.slots is not None,
            )
        )
        return original(model, *args, **options)

    monkeypatch.setattr(incremental, "predict_frame", spied)
    buckets = []
    fused = reveal.draw_tokens_fused

    def counted(head, process, z, *args):
        buckets.append(z.shape[1])
        return fused(head, process, z, *args)

    monkeypatch.setattr(reveal, "draw_tokens_fused", counted)
    # A model of its own, so that its programs are traced here.
    model = tiny_model(head="ddpm", head_depth=1)
    make(model)
    wanted = [
        dict(length=length, some_tokens=True, layers=True, masked=False)
        for length in range(1, FRAMES)
    ]
    assert calls == wanted, "one program for each filled length"
    assert set(buckets) == {1, 2, 3}, "three reveal steps of six tokens draw 1, 2 and 3"
    calls.clear()
    buckets.clear()
    make(model, PLAIN)
    assert calls and not buckets
    for call in calls:
        assert call == dict(length=FRAMES - 1, some_tokens=False, layers=False, masked=True)


def test_few_cache_lengths_keep_the_video(plain):
    speed = dataclasses.replace(PLAIN, cache_lengths=2)
    np.testing.assert_allclose(make(speed=speed), plain, atol=1e-5 * np.abs(plain).max())


@pytest.mark.parametrize("speed", [PLAIN, EVERYTHING], ids=["plain", "everything"])
def test_alone_and_in_a_batch(speed):
    """Other images, other prompts, other seeds; each video is the one it would be alone."""
    given, keys, (text, mask) = given_latents(batch=3), sample_keys(3), tiny_text(3)
    options = dict(num_frames=3, config=CONFIG, speed=speed)
    model = tiny_model(head="ddpm")
    together = generate(model, given, text, mask, keys=keys, **options)
    assert np.abs(together[0, 1:] - together[1, 1:]).max() > 0.1
    for i in range(3):
        one = slice(i, i + 1)
        alone = generate(model, given[one], text[one], mask[one], keys=keys[one], **options)
        np.testing.assert_allclose(together[one], alone, atol=1e-5 * np.abs(alone).max())


def test_streamed_frames_are_those_of_the_whole(plain):
    frames = generate_frames(
        tiny_model(head="ddpm"),
        given_latents(),
        *tiny_text(),
        num_frames=FRAMES,
        config=CONFIG,
        keys=sample_keys(),
        speed=EVERYTHING,
    )
    video = jnp.stack(list(frames), axis=1)
    np.testing.assert_allclose(video, plain[:, 1:], atol=1e-5 * np.abs(plain).max())


def test_chunks_that_do_not_divide_the_steps(plain, monkeypatch):
    monkeypatch.setattr(reveal, "chunk_size", lambda *_: 3)
    # A combination that was not compiled yet.
    speed = SpeedOptions(token_buckets=2, cache_lengths=1, skip_unused_tokens=False)
    np.testing.assert_allclose(make(speed=speed), plain, atol=1e-5 * np.abs(plain).max())


def test_rows_without_text_are_not_computed_where_guidance_is_off(monkeypatch):
    rows = []
    original = incremental.predict_frame

    def spied(model, tokens, *args, **options):
        rows.append(len(tokens))
        return original(model, tokens, *args, **options)

    monkeypatch.setattr(incremental, "predict_frame", spied)
    model = tiny_model(head_depth=1)
    config = dataclasses.replace(CONFIG, head_steps="3")
    for interval, wanted in (((0.0, 0.5), {2 * BATCH, BATCH}), ((0.0, 1.0), {2 * BATCH})):
        rows.clear()
        make(model, config=dataclasses.replace(config, guidance_interval=interval), frames=2)
        assert set(rows) == wanted, interval


# ---- recorded runs


@pytest.fixture(scope="module")
def recorded_model(golden):
    config, params, _ = read_checkpoint(golden("videomar/weights.safetensors"))
    graph = nnx.split(nnx.eval_shape(lambda: VideoMAR(config, rngs=nnx.Rngs(0))))[0]
    return nnx.merge(graph, jax.tree.map(jnp.asarray, params))


@pytest.mark.parametrize("name", ["sample_i2v", "sample_progressive"])
def test_recorded_generation_with_all_speed_options(golden, recorded_model, name):
    path = golden(f"videomar/{name}.safetensors")
    with safe_open(path, "np") as file:
        settings = json.loads(file.metadata()["meta"])
    arrays = load_file(path)
    config = SamplingConfig(
        steps=settings["num_iter"],
        head_steps=settings["head_respacing"],
        guidance=settings["cfg"],
        latent_clip=settings["clip"],
        temperature_law="linear" if "f-" in settings["temperature"] else "constant",
    )
    names = ("orders", "noise", "step_noise")
    draws = FrameDraws(*(jnp.asarray(arrays[f"in/{name}"]) for name in names))
    given = jnp.moveaxis(jnp.asarray(arrays["in/cond_latents"]), -3, -1)
    with jax.default_matmul_precision("highest"):
        video = generate(
            recorded_model,
            given,
            jnp.asarray(arrays["in/text"]),
            jnp.asarray(arrays["in/text_mask"]),
            num_frames=4,
            config=config,
            draws=draws,
            speed=EVERYTHING,
        )
    wanted = np.moveaxis(arrays["out/latents"], -3, -1)
    np.testing.assert_allclose(video, wanted, atol=5e-5)


# ---- buckets and lengths


SIZES = [(1, 1), (1, 5), (2, 1), (6, 3), (6, 6), (6, 10), (12, 64), (256, 16), (1440, 64)]


@pytest.mark.parametrize(("tokens", "steps"), SIZES)
@pytest.mark.parametrize("most", [1, 2, 3])
def test_every_count_fits_its_bucket(tokens, steps, most):
    counts = reveal_plan(tokens, SamplingConfig(steps=steps)).count
    buckets = token_buckets(counts, most)
    assert len(buckets) <= most and buckets[-1] == counts.max()
    assert list(buckets) == sorted(set(buckets))
    rounded = round_up(counts, buckets)
    assert (rounded >= counts).all() and set(rounded) <= set(buckets)


def test_buckets_waste_least():
    counts = reveal_plan(64, SamplingConfig(steps=16)).count
    best = min(round_up(counts, (a, b, 6)).sum() for a in range(1, 5) for b in range(a + 1, 6))
    three, one = round_up(counts, token_buckets(counts)), round_up(counts, token_buckets(counts, 1))
    assert three.sum() == best < 1.2 * 64 < one.sum()


@pytest.mark.parametrize(("length", "lengths"), [(1, 4), (3, 4), (7, 2), (24, 4), (25, 4)])
def test_visible_lengths_cover_the_filled_part_and_are_few(length, lengths):
    visible = [visible_length(stored, length, lengths) for stored in range(1, length + 1)]
    assert all(stored <= seen <= length for stored, seen in enumerate(visible, 1))
    assert visible[-1] == length and len(set(visible)) <= lengths


def test_a_ceiling_division():
    assert [ceil_div(a, 3) for a in (0, 1, 3, 4)] == [0, 1, 1, 2]


def test_small_requests_are_not_worth_compiling_for():
    small = tiny_model().config
    assert SpeedOptions.for_request(small, 16, 4, 4).cache_lengths == 1
    large = dataclasses.replace(small, width=1536, depth=36, num_heads=16)
    chosen = SpeedOptions.for_request(large, 1440, 64, 2)
    assert chosen == SpeedOptions(cache_lengths=1), "attention to 2 frames is a small part"
    assert SpeedOptions.for_request(large, 1440, 64, 60).cache_lengths == 4
