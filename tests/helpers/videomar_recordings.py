"""How recorded tensors are compared with ours, and seen in our layout."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.helpers.parity_table import Comparison
from videomar_jax.interop.formats.rules import expected, exported, flat
from videomar_jax.interop.videomar_rules import RULES

GRID = (3, 4)
SEEN: dict[tuple[str, str], Comparison] = {}
"""(case, quantity) → how close this run came."""


def check(case: str, what: str, ours, theirs, atol: float, rtol: float = 0.0) -> None:
    """Compares with absolute plus relative tolerance (0, 0: exactly) and records the worst
    difference in `SEEN`."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape, f"{case}, {what}: {ours.shape} instead of {theirs.shape}"
    error = np.abs(ours - theirs)
    assert np.isfinite(error).all(), f"{case}, {what}: not finite"
    worst = error
    tolerances = []
    if atol:
        tolerances.append(f"{atol:g}")
    if rtol:
        tolerances.append(f"{rtol:g} relative")
    if rtol and not atol:
        worst = error / np.where(theirs == 0, 1, np.abs(theirs))
    allowed = atol + rtol * np.abs(theirs)
    share = error / np.where(allowed == 0, 1, allowed)
    seen = Comparison(
        " + ".join(tolerances) or "exact", worst=float(worst.max()), share=float(share.max())
    )
    SEEN[case, what] = SEEN.get((case, what), seen).joined(seen)
    assert (error <= allowed).all(), (
        f"{case}, {what}: off by {seen.worst:.3g}, allowed {seen.tolerance}"
    )


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
    specs, make = exported(
        expected(RULES, {path: leaf.shape for path, leaf in leaves.items()}), leaves
    )
    return {name: make(name) for name in specs}
