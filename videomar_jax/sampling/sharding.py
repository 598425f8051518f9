"""Where the arrays of generation lie on many devices: read from the arrays that are handed in.

The model's parameters and the given latents say what they are spread over; XLA does the same with
what is computed from
them. Only what lives from one frame to the next is laid out here, so that it stays where it is and
    is donated: samples
as the given latents have them, tokens along the mesh axis `context`, heads along `tensor`.
"""

import math
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from videomar_jax.models.attention import KVCache
from videomar_jax.models.config import ModelConfig
from videomar_jax.types import Array

Placement = tuple[NamedSharding, NamedSharding] | None
"""Of the cache [layers, samples, frames, tokens, heads, d] and of a frame's tokens [samples,
tokens, P]."""


def placement(model: Any, config: ModelConfig, given: Array, tokens: int) -> Placement:
    """What the model's parameters and the given latents ask for; None on a single device."""
    mesh = _mesh([given, *jax.tree.leaves(model)])
    if mesh is None:
        return None
    own = getattr(given, "sharding", None)
    samples = own.spec[0] if isinstance(own, NamedSharding) and len(own.spec) else None

    def axis(name: str, size: int) -> str | None:
        return name if name in mesh.shape and size % mesh.shape[name] == 0 else None

    context = axis("context", tokens)
    cache = PartitionSpec(None, samples, None, context, axis("tensor", config.num_heads), None)
    return NamedSharding(mesh, cache), NamedSharding(mesh, PartitionSpec(samples, context, None))


def _mesh(arrays: list[Any]):
    shardings = (getattr(array, "sharding", None) for array in arrays)
    meshes = {s.mesh for s in shardings if isinstance(s, NamedSharding) and s.mesh.size > 1}
    if len(meshes) > 1:
        raise ValueError(
            f"The model and the given latents lie on different meshes: {sorted(map(str, meshes))}."
        )
    return meshes.pop() if meshes else None


def placed(place: Placement, cache: KVCache, tokens: Array) -> tuple[KVCache, Array]:
    """The two of them where they belong."""
    if place is None:
        return cache, tokens
    keep = jax.lax.with_sharding_constraint
    return KVCache(*(keep(part, place[0]) for part in cache)), keep(tokens, place[1])


def ways(place: Placement) -> int:
    """Over how many devices the cache is spread."""
    if place is None:
        return 1
    names = [
        name
        for entry in place[0].spec
        if entry
        for name in ((entry,) if isinstance(entry, str) else entry)
    ]
    return math.prod(place[0].mesh.shape[name] for name in names)
