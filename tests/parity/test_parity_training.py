"""Three recorded training steps: losses, gradients, parameters and their averages."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tests.helpers.videomar_recordings import channels_last, check, official
from videomar_jax.io.migration import current
from videomar_jax.models import masking
from videomar_jax.training import step as train
from videomar_jax.training.config import LossConfig, OptimizerConfig
from videomar_jax.training.draws import Batch, LossDraws
from videomar_jax.training.loss import next_frame_loss
from videomar_jax.training.optimizer import make_optimizer
from videomar_jax.training.state import TrainState

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


def recorded_draws(
    g: dict[str, np.ndarray], draws_per_token: int
) -> tuple[list[LossDraws], list[Batch]]:
    """The random choices and the batches of the recorded steps."""
    steps, clips, count = g["in/latents"].shape[:3]
    size = g["in/orders"].shape[-1] // count
    rows = (draws_per_token, clips, count, size)
    draws, batches = [], []
    for s in range(steps):
        k = int(g["in/current_frame"][s])
        now = slice(k, k + 1)  # the reference draws for all frames, but only frame k carries loss
        draws.append(
            LossDraws(
                current=jnp.full(clips, k),
                orders=jnp.asarray(g["in/orders"][s].reshape(clips, count, size) % size),
                num_masked=jnp.full(
                    (clips, count), masking.num_masked(size, jnp.float32(g["in/mask_rate"][s]))
                ),
                drop=jnp.asarray(g["in/drop"][s]),
                times=jnp.asarray(g["in/t"][s].reshape(rows)[:, :, now]),
                noise=jnp.asarray(g["in/noise"][s].reshape(*rows, -1)[:, :, now]),
            )
        )
        text = (jnp.asarray(g[f"in/{name}"][s]) for name in ("text", "text_mask"))
        batches.append(Batch(channels_last(g["in/latents"][s]), *text))
    return draws, batches


def test_train_steps(case, model, monkeypatch):
    g, settings = case("train_steps")
    draws, batches = recorded_draws(g, settings["diffusion_batch_mul"])
    recorded = current("loss", {"normaliser": settings["normaliser"]})
    loss_config = LossConfig(draws_per_token=settings["diffusion_batch_mul"], **recorded)
    graph, state = nnx.split(model)
    params = nnx.to_pure_dict(state)

    def loss_of(params):
        return next_frame_loss(nnx.merge(graph, params), batches[0], draws[0], loss_config)[0]

    gradients = official(jax.jit(jax.grad(loss_of))(params))
    for name, (tol, _, _) in TRAINED.items():
        check("train_steps", f"gradient {name}", gradients[name], g[f"out/grad/{name}"], tol)

    beta1, beta2 = settings["betas"]
    config = OptimizerConfig(
        beta1=beta1,
        beta2=beta2,
        epsilon=settings["eps"],
        weight_decay=settings["weight_decay"],
        clip_norm=settings["grad_clip"],
        ema_decay=settings["ema_rate"],
    )
    rates = jnp.asarray(settings["lrs"])
    optimizer = make_optimizer(config, lambda step: rates[step])
    # The package's own step, given the recorded choices instead of random ones: step s draws with
    # fold_in(key, s).
    key = jax.random.key(0)
    keys = jax.vmap(lambda s: jax.random.key_data(jax.random.fold_in(key, s)))(
        jnp.arange(len(draws))
    )
    stacked = [jnp.stack(leaves) for leaves in zip(*map(jax.tree.leaves, draws), strict=True)]

    def replay(key, *_):
        which = jnp.argmax(jnp.all(keys == jax.random.key_data(key), axis=-1))
        return jax.tree.unflatten(jax.tree.structure(draws[0]), [leaf[which] for leaf in stacked])

    monkeypatch.setattr(train, "draw", replay)
    step = train.make_train_step(graph, optimizer, loss_config, config)
    params = jax.tree.map(
        jnp.array, params
    )  # the state is donated; the model is shared by other tests
    state = TrainState(
        jnp.asarray(0), params, jax.tree.map(jnp.array, params), optimizer.init(params)
    )
    for s, batch in enumerate(batches):
        state, metrics = step(state, batch, key)
        check("train_steps", "losses", metrics["loss"], g["out/losses"][s], 5e-6)
        check("train_steps", "grad_norm", metrics["gradient_norm"], g["out/grad_norm"][s], 5e-5)
    after, average = official(state.params), official(state.ema)
    for name, (_, tol, tol_average) in TRAINED.items():
        check("train_steps", f"parameter {name}", after[name], g[f"out/param/{name}"], tol)
        if tol_average is not None:
            check(
                "train_steps", f"average {name}", average[name], g[f"out/ema/{name}"], tol_average
            )
    compared = sum(
        key.split("/")[1] in ("grad", "param", "ema") for key in g if key.startswith("out/")
    )
    assert compared == sum(3 - (tols[2] is None) for tols in TRAINED.values()), (
        "a recorded tensor was not compared"
    )
