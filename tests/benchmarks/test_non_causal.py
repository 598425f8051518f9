"""The ablation's losses and sampler: with the causal mask they are the package's own, and without
it they see what they should."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import non_causal
from tests.helpers.tiny_model import GRID, tiny_config, tiny_model, tiny_text
from tests.helpers.tiny_video import by_reference, generated, given_latents, sample_keys
from videomar_jax.checks import UserError
from videomar_jax.diffusion.solver import solver_timesteps
from videomar_jax.inference.stream import VideoSampler
from videomar_jax.sampling import schedules
from videomar_jax.sampling.config import SamplingConfig
from videomar_jax.sampling.draws import draw_frame
from videomar_jax.sampling.reference import draw_tokens
from videomar_jax.text_encoders import HashedTextEncoder
from videomar_jax.tokenizers import PCATokenizer
from videomar_jax.training import loss as package_loss
from videomar_jax.training.config import LossConfig
from videomar_jax.training.draws import Batch, draw

CLIPS, FRAMES, COUNT = 3, 4, GRID[0] * GRID[1]
ONE = LossConfig(normaliser="supervised", draws_per_token=2, regression_weight=0.7)
ALL = dataclasses.replace(ONE, supervise="all_frames")


def make_model():
    return tiny_model(regression=True, pooled_text=True)


def make_batch(frames=FRAMES):
    latents = jax.random.normal(jax.random.key(0), (CLIPS, frames, *GRID, 3))
    return Batch(latents, *tiny_text(CLIPS))


def make_draws(config, **changes):
    draws = draw(jax.random.key(1), make_model(), (CLIPS, FRAMES, COUNT), config)
    # Every frame is the current one of some clip, and some of its tokens are visible.
    chosen = dict(
        current=jnp.array([1, 2, 3]),
        num_masked=jnp.array([[3, 2, 4, 5], [1, 5, 3, 6], [2, 1, 5, 3]]),
        drop=jnp.array([False, True, False]),
    )
    return dataclasses.replace(draws, **chosen | changes)


def evaluate(function, draws, config, batch=None, **options):
    """Loss, metrics, and the gradients with respect to all parameters and the latents."""

    @jax.jit
    def run(model, latents, batch):
        def loss(model, latents):
            return function(
                model, dataclasses.replace(batch, latents=latents), draws, config, **options
            )

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(model, latents)

    batch = make_batch() if batch is None else batch
    (value, metrics), gradients = run(make_model(), batch.latents, batch)
    return value, metrics, gradients


# ---- losses


def test_the_next_frame_loss_with_the_causal_mask_is_the_packages():
    draws = make_draws(ONE)
    ours = evaluate(non_causal.next_frame_loss, draws, ONE, causal=True)
    package = evaluate(package_loss.next_frame_loss, draws, ONE)
    np.testing.assert_allclose(ours[0], package[0], rtol=1e-6)
    for name in ("diffusion_loss", "regression_loss"):
        np.testing.assert_allclose(ours[1][name], package[1][name], rtol=1e-6, err_msg=name)
    both = zip(jax.tree.leaves(ours[2]), jax.tree.leaves(package[2]), strict=True)
    for own, other in both:
        np.testing.assert_allclose(own, other, rtol=1e-4, atol=1e-5 * np.abs(other).max())
    without = evaluate(non_causal.next_frame_loss, draws, ONE)
    assert abs(without[0] - package[0]) > 1e-3, "the mask changes the loss"


@pytest.mark.parametrize("causal", [False, True])
def test_the_loss_of_every_frame_token_by_token(causal):
    """Masks by loops, z from a pass for each clip, the mean by hand."""
    model, batch, draws = make_model(), make_batch(), make_draws(ALL)
    hidden = np.zeros((CLIPS, FRAMES, COUNT), bool)
    for clip in range(CLIPS):
        for frame in range(1, FRAMES):
            # The rate of frame 1 is that of the clip.
            last = np.asarray(draws.orders)[clip, frame, COUNT - int(draws.num_masked[clip, 1]) :]
            hidden[clip, frame, last] = True
    total, error, count = 0.0, 0.0, 0
    for clip in range(CLIPS):
        row = slice(clip, clip + 1)
        tokens = batch.latents[row].reshape(1, FRAMES, COUNT, 3)
        context = model.context(batch.text[row], batch.text_mask[row], draws.drop[row])
        z = model(tokens, jnp.asarray(hidden[row]), context, GRID, causal=causal)[:, 1:]
        shown, clean = hidden[clip, 1:], tokens[:, 1:]
        for times, noise in zip(draws.times[:, row], draws.noise[:, row], strict=True):
            noisy = model.process.add_noise(clean, times, noise)
            output = model.head(noisy, times, z)
            losses = model.process.loss(output, clean, noisy, times, noise)
            total += np.asarray(losses, np.float64)[0][shown].sum()
        error += np.asarray(jnp.mean((model.regression(z) - clean) ** 2, -1))[0][shown].sum()
        count += shown.sum()
    value, metrics, _ = evaluate(non_causal.every_frame_loss, draws, ALL, causal=causal)
    assert count == (FRAMES - 1) * (2 + 5 + 1)
    np.testing.assert_allclose(metrics["diffusion_loss"], total / (2 * count), rtol=1e-5)
    np.testing.assert_allclose(metrics["regression_loss"], error / count, rtol=1e-5)
    np.testing.assert_allclose(value, total / (2 * count) + 0.7 * error / count, rtol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_without_next_frame_loss_a_frame_sees_visible_tokens_of_later_frames(causal):
    """By the gradient of the loss of frame 1 alone."""
    draws = make_draws(ONE)
    mask = jnp.zeros((CLIPS, FRAMES, COUNT), bool).at[:, 1:, :2].set(True)
    hidden = non_causal.Hidden(mask, jnp.ones((CLIPS, 1), int))
    function = functools.partial(non_causal.hidden_loss, hidden=hidden, causal=causal)
    _, _, (_, gradient) = evaluate(function, draws, ONE)
    visible = gradient.reshape(CLIPS, FRAMES, COUNT, 3)[:, :, 2:]
    sizes = jnp.abs(visible).max(axis=(0, 2, 3))
    assert (sizes[:2] > 1e-6).all()
    assert (sizes[2:] == 0).all() if causal else (sizes[2:] > 1e-6).all()


@pytest.mark.parametrize("name", ["ours, causal", "package", "ours"])
def test_with_next_frame_loss_later_frames_are_there_but_hidden(name):
    """Their values never matter; that they are there does, unless attention is causal."""
    options = dict(causal=True) if name == "ours, causal" else {}
    function = package_loss.next_frame_loss if name == "package" else non_causal.next_frame_loss
    draws = make_draws(ONE, current=jnp.ones(CLIPS, int))
    value, _, (_, gradient) = evaluate(function, draws, ONE, **options)
    assert (gradient[:, 2:] == 0).all() and (gradient[:, 0] != 0).any()
    two = dataclasses.replace(draws, orders=draws.orders[:, :2], num_masked=draws.num_masked[:, :2])
    cut, _, _ = evaluate(function, two, ONE, batch=make_batch_of_first(2), **options)
    if name == "ours":
        assert abs(cut - value) > 1e-3
    else:
        np.testing.assert_allclose(cut, value, rtol=1e-5)


def make_batch_of_first(frames):
    batch = make_batch()
    return dataclasses.replace(batch, latents=batch.latents[:, :frames])


@pytest.mark.parametrize(
    "changes",
    [
        dict(linear_prior=True),
        dict(previous_frame=True),
        dict(history_levels=True),
        dict(residual=True, regression=True),
        dict(rope_frame_origin="restart"),
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_model_that_has_no_form_without_causality_is_refused(changes):
    field = next(iter(changes))
    with pytest.raises(UserError, match=rf"model\.{field} (has no form|must be 'absolute')"):
        non_causal.check_plain(tiny_config(**changes))


@pytest.mark.parametrize(
    "changes",
    [dict(normaliser="all_masked"), dict(truncate=True), dict(history_noise=0.2)],
    ids=lambda changes: next(iter(changes)),
)
def test_settings_of_the_loss_that_it_has_not_are_refused(changes):
    config, draws = dataclasses.replace(ONE, **changes), make_draws(ONE)
    with pytest.raises(UserError, match=rf"loss\.{next(iter(changes))} "):
        non_causal.next_frame_loss(make_model(), make_batch(), draws, config)


# ---- the sampler

CONFIG = SamplingConfig(steps=3, head_steps="3", temperature=0.9, latent_clip=1.5)
CASES = {
    "flow": (dict(), dict(guidance=1.0)),
    "guided": (dict(), dict(guidance=2.0)),
    "two given frames": (dict(), dict(guidance=1.0)),
    "the paper's temperature": (dict(), dict(guidance=1.0, temperature_law="paper")),
    "fewer head steps later": (dict(), dict(guidance=1.0, head_steps="4-2")),
    "guided in the later half": (dict(), dict(guidance=2.0, guidance_interval=(0.5, 1.0))),
    "the first frame clipped, by Heun": (
        dict(),
        dict(guidance=1.0, clip_first=True, latent_clip=0.8, head_solver="heun"),
    ),
    "ddpm": (dict(head="ddpm"), dict(guidance=2.0, head_steps="ddim4")),
}


def sampled(config, *, num_frames, model, given=None, causal=False):
    given = given_latents() if given is None else given
    text = tiny_text(len(given))
    keys = sample_keys(len(given))
    return non_causal.sample(
        model, given, *text, keys, num_frames=num_frames, config=config, causal=causal
    )


@pytest.mark.parametrize("case", CASES)
def test_with_the_causal_mask_it_is_the_packages_sampler(case):
    model, changes = CASES[case]
    config = dataclasses.replace(CONFIG, **changes)
    model = tiny_model(**model)
    given = given_latents(2 if case == "two given frames" else 1)
    request = dict(num_frames=4, model=model, given=given)
    video = sampled(config, causal=True, **request)
    for other in (generated(config, **request), by_reference(config, **request)):
        largest = np.abs(other).max()
        np.testing.assert_allclose(video, other, atol=1e-5 * max(largest, 1))
    free = sampled(config, **request)
    np.testing.assert_array_equal(free[:, : given.shape[1]], given)
    assert np.abs(free - video).max() > 0.01


def test_without_the_mask_it_is_a_whole_pass_for_each_token_step():
    """Frame by frame and step by step, with loops over samples."""
    model, config = tiny_model(), dataclasses.replace(CONFIG, guidance=1.0, steps=2)
    frames, text = 3, tiny_text(2)
    tokens = np.zeros((2, frames, COUNT, 3), np.float32)
    tokens[:, :1] = given_latents().reshape(2, 1, COUNT, 3)
    plan = schedules.reveal_plan(COUNT, config)
    steps = solver_timesteps(model.process, "3", "euler")
    for number in range(1, frames):
        draws = draw_frame(sample_keys(), jnp.asarray(number), COUNT, 3, 0)
        hidden = np.zeros(tokens.shape[:3], bool)
        hidden[:, number:] = True
        for step in range(2):
            context = model.context(*text)
            z = model(jnp.asarray(tokens), jnp.asarray(hidden), context, GRID, causal=False)
            new = draw_tokens(
                model,
                z[:, number],
                draws.noise,
                draws.step_noise,
                steps,
                jnp.asarray(1.0),
                jnp.asarray(0.9),
            )
            first = plan.start[step]
            for clip in range(2):
                for token in np.asarray(draws.order)[clip, first : first + plan.count[step]]:
                    bound = 1.5 if number > 1 else np.inf
                    tokens[clip, number, token] = np.clip(new[clip, token], -bound, bound)
                    hidden[clip, number, token] = False
    assert not hidden[:, :frames].any()
    video = sampled(config, num_frames=frames, model=model)
    wanted = tokens.reshape(video.shape)
    np.testing.assert_allclose(video, wanted, atol=1e-5 * np.abs(wanted).max())


OTHER_SETTINGS = dict(
    window=2,
    keep_first=False,
    first_frame_position="absolute",
    history_noise=0.1,
    token_dtype="bfloat16",
    dtype="bfloat16",
    head_dtype="bfloat16",
    still_detail=True,
    spatial_rope_scaling="interpolate",
    temporal_rope_scaling="interpolate",
)


def test_every_setting_is_honoured_or_refused():
    assert non_causal.HONOURED | set(OTHER_SETTINGS) == set(vars(SamplingConfig()))
    for name, value in OTHER_SETTINGS.items():
        config = dataclasses.replace(CONFIG, **{name: value})
        with pytest.raises(UserError, match=rf"sampling\.{name} cannot be had"):
            sampled(config, num_frames=2, model=tiny_model())


def test_from_pictures_and_prompts_to_videos():
    """Pixels of the package's sampler, also where the last batch is short."""
    random = np.random.default_rng(0)
    clips = random.integers(0, 256, (3, 5, 4, 6, 3), dtype=np.uint8)
    tokenizer = PCATokenizer.fit(clips, patch=2, temporal_stride=2, channels=3)
    parts = dict(
        model=tiny_model(),
        tokenizer=tokenizer,
        text_encoder=HashedTextEncoder(5, 8),
        config=dataclasses.replace(CONFIG, guidance=1.0),
        batch_size=2,
    )
    request = clips[:, :1], ["a ball", "a cube", "a star falls"], 5
    wanted = VideoSampler(**parts)(*request)
    made = non_causal.NonCausalSampler(causal=True, **parts)(*request)
    assert made.dtype == np.uint8 and made.shape == clips.shape
    np.testing.assert_array_equal(made[:, 0], clips[:, 0])
    assert np.abs(made.astype(int) - wanted).max() <= 1, "rounding may fall to the other side"
    other = non_causal.NonCausalSampler(**parts)(*request)
    assert np.abs(other.astype(int) - wanted).max() > 1


def test_videos_that_are_not_finite_are_an_error():
    clips = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 6, 3), dtype=np.uint8)
    sampler = non_causal.NonCausalSampler(
        model=jax.tree.map(lambda p: p * jnp.nan, tiny_model()),
        tokenizer=PCATokenizer.fit(clips, patch=2, temporal_stride=2, channels=3),
        text_encoder=HashedTextEncoder(5, 8),
        config=dataclasses.replace(CONFIG, guidance=1.0),
        batch_size=2,
    )
    with pytest.raises(UserError, match="NaN or infinity"):
        sampler(clips[:, :1], ["a", "b"], 3)
