"""AdamW as MAR uses it, or Muon for matrices; gradients are clipped by their global norm.

AdamW: betas (0.9, 0.95), epsilon 1e-8, decoupled decay 0.02 on everything outside the head that is
not a bias or a norm scale (so the mask token, the null context and the scale-shift tables decay).
Muon (Jordan et al. 2024, `optax.contrib.muon`) orthogonalises the momentum of every linear layer;
the rest is updated by Adam at a rate of its own. Layers are stacked on a leading axis, so what a
parameter is follows from its name, never from its rank.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from videomar_jax.training.config import OptimizerConfig


def names(path: tuple) -> tuple[str, ...]:
    """The keys on the way to a parameter."""
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


def decays(path: tuple[str, ...]) -> bool:
    """Whether weight decay applies to the parameter with this name (MAR's rule)."""
    return path[0] not in ("head", "linear_prior") and path[-1] not in ("bias", "scale")


def is_matrix(path: tuple[str, ...]) -> bool:
    """Whether a parameter is the kernel of a linear layer that Muon updates.

    The outermost layers are Adam's.
    """
    outermost = (
        "filters",
        "mix",
        "z_proj",
        "input_proj",
        "final",
        "regression",
        "previous_embed",
    )
    return path[-1] == "kernel" and path[-2] not in outermost


def clip_by_global_norm(limit: float) -> optax.GradientTransformation:
    """Scales gradients by min(1, limit / (norm + 1e-6)), as PyTorch does."""

    def update(updates, state, params=None):
        factor = jnp.minimum(1.0, limit / (optax.tree.norm(updates) + 1e-6))
        return jax.tree.map(lambda g: g * factor, updates), state

    return optax.GradientTransformation(optax.init_empty_state, update)


def decay_only(
    mask: Callable[[Any], Any], rule: optax.GradientTransformation
) -> optax.GradientTransformation:
    """`rule`, with weight decay only where `mask(params)` is True.

    For a rule that reads parameters for nothing but their decay: the others are shown to it as
    zeros. (Optax applies a mask of Muon's to the matrices alone, and decays all that Adam updates.)
    """

    def update(updates, state, params):
        shown = jax.tree.map(lambda keep, p: p if keep else jnp.zeros_like(p), mask(params), params)
        return rule.update(updates, state, shown)

    return optax.GradientTransformation(rule.init, update)


def make_optimizer(
    config: OptimizerConfig, learning_rate: Callable[[Any], Any]
) -> optax.GradientTransformation:
    """The chain: clip, then AdamW or Muon at `learning_rate(step)`."""

    def decay_mask(params):
        return jax.tree_util.tree_map_with_path(lambda path, _: decays(names(path)), params)

    def adam_rate(step):
        return config.adam_ratio * learning_rate(step)

    if config.name == "adamw":
        update = optax.adamw(
            learning_rate,
            config.beta1,
            config.beta2,
            config.epsilon,
            weight_decay=config.weight_decay,
            mask=decay_mask,
        )
    else:
        update = contrib.muon(
            learning_rate,
            weight_decay=config.weight_decay,
            adam_b1=config.beta1,
            adam_b2=config.beta2,
            adam_weight_decay=config.weight_decay,
            muon_weight_dimension_numbers=matrix_axes,
            adam_learning_rate=adam_rate,
        )
        update = decay_only(decay_mask, update)
    return optax.chain(clip_by_global_norm(config.clip_norm), update)


def matrix_axes(params: Any) -> Any:
    """For each parameter the axes of its matrix (behind the stacking axis), None for Adam's."""

    def axes(path, parameter):
        if not is_matrix(names(path)):
            return None
        return contrib.MuonDimensionNumbers(parameter.ndim - 2, parameter.ndim - 1)

    return jax.tree_util.tree_map_with_path(axes, params)


def ema_decay(config: OptimizerConfig, step: jax.Array) -> jax.Array:
    """The decay of the averaged parameters at a step."""
    if not config.ema_warmup:
        return jnp.asarray(config.ema_decay)
    return jnp.minimum(config.ema_decay, (1.0 + step) / (20.0 + step))
