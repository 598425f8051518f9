"""Where the arrays of generation lie on many devices: read from the arrays that are handed in.

The model's parameters and the given latents say what they are spread over; XLA does the same with
what is computed from them. Only what lives from one frame to the next is laid out here, so that it
stays where it is and can be donated: samples as the given latents have them, tokens along the mesh
axis `context`, heads along `tensor`.
"""

import math
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from videomar_jax.checks import UserError
from videomar_jax.models.attention import KVCache
from videomar_jax.models.config import ModelConfig
from videomar_jax.types import Array


class Placement(NamedTuple):
    """The layout of what is kept between two frames."""

    cache: NamedSharding
    """Of [layers, samples, frames, tokens, heads, d]."""
    tokens: NamedSharding
    """Of a frame's tokens [samples, tokens, P]."""


def placement(model: Any, config: ModelConfig, given: Any, tokens: int) -> Placement | None:
    """The layout that the model's parameters and the given latents ask for; None on one device.

    Args:
        given: the latents, or their `jax.ShapeDtypeStruct`.
        tokens: tokens of a frame.
    Raises:
        UserError: model and latents lie on different meshes.
    """
    mesh = _mesh([given, *jax.tree.leaves(model)])
    if mesh is None:
        return None
    own = getattr(given, "sharding", None)
    # Samples stay where the caller has put them.
    samples = own.spec[0] if isinstance(own, NamedSharding) and len(own.spec) else None

    def axis(name: str, size: int) -> str | None:
        """The mesh axis, where it divides the size."""
        return name if name in mesh.shape and size % mesh.shape[name] == 0 else None

    context = axis("context", tokens)
    heads = axis("tensor", config.num_heads)
    return Placement(
        cache=NamedSharding(mesh, PartitionSpec(None, samples, None, context, heads, None)),
        tokens=NamedSharding(mesh, PartitionSpec(samples, context, None)),
    )


def _mesh(arrays: list[Any]) -> Mesh | None:
    meshes = set()
    for array in arrays:
        sharding = getattr(array, "sharding", None)
        if isinstance(sharding, NamedSharding) and sharding.mesh.size > 1:
            meshes.add(sharding.mesh)
    if len(meshes) > 1:
        names = ", ".join(sorted(map(str, meshes)))
        raise UserError(f"The model and the given latents lie on different meshes: {names}.")
    return meshes.pop() if meshes else None


def constrain(place: Placement | None, cache: KVCache, tokens: Array) -> tuple[KVCache, Array]:
    """Cache and tokens, laid out as `place` says."""
    if place is None:
        return cache, tokens
    keep = jax.lax.with_sharding_constraint
    cache = KVCache(keep(cache.keys, place.cache), keep(cache.values, place.cache))
    return cache, keep(tokens, place.tokens)


def cache_shards(place: Placement | None) -> int:
    """Over how many devices the cache is split."""
    if place is None:
        return 1
    names: list[str] = []
    for entry in place.cache.spec:
        if isinstance(entry, str):
            names.append(entry)
        elif entry is not None:
            names.extend(entry)
    return math.prod(place.cache.mesh.shape[name] for name in names)
