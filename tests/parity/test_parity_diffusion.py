"""The recorded head, its losses and their gradients, the schedules, single steps of the sampler."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from tests.helpers.videomar_recordings import check, official
from videomar_jax.diffusion.base import guide
from videomar_jax.diffusion.ddpm import DDPM, cosine_betas, ddpm_tables
from videomar_jax.diffusion.respacing import kept_steps
from videomar_jax.models.diffusion_head import time_features
from videomar_jax.sampling.reference import draw_tokens
from videomar_jax.training.draws import LossDraws
from videomar_jax.training.loss import diffusion_losses


def guided_output(output: jax.Array, guidance: float) -> tuple[jax.Array, jax.Array]:
    """(guided noise of the rows with text, variance values of all rows) of 2n rows."""
    noise, variance = jnp.split(output, 2, axis=-1)
    return guide(*jnp.split(noise, 2), jnp.float32(guidance)), variance


def test_head(case, model):
    g, _ = case("head")
    t = jnp.asarray(g["in/t"])
    check("head", "sinusoid", time_features(t), g["out/sinusoid"], 5e-4)
    check("head", "temb", model.head.time_embedding(t), g["out/temb"], 5e-5)
    check(
        "head", "y", model.head(jnp.asarray(g["in/x"]), t, jnp.asarray(g["in/c"])), g["out/y"], 2e-5
    )
    rows = jnp.tile(g["in/x_cfg"][: len(t)], (2, 1))
    output = model.head(rows, jnp.tile(t, 2), jnp.asarray(g["in/c_cfg"]))
    for guidance, tol in ((1, 2e-5), (3, 5e-5)):
        noise, variance = guided_output(output, guidance)
        y = jnp.concatenate([jnp.tile(noise, (2, 1)), variance], axis=-1)
        check("head", f"y_cfg{guidance}", y, g[f"out/y_cfg{guidance}"], tol)


def test_loss(case, model):
    g, _ = case("loss")
    process, t, target, noise = (
        DDPM(),
        *(jnp.asarray(g[f"in/{k}"]) for k in ("t", "target", "noise")),
    )
    x_t = process.add_noise(target, t, noise)
    check("loss", "x_t", x_t, g["out/x_t"], 2e-6)
    output = model.head(x_t, t, jnp.asarray(g["in/z"]))
    check("loss", "model_out", output, g["out/model_out"], 2e-5)
    mse, vb = process.loss_terms(output, target, x_t, t, noise)
    for name, value in {
        "mse": mse,
        "vb": vb,
        "loss": process.loss(output, target, x_t, t, noise),
    }.items():
        tolerance = (1e-5 if name == "mse" else 1e-6, 0.0 if name == "mse" else 2e-4)
        check("loss", name, value, g[f"out/{name}"], *((2e-5, 0.0) if name == "mse" else tolerance))
        check("loss", f"{name}_f64", value, g[f"out/{name}_f64"], *tolerance)


def test_loss_reductions_and_gradients(case, model):
    g, _ = case("loss")
    mask, supervised = jnp.asarray(g["in/mask"]), jnp.asarray(g["in/mask"] * g["in/loss_mask"])
    draws = LossDraws(
        current=jnp.zeros(1, int),
        orders=jnp.zeros((1, 1, 32), int),
        num_masked=jnp.zeros((1, 1), int),
        drop=jnp.zeros(1, bool),
        times=jnp.asarray(g["in/t"])[None, None, None],
        noise=jnp.asarray(g["in/noise"])[None, None, None],
    )
    target = jnp.asarray(g["in/target"])[None, None]

    def total(model, z):
        rows = diffusion_losses(model, z[None, None], target, draws)[0, 0, 0]
        return jnp.sum(rows * supervised) / jnp.sum(mask), rows

    z = jnp.asarray(g["in/z"])
    (value, rows), (grads, grad_z) = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(
        model, z
    )
    for name in ("total_den_mask", "total_den_mask_f64"):
        check("loss", name, value, g[f"out/{name}"], 1e-6, 2e-4)
    sums = {"total_den_lossmask": (supervised, supervised), "total_mask_only": (mask, mask)}
    for name, (weight, count) in sums.items():
        check("loss", name, jnp.sum(rows * weight) / jnp.sum(count), g[f"out/{name}"], 1e-6, 2e-4)
    named = official(nnx.to_pure_dict(nnx.state(grads)))
    check("loss", "grad_z", grad_z, g["out/grad_z"], 1e-7)
    check(
        "loss",
        "grad_final_w",
        named["diffloss.net.final_layer.linear.weight"],
        g["out/grad_final_w"],
        5e-6,
    )
    check(
        "loss", "grad_input_w", named["diffloss.net.input_proj.weight"], g["out/grad_input_w"], 5e-7
    )


def test_schedules(case):
    g, _ = case("schedules")
    tables = {}
    for key, theirs in g.items():
        _, name, table = key.split("/")
        if name not in tables:
            tables[name] = ddpm_tables(
                kept_steps("" if name == "train1000" else name), cosine_betas()
            )
        rtol = 0.0 if table == "timestep_map" else 1e-12
        check("schedules", table, getattr(tables[name], table), theirs, 0, rtol)
    assert len(g) == 11 * 13, (
        f"{len(g)} tables were compared; the recording has 11 respacings of 13 tables"
    )


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
    plan = process.timesteps(settings["respacing"])
    guided, z = guidance != "1.0", jnp.asarray(g["in/z"])
    z = z if guided else z[: len(start)]
    scale, heat = jnp.float32(guidance), jnp.float32(temperature)
    out = f"out/T{temperature}_cfg{guidance}"
    tol_x, tol_clean, tol_final = P_SAMPLE[name][guidance]

    @jax.jit
    def one(x, step, injected):
        output = model.head(jnp.tile(x, (1 + guided, 1)), step.time, z)
        noise, variance = guided_output(output, scale) if guided else jnp.split(output, 2, axis=-1)
        _, _, clean = process.posterior(noise, variance[: len(x)], x, step.coefficients)
        null = output[len(x) :] if guided else None
        return process.step(x, output[: len(x)], null, step, injected, scale, heat), clean

    x = process.init_noise(start, heat)
    for i in range(len(noise)):
        x, clean = one(x, jax.tree.map(lambda table, i=i: table[i], plan), noise[i])
        check(name, f"x, guidance {guidance}", x, g[f"{out}/x"][i], tol_x)
        check(name, f"pred_x0, guidance {guidance}", clean, g[f"{out}/pred_x0"][i], tol_clean)
    rows = z.reshape(1 + guided, len(start), -1)
    final = draw_tokens(model, rows, start[None], noise[:, None], plan, scale, heat)
    check(name, f"final, guidance {guidance}", final[0], g[f"{out}/final"], tol_final)
