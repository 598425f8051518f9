"""Where the arrays of generation lie on many devices: read from the arrays that are handed in.

The model's parameters and the given latents say what they are spread over; XLA does the same with
what is computed from them. Only what lives from one frame to the next is laid out here, so that it
stays where it is and can be donated: samples as the given latents have them, tokens along the mesh
axis `context`, heads along `tensor`; and the diffusion head, which is copied to every device. It
runs hundreds of times a frame on a few dozen rows, so that split along `tensor` it would do little
but wait for the other devices.
"""

import math
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from videomar_jax.checks import UserError
from videomar_jax.models.attention import KVCache
from videomar_jax.models.config import ModelConfig
from videomar_jax.models.partitioning import HeadLayout, Rule
from videomar_jax.models.videomar import VideoMAR
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


def attention_rule(place: Placement | None) -> Rule | None:
    """The rule under which attention is spread as its cache is."""
    if place is None:
        return None
    _, samples, _, tokens, heads, _ = (_axes(entry) for entry in place.cache.spec)
    layout = HeadLayout(mesh=place.cache.mesh, samples=samples, tokens=tokens, heads=heads)
    return Rule(heads=layout)


def with_whole_head(place: Placement | None, model: VideoMAR) -> VideoMAR:
    """The model with its diffusion head copied to every device."""
    if place is None:
        return model
    whole = NamedSharding(place.cache.mesh, PartitionSpec())

    def copied(path: tuple, leaf: Array) -> Array:
        if jax.tree_util.keystr(path[:1], simple=True) != "head":
            return leaf
        return jax.lax.with_sharding_constraint(leaf, whole)

    return jax.tree_util.tree_map_with_path(copied, model)


def with_whole_rows(place: Placement | None, z: Array) -> Array:
    """What the head is given, [rows, tokens, D]: split by samples only."""
    if place is None:
        return z
    samples = place.tokens.spec[0]
    return jax.lax.with_sharding_constraint(
        z, NamedSharding(place.tokens.mesh, PartitionSpec(samples))
    )


def cache_shards(place: Placement | None) -> int:
    """Over how many devices the cache is split."""
    if place is None:
        return 1
    names = [name for entry in place.cache.spec for name in _axes(entry)]
    return math.prod(place.cache.mesh.shape[name] for name in names)


def _axes(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """One entry of a `PartitionSpec` as the mesh axes that it names."""
    if entry is None:
        return ()
    return (entry,) if isinstance(entry, str) else tuple(entry)
