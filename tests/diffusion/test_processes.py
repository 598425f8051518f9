"""Tables, losses and respacing of the diffusion processes; samplers must reproduce a Gaussian."""

import functools
import math
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.tiny_model import tiny_config, tiny_model
from videomar_jax.diffusion.base import PROCESSES, Process, Timesteps
from videomar_jax.diffusion.ddpm import (
    DDPM,
    cosine_betas,
    ddpm_tables,
    discretised_nll,
)
from videomar_jax.diffusion.flow import Flow
from videomar_jax.diffusion.respacing import kept_steps
from videomar_jax.models.config import ModelConfig

# ---------------------------------------------------------------- tables and respacing

PUBLISHED = {  # t: beta, alpha_bar, clipped posterior log-variance
    0: (4.1284224822e-05, 0.999958715775, -10.7340825),
    1: (4.61417527367e-05, 0.999912575927, -10.7340825),
    499: (0.00314588623048, 0.493843590441, -5.76474343),
    990: (0.189987542074, 1.96717380125e-04, -1.66084293),
    998: (0.749999392901, 2.42876690703e-06, -0.287690168),
    999: (0.999, 2.42876690703e-09, -0.00100292667),
}


@pytest.mark.parametrize("t", PUBLISHED)
def test_base_tables_have_the_published_values(t):
    tables = ddpm_tables(kept_steps(""), cosine_betas())
    own = [
        getattr(tables, name)[t]
        for name in ("betas", "alphas_cumprod", "posterior_log_variance_clipped")
    ]
    np.testing.assert_allclose(own, PUBLISHED[t], rtol=2e-8)


RESPACINGS = ["", "25", "100", "ddim25", "ddim50", "10,20", "2"]


@pytest.mark.parametrize("respacing", RESPACINGS)
def test_kept_steps_keep_their_marginals_and_posteriors_lead_from_one_to_the_next(respacing):
    """If x_t has the marginal of its step, x ~ posterior(x_0, x_t) has that of the one before."""
    kept = kept_steps(respacing)
    tables = ddpm_tables(kept, cosine_betas())
    base = np.cumprod(1 - cosine_betas())[kept]
    before = np.append(1.0, base[:-1])
    c1, c2 = tables.posterior_mean_coef1, tables.posterior_mean_coef2
    # 1 - beta loses digits where beta is near one: 1e-16 of 2e-9 at step 999.
    np.testing.assert_allclose(tables.alphas_cumprod, base, rtol=1e-7)
    np.testing.assert_allclose(c1 + c2 * np.sqrt(base), np.sqrt(before), rtol=1e-7)
    np.testing.assert_allclose(
        c2**2 * (1 - base) + tables.posterior_variance, 1 - before, atol=1e-12
    )


