"""Truncated clips, batches in parts, losses by frame and by noise, and noise on the history."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.helpers.tiny_model import GRID, annotations_off, tiny_config, tiny_model, tiny_text
from videomar_jax.models.params import abstract_model
from videomar_jax.models.videomar import VideoMAR
from videomar_jax.training.config import LossConfig
from videomar_jax.training.draws import Batch, draw
from videomar_jax.training.loss import next_frame_loss
from videomar_jax.training.normaliser import loss_normaliser
from videomar_jax.training.stages import truncated_frames
from videomar_jax.training.step import split_draws

COUNT, CLIPS, FRAMES = GRID[0] * GRID[1], 4, 3
SHAPE = (CLIPS, FRAMES, COUNT)
ONE = LossConfig(draws_per_token=2, regression_weight=0.3)
ALL = LossConfig(
    supervise="all_frames", draws_per_token=2, regression_weight=0.3, history_noise=0.6
)


def small(**changes):
    return tiny_model(depth=1, head_depth=1, regression=True, history_levels=True, **changes)


def make_batch(frames=FRAMES):
    return Batch(jax.random.normal(jax.random.key(0), (CLIPS, frames, *GRID, 3)), *tiny_text(CLIPS))


@functools.partial(jax.jit, static_argnames=("config", "frames"))
def _draws(model, config, frames):
    return draw(jax.random.key(1), model, (CLIPS, frames, COUNT), config)


def make_draws(model, config, frames=FRAMES):
    return dataclasses.replace(
        _draws(model, config, frames), drop=jnp.array([False, True, False, False])
    )


@functools.partial(jax.jit, static_argnames="config")
def metrics_of(model, batch, draws, config, normaliser=None):
    return next_frame_loss(model, batch, draws, config, normaliser)[1]


# ---- truncated


def test_a_truncated_clip_gives_the_sum_of_the_whole_one():
    model, batch, current = small(), make_batch(), 1
    draws = dataclasses.replace(make_draws(model, ONE), current=jnp.full(CLIPS, current))
    whole = metrics_of(model, batch, draws, ONE)
    kept = dataclasses.replace(batch, latents=batch.latents[:, : current + 1])
    fewer = {name: getattr(draws, name)[:, : current + 1] for name in ("orders", "num_masked")}
    cut = metrics_of(
        model,
        kept,
        dataclasses.replace(draws, **fewer),
        dataclasses.replace(ONE, truncate=True),
    )
    hidden = float(np.asarray(draws.num_masked)[:, current].sum())
    later = CLIPS * COUNT * (FRAMES - 1 - current)
    np.testing.assert_allclose(
        cut["diffusion_loss"] * hidden, whole["diffusion_loss"] * (hidden + later), rtol=1e-6
    )
    np.testing.assert_allclose(cut["regression_loss"], whole["regression_loss"], rtol=1e-6)


@pytest.mark.parametrize("frames", [1, 4])
def test_the_current_frame_of_a_truncated_clip_is_its_last(frames):
    draws = make_draws(small(), LossConfig(truncate=True, draws_per_token=1), frames)
    assert (draws.current == frames - 1).all()


def test_the_length_of_truncated_clips_is_uniform_and_follows_from_seed_and_step():
    """3000 steps: shares are known to 5 standard errors."""
    lengths = [truncated_frames(7, step, 4) for step in range(3000)]
    shares = np.bincount(lengths, minlength=5) / 3000
    assert (shares[:2] == 0).all() and np.abs(shares[2:] - 1 / 3).max() < 5 * np.sqrt(2 / 9 / 3000)
    assert lengths == [truncated_frames(7, step, 4) for step in range(3000)]
    assert lengths != [truncated_frames(8, step, 4) for step in range(3000)]
    assert truncated_frames(7, 3, 1) == 1 and truncated_frames(7, 3, 2) == 2


# ---- parts of a batch


@pytest.mark.parametrize("config", [ONE, ALL], ids=lambda c: c.supervise)
def test_losses_and_metrics_of_parts_add_up_to_those_of_the_batch(config):
    """So their gradients do as well. With one_frame the parts hide different numbers of tokens."""
    model, batch = small(), make_batch()
    draws = dataclasses.replace(make_draws(model, config), current=jnp.array([1, 2, 1, 2]))
    normaliser, parts = loss_normaliser(draws, SHAPE, config), split_draws(draws, 2)
    halves = [
        metrics_of(
            model,
            jax.tree.map(lambda x, i=i: x[i::2], batch),
            jax.tree.map(lambda x, i=i: x[i], parts),
            config,
            normaliser,
        )
        for i in range(2)
    ]
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5)
    jax.tree.map(
        lambda a, b, whole: close(a + b, whole), *halves, metrics_of(model, batch, draws, config)
    )


def test_the_counts_are_those_of_the_masks():
    draws = dataclasses.replace(
        make_draws(small(), ONE),
        current=jnp.array([1, 2, 2, 1]),
        num_masked=jnp.array([[1, 2, 3], [1, 4, 5], [1, 6, 3], [1, 5, 4]]),
    )
    assert loss_normaliser(draws, SHAPE, ONE) == (2 + 5 + 3 + 5 + 2 * COUNT, 15, CLIPS * COUNT)
    assert loss_normaliser(draws, SHAPE, LossConfig(normaliser="supervised")) == (
        15,
        15,
        CLIPS * COUNT,
    )
    everything = 2 + 3 + 4 + 5 + 6 + 3 + 5 + 4
    assert loss_normaliser(draws, SHAPE, ALL) == (everything, everything, 2 * CLIPS * COUNT)


@pytest.mark.parametrize("parts", [3, 0, 8])
def test_a_batch_that_does_not_divide_is_refused(parts):
    with pytest.raises(ValueError, match=rf"4 clips .* {parts} equal parts"):
        split_draws(make_draws(small(), ONE), parts)


# ---- by frame and by noise level


@pytest.mark.parametrize(("config", "head"), [(ONE, "flow"), (ALL, "ddpm")], ids=["one", "all"])
def test_losses_by_frame_and_by_noise_are_the_loss_taken_apart(config, head):
    model, batch = small(head=head), make_batch()
    draws = make_draws(model, config)
    metrics = metrics_of(model, batch, draws, config)
    hidden, current, clip = (
        np.asarray(draws.num_masked),
        np.asarray(draws.current),
        np.arange(CLIPS),
    )
    shown = np.argsort(np.asarray(draws.orders), -1) >= COUNT - hidden[..., None]
    if config.supervise == "one_frame":
        frame, shown = (
            np.bincount(current, hidden[clip, current], minlength=FRAMES),
            shown[clip, current][:, None],
        )
    else:
        frame, shown = hidden.sum(0) * (np.arange(FRAMES) > 0), shown[:, 1:]
    np.testing.assert_array_equal(metrics["by_frame"]["count"], 2 * frame)
    times = np.asarray(draws.times)
    bins = times * 5 // 1000 if head == "ddpm" else np.floor(times * 5).astype(int)
    noise = np.bincount(bins[np.broadcast_to(shown, bins.shape)], minlength=5)
    np.testing.assert_array_equal(metrics["by_noise"]["count"], noise)
    total = metrics["diffusion_loss"] * 2 * loss_normaliser(draws, SHAPE, config).hidden
    for name in ("by_frame", "by_noise"):
        np.testing.assert_allclose(metrics[name]["sum"].sum(), total, rtol=1e-5)


def test_each_part_of_the_loss_belongs_to_its_bin():
    """Other noise for one frame, or for one range of times, changes the sums of these alone."""
    model, batch = small(), make_batch()
    draws = make_draws(model, ALL)
    before = metrics_of(model, batch, draws, ALL)
    low = (draws.times < 0.2)[..., None]
    for name, noise, changes in (
        ("by_frame", draws.noise.at[:, :, 1].multiply(-1), [0, 0, 1]),
        ("by_noise", jnp.where(low, -draws.noise, draws.noise), [1, 0, 0, 0, 0]),
    ):
        after = metrics_of(model, batch, dataclasses.replace(draws, noise=noise), ALL)
        assert (before[name]["sum"] != after[name]["sum"]).astype(int).tolist() == changes


# ---- noise on the history


def mixed(batch, draws):
    """The clips with the noise of the draws in all frames but the last, in NumPy."""
    level = np.asarray(draws.history_level)[:, None, None, None, None]
    latents = np.array(batch.latents)
    noise = np.asarray(draws.history_noise).reshape(CLIPS, FRAMES - 1, *GRID, 3)
    latents[:, :-1] = latents[:, :-1] * (1 - level) + level * noise
    return dataclasses.replace(batch, latents=jnp.asarray(latents))


def test_noise_on_the_history_is_that_on_the_earlier_frames():
    """Against clips whose earlier frames were mixed with noise beforehand.

    A model with levels is given a level all the same; noise that leaves a frame as it is lets the
    test choose one.
    """
    model, batch = small(), make_batch()
    draws = make_draws(model, dataclasses.replace(ONE, history_noise=0.6))
    draws = dataclasses.replace(draws, current=jnp.full(CLIPS, 2))
    level = np.asarray(draws.history_level)
    assert (level > 0).all() and (level < 0.6).all() and len(np.unique(level)) == CLIPS
    loss = metrics_of(model, batch, draws, ONE)["loss"]
    beforehand = mixed(batch, draws)
    same = beforehand.latents[:, :2].reshape(CLIPS, 2, COUNT, 3)
    no_change = dataclasses.replace(draws, history_noise=same)
    np.testing.assert_allclose(
        metrics_of(model, beforehand, no_change, ONE)["loss"], loss, rtol=1e-5
    )
    other_level = dataclasses.replace(no_change, history_level=no_change.history_level / 2)
    other_frames = dataclasses.replace(
        no_change, history_noise=batch.latents[:, :2].reshape(CLIPS, 2, COUNT, 3)
    )
    for other, clips in ((other_level, beforehand), (other_frames, batch)):
        assert abs(metrics_of(model, clips, other, ONE)["loss"] / loss - 1) > 1e-3


def test_all_frames_see_the_noisy_history_that_one_frame_sees():
    model, batch = small(), make_batch()
    draws = make_draws(model, ALL)
    every = metrics_of(model, batch, draws, ALL)
    for frame in (1, 2):
        rows = dict(
            times=draws.times[:, :, frame - 1 : frame], noise=draws.noise[:, :, frame - 1 : frame]
        )
        alone = metrics_of(
            model, batch, dataclasses.replace(draws, current=jnp.full(CLIPS, frame), **rows), ONE
        )
        np.testing.assert_allclose(
            every["by_frame"]["sum"][frame], alone["by_frame"]["sum"][frame], rtol=1e-4
        )


def test_images_have_no_history():
    model, batch = small(), make_batch(1)
    losses = []
    for level in (0.1, 0.6):
        draws = dataclasses.replace(make_draws(model, ALL, 1), history_level=jnp.full(CLIPS, level))
        losses.append(metrics_of(model, batch, draws, ALL)["loss"])
    assert losses[0] == losses[1]


def test_the_embedding_of_levels_exists_only_when_asked_for_and_starts_at_zero():
    names = [set(abstract_model(tiny_config(history_levels=on))[1]) for on in (False, True)]
    assert names[1] - names[0] == {"history_embed"}
    fresh = jax.jit(
        lambda: VideoMAR(tiny_config(history_levels=True), rngs=nnx.Rngs(0)).history_embed
    )()
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(fresh))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"truncate": "short"}, r"loss\.truncate must be true or false, not 'short'"),
        (
            {"truncate": True, "supervise": "all_frames"},
            r"loss\.truncate .*loss\.supervise='one_frame'",
        ),
        ({"history_noise": 1.0}, r"loss\.history_noise must lie in \[0, 1\)"),
        ({"history_noise": -0.1}, r"loss\.history_noise"),
    ],
)
def test_a_wrong_form_is_refused_by_name(changes, text):
    with annotations_off(), pytest.raises(ValueError, match=text):
        LossConfig(**changes)