@pytest.mark.parametrize("respacing", ["", "25"])
def test_every_table_is_a_function_of_alpha_bar(respacing):
    tables = DDPM().tables(respacing)
    a = np.cumprod(1 - cosine_betas())[kept_steps(respacing)]
    before = np.append(1.0, a[:-1])
    beta = 1 - a / before
    variance = beta * (1 - before) / (1 - a)
    expected = {
        "betas": beta,
        "log_betas": np.log(beta),
        "sqrt_alphas_cumprod": a**0.5,
        "sqrt_one_minus_alphas_cumprod": (1 - a) ** 0.5,
        "sqrt_recip_alphas_cumprod": a**-0.5,
        "sqrt_recipm1_alphas_cumprod": (1 / a - 1) ** 0.5,
        "alphas_cumprod_prev": before,
        "posterior_log_variance_clipped": np.log(np.append(variance[1], variance[1:])),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(getattr(tables, name), values, rtol=1e-6, err_msg=name)
    np.testing.assert_array_equal(tables.timestep_map, kept_steps(respacing))


def test_kept_steps_examples():
    assert kept_steps("25") == [
        0,
        42,
        83,
        125,
        166,
        208,
        250,
        291,
        333,
        375,
        416,
        458,
        500,
        541,
        583,
        624,
        666,
        708,
        749,
        791,
        832,
        874,
        916,
        957,
        999,
    ]
    hundred = kept_steps(100)
    assert hundred[:12] == [0, 10, 20, 30, 40, 50, 61, 71, 81, 91, 101, 111]
    assert hundred[-8:] == [928, 938, 949, 959, 969, 979, 989, 999]
    assert kept_steps("ddim25") == list(range(0, 1000, 40))
    assert kept_steps("2,1") == [0, 499, 500]
    assert kept_steps("1,1,1") == [0, 334, 667]  # sections of 334, 333 and 333
    assert kept_steps("") == list(range(1000))


@pytest.mark.parametrize(
    ("respacing", "text"),
    [
        ("1", "keep a single step"),
        ("0", "ask for 0 of the 1000"),
        ("1001", "ask for 1001 of the 1000"),
        ("10,600", "ask for 600 of the 500 steps of section 2"),
        ("ddim999", "No whole stride.*exactly 999"),
        ("ddim1", "No whole stride"),
        ("fast", "not understood"),
        ("10,", "not understood"),
        ("-5", "not understood"),
        ("ddim", "not understood"),
    ],
)
def test_respacings_that_cannot_be_met_are_refused(respacing, text):
    with pytest.raises(ValueError, match=text):
        kept_steps(respacing)


@pytest.mark.parametrize("steps", ["0", "ddim25", "", "1.5", -3])
def test_flow_takes_whole_numbers_of_steps_only(steps):
    with pytest.raises(ValueError, match="whole number of steps"):
        Flow().timesteps(steps)


# ---------------------------------------------------------------- training


@pytest.fixture(scope="module")
def rows():
    """Clean tokens, times (first, last and others), noise, and a network output of 2P values."""
    keys = jax.random.split(jax.random.key(0), 3)
    x_0 = 0.7 * jax.random.normal(keys[0], (12, 5))
    t = jnp.array([0, 0, 1, 2, 10, 100, 300, 499, 700, 900, 990, 999])
    return x_0, t, jax.random.normal(keys[1], (12, 5)), 0.5 * jax.random.normal(keys[2], (12, 10))


def test_add_noise_is_the_forward_process(rows):
    x_0, t, eps, _ = rows
    a = np.cumprod(1 - cosine_betas())[np.asarray(t)][:, None]
    np.testing.assert_allclose(
        DDPM().add_noise(x_0, t, eps), a**0.5 * x_0 + (1 - a) ** 0.5 * eps, atol=1e-6
    )


def cdf(q):
    """The tanh approximation of the normal distribution function."""
    return 0.5 * (1 + math.tanh(math.sqrt(2 / math.pi) * (q + 0.044715 * q**3)))


def ddpm_loss_of_one_value(x_0, t, eps, e, v):
    """Squared error and bits of one value, with scalars in double precision."""
    betas = cosine_betas()
    a = np.cumprod(1 - betas)
    previous = a[t - 1] if t else 1.0
    s = max(t, 1)  # the variance at t = 0 is zero; the one at t = 1 stands in
    variance = betas[s] * (1 - a[s - 1]) / (1 - a[s])
    logvar = (v + 1) / 2 * math.log(betas[t]) + (1 - (v + 1) / 2) * math.log(variance)
    c1 = betas[t] * math.sqrt(previous) / (1 - a[t])
    c2 = (1 - previous) * math.sqrt(1 - betas[t]) / (1 - a[t])
    x_t = math.sqrt(a[t]) * x_0 + math.sqrt(1 - a[t]) * eps
    mean = c1 * (x_t - math.sqrt(1 - a[t]) * e) / math.sqrt(a[t]) + c2 * x_t
    if t:
        distance = (c1 * x_0 + c2 * x_t - mean) ** 2
        nats = 0.5 * (-1 + logvar - math.log(variance) + (variance + distance) / math.exp(logvar))
    else:
        up, low = (cdf(math.exp(-logvar / 2) * (x_0 - mean + side)) for side in (1 / 255, -1 / 255))
        inside = up if x_0 < -0.999 else 1 - low if x_0 > 0.999 else up - low
        nats = -math.log(max(inside, 1e-12))
    return (eps - e) ** 2, nats / math.log(2)


def test_ddpm_loss_is_its_formula(rows):
    x_0, t, eps, output = rows
    x_0 = x_0.at[0].set(jnp.array([-1.2, 1.3, 0.0, 0.4, -0.9]))  # both open bins at t = 0
    output = output.at[:2, :5].set(
        eps[:2] + 0.01 * output[:2, :5]
    )  # near the truth, so that no logarithm is floored
    x_t = DDPM().add_noise(x_0, t, eps)
    mse, bits = jax.jit(DDPM().loss_terms)(output, x_0, x_t, t, eps)
    one = np.vectorize(ddpm_loss_of_one_value)
    values = (np.asarray(x, np.float64) for x in (x_0, eps, output[:, :5], output[:, 5:]))
    x, noise, e, v = values
    expected_mse, expected_bits = one(x, np.asarray(t)[:, None], noise, e, v)
    np.testing.assert_allclose(mse, expected_mse.mean(axis=1), rtol=1e-4)
    # x_0 is rebuilt from x_t at float32: at t = 999 it is off by 2e4 * 1e-7, at t = 0 it is divided
    # by 5e-3.
    np.testing.assert_allclose(bits, expected_bits.mean(axis=1), rtol=2e-3, atol=1e-4)
    np.testing.assert_allclose(DDPM().loss(output, x_0, x_t, t, eps), mse + bits, rtol=1e-5)


def test_the_noise_learns_from_the_squared_error_and_the_variance_from_the_bits(rows):
    x_0, t, eps, output = rows
    x_t = DDPM().add_noise(x_0, t, eps)
    by_term = [
        jax.grad(lambda o, i=i: jnp.sum(DDPM().loss_terms(o, x_0, x_t, t, eps)[i]))(output)
        for i in range(2)
    ]
    assert (by_term[0][:, 5:] == 0).all() and (by_term[1][:, :5] == 0).all()
    np.testing.assert_allclose(by_term[0][:, :5], -2 * (eps - output[:, :5]) / 5, rtol=1e-5)
    assert np.isfinite(by_term[1]).all() and (np.abs(by_term[1][2:, 5:]).max(axis=1) > 0).all()


def test_the_bits_vanish_for_the_true_posterior(rows):
    x_0, t, eps, _ = rows
    output = jnp.concatenate(
        [eps, -jnp.ones_like(eps)], axis=-1
    )  # the true noise, the lower variance bound
    _, bits = DDPM().loss_terms(output, x_0, DDPM().add_noise(x_0, t, eps), t, eps)
    np.testing.assert_allclose(bits[2:], 0, atol=2e-4)


@pytest.mark.parametrize("mean", [-1.3, -0.2, 0.6, 1.0])
def test_the_discretised_likelihood_of_all_bins_adds_up_to_one(mean):
    bins = jnp.linspace(-1, 1, 256)
    for logvar in (-7.0, -2.0):
        nll = discretised_nll(bins, jnp.float32(mean), jnp.float32(logvar))
        np.testing.assert_allclose(jnp.sum(jnp.exp(-nll)), 1, atol=1e-4)


def test_flow_is_a_straight_line(rows):
    x_0, _, eps, output = rows
    t = jnp.linspace(0, 1, 12)
    x_t = Flow().add_noise(x_0, t, eps)
    np.testing.assert_array_equal(x_t[0], x_0[0])
    np.testing.assert_array_equal(x_t[-1], eps[-1])
    np.testing.assert_allclose(x_t + t[:, None] * (x_0 - eps), x_0, atol=1e-6)
    expected = np.mean((np.asarray(output[:, :5]) - np.asarray(x_0 - eps)) ** 2, axis=-1)
    np.testing.assert_allclose(Flow().loss(output[:, :5], x_0, x_t, t, eps), expected, rtol=1e-5)


def test_times_follow_their_laws():
    """40 000 draws: a mean is known to 5 of its standard errors."""
    shape, key = (200, 200), jax.random.key(1)
    steps = np.asarray(DDPM().draw_times(key, shape))
    assert steps.min() == 0 and steps.max() == 999 and abs(steps.mean() - 499.5) < 5 * 288.7 / 200
    uniform = np.asarray(Flow().draw_times(key, shape))
    assert 0 <= uniform.min() and uniform.max() < 1 and abs(uniform.mean() - 0.5) < 5 * 0.2887 / 200
    normal = np.log(
        (t := np.asarray(Flow(time_distribution="logit_normal").draw_times(key, shape), np.float64))
        / (1 - t)
    )
    assert abs(normal.mean()) < 5 / 200 and abs(normal.std() - 1) < 5 * 0.7071 / 200


def test_the_config_chooses_the_process():
    assert tiny_config(head="ddpm").process == DDPM()
    flow = tiny_config(head="flow", flow_time="logit_normal").process
    assert flow == Flow(time_distribution="logit_normal")
    assert tiny_model(head="ddpm").process == DDPM(), "the model's process is that of its config"


def test_every_registered_process_is_a_head_of_the_model():
    assert set(PROCESSES) == set(typing.get_args(typing.get_type_hints(ModelConfig)["head"]))
    for kind, process in PROCESSES.items():
        assert process.kind == kind and isinstance(process(), Process)


def test_facts_of_the_processes():
    assert DDPM().stochastic and not Flow().stochastic
    assert [process.output_channels(12) for process in (DDPM(), Flow())] == [24, 12]
    levels = [
        float(DDPM().noise_level(jnp.asarray(250))),
        float(Flow().noise_level(jnp.asarray(0.25))),
    ]
    assert levels == [0.25, 0.25]


# ---------------------------------------------------------------- sampling a Gaussian with the
# exact denoiser

MU, STD, COUNT = 0.8, 0.5, 40_000
TOLERANCE = 5 * STD / math.sqrt(COUNT)
"""Five standard errors of the mean; the standard deviation is known to 1/sqrt(2) of that."""


def gaussian_plan(respacing):
    """The DDPM timesteps, and what the best network answers for x_0 ~ N(MU, STD^2).

    It answers e = slope (x - centre), and v. q(x_s | x_t) of the data has the posterior's mean at
    E[x_0 | x_t] and its variance plus c1^2 Var[x_0 | x_t]; v is solved for that. Then every step,
    however long, maps one marginal exactly to the one before.
    """
    plan = DDPM().timesteps(respacing)
    tables = jax.tree.map(lambda v: v[::-1], ddpm_tables(kept_steps(respacing), cosine_betas()))
    a = tables.alphas_cumprod
    spread = a * STD**2 + 1 - a
    variance = (
        tables.posterior_variance + tables.posterior_mean_coef1**2 * STD**2 * (1 - a) / spread
    )
    low, high = tables.posterior_log_variance_clipped, tables.log_betas
    answer = {
        "slope": np.sqrt(1 - a) / spread,
        "centre": np.sqrt(a) * MU,
        "v": 2 * (np.log(variance) - low) / (high - low) - 1,
    }
    answer["v"][-1] = 0.0  # the last step adds no noise
    return plan, {k: jnp.asarray(v, jnp.float32) for k, v in answer.items()}


def ddpm_output(x, answer, shift=0.0):
    return jnp.concatenate(
        [answer["slope"] * (x - answer["centre"]) + shift, jnp.full_like(x, answer["v"])], axis=-1
    )


@functools.partial(jax.jit, static_argnames="guided")
def run_ddpm(plan, answer, start, key, temperature, guided=False):
    process, guidance = DDPM(), 3.0

    def step(x, now):
        plan, answer, key = now
        noise = jax.random.normal(key, x.shape)
        # Guided: both branches are wrong, by 1 and by g/(g-1), so that the guided noise is right;
        # the variance of the null branch is nonsense and must not count.
        null = ddpm_output(x, answer | {"v": 9.0}, guidance / (guidance - 1)) if guided else None
        cond = ddpm_output(x, answer, 1.0 if guided else 0.0)
        return process.step(x, cond, null, plan, noise, jnp.float32(guidance), temperature), None

    keys = jax.random.split(key, len(plan.time))
    return jax.lax.scan(step, process.init_noise(start, temperature), (plan, answer, keys))[0]


@pytest.mark.parametrize(
    ("respacing", "guided"),
    [("", False), ("25", False), ("ddim25", False), ("10,20", False), ("25", True)],
)
def test_ddpm_draws_the_gaussian_of_its_denoiser(respacing, guided):
    start, key = jax.random.normal(jax.random.key(0), (COUNT, 1)), jax.random.key(1)
    x = np.asarray(run_ddpm(*gaussian_plan(respacing), start, key, 1.0, guided), np.float64)
    # "ddim25" starts at step 960, where 4e-3 of the signal is left in the marginal: a bias of at
    # most its square root times the slope of the first step, 6e-2 * 6e-2 * STD^2.
    assert abs(x.mean() - MU) < TOLERANCE + 1e-3
    assert abs(x.std() - STD) < TOLERANCE


@pytest.mark.parametrize("respacing", ["25", "ddim50"])
def test_ddpm_without_temperature_follows_the_means(respacing):
    plan, answer = gaussian_plan(respacing)
    start = jnp.linspace(-2, 2, 9)[:, None]
    x = run_ddpm(plan, answer, start, jax.random.key(0), 0.0)
    np.testing.assert_array_equal(x, run_ddpm(plan, answer, start, jax.random.key(7), 0.0))
    expected, kept = np.linspace(-2, 2, 9)[:, None], kept_steps(respacing)
    a = np.cumprod(1 - cosine_betas())[kept]
    for i in reversed(range(len(kept))):
        before = a[i - 1] if i else 1.0
        clean = MU + np.sqrt(a[i]) * STD**2 / (a[i] * STD**2 + 1 - a[i]) * (
            expected - np.sqrt(a[i]) * MU
        )
        ratio = a[i] / before
        expected = (
            np.sqrt(before) * (1 - ratio) * clean + np.sqrt(ratio) * (1 - before) * expected
        ) / (1 - a[i])
    np.testing.assert_allclose(x, expected, atol=2e-3)  # 1/sqrt(a) is 2e4 at step 999, in float32


def test_the_temperature_scales_injected_noise_but_not_the_start():
    plan, answer = gaussian_plan("25")
    start = jax.random.normal(jax.random.key(0), (COUNT, 1))
    spread = [
        float(run_ddpm(plan, answer, start, jax.random.key(1), t).std()) for t in (0.0, 0.5, 1.0)
    ]
    assert spread[0] + 0.02 < spread[1] < spread[2] - 0.02
    np.testing.assert_array_equal(DDPM().init_noise(start, jnp.float32(0.3)), start)


def run_flow(steps, start, temperature=1.0):
    """Euler steps with the exact velocity E[x_0 - eps | x_t] of x_0 ~ N(MU, STD^2)."""
    process, temperature = Flow(), jnp.float32(temperature)

    def step(x, plan):
        t = plan.time
        spread = (1 - t) ** 2 * STD**2 + t**2
        velocity = MU + ((1 - t) * STD**2 - t) / spread * (x - (1 - t) * MU)
        return process.step(x, velocity, None, plan, None, jnp.float32(1), temperature), None

    return jax.jit(
        lambda x: jax.lax.scan(step, process.init_noise(x, temperature), process.timesteps(steps))[
            0
        ]
    )(start)


def test_flow_draws_the_gaussian_of_its_velocity():
    """The exact flow is x -> MU + STD x. Euler's error is of first order: half from 100 to 200."""
    start = jnp.linspace(-2, 2, 9)[:, None]
    errors = [np.abs(run_flow(n, start) - (MU + STD * start)).max() for n in (100, 200)]
    assert errors[1] < 0.02 and 1.7 < errors[0] / errors[1] < 2.3
    x = run_flow(200, jax.random.normal(jax.random.key(0), (COUNT, 1)))
    assert abs(x.mean() - MU) < TOLERANCE + 0.01 and abs(x.std() - STD) < TOLERANCE + 0.01


def test_flow_temperature_scales_the_start():
    start = jnp.linspace(-2, 2, 9)[:, None]
    np.testing.assert_allclose(run_flow(100, start, 0.5), run_flow(100, 0.5 * start), atol=1e-6)
    np.testing.assert_allclose(
        run_flow(100, start, 0.0), MU, atol=1e-5
    )  # the mean's path is straight: no error


def test_flow_guidance_extrapolates_from_null_through_cond():
    x, cond, null = jax.random.normal(jax.random.key(0), (3, 4, 2))
    now = Timesteps(time=jnp.float32(0.5), size=jnp.float32(0.25))
    for g in (0.0, 1.0, 3.0):
        out = Flow().step(x, cond, null, now, None, jnp.float32(g), jnp.float32(1))
        np.testing.assert_allclose(out, x + 0.25 * ((1 - g) * null + g * cond), atol=1e-6)
