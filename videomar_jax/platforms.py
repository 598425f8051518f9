"""Which platform a program is being compiled for: "cpu", "gpu" or "tpu".

Some code has a form of its own for a platform. It asks `platform()` while it is traced:

    with compile_for(platform_of(state)):       where the devices are known
        ...                                     what is traced inside asks `platform()`

The answer is not `jax.default_backend()`: arrays may lie on other devices than the default ones,
and a program can be compiled for a machine that is not here. It is a context, not an argument,
because those that ask are leaves far below those that know, in modules that know nothing of
devices. It is a context that JAX counts in the keys of its caches, so that a function traced for
one platform is traced anew for another. `jax.lax.platform_dependent` would need no context, but
traces every form, keeps what the backward pass needs of all of them, and fails where one form
cannot be traced at all (cuDNN's attention without its library).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax

_target = jax.make_user_context(None)


def platform() -> str:
    """The platform of the `compile_for` in force, else that of JAX's default device."""
    if _target.value is not None:
        return _target.value
    default = jax.config.jax_default_device
    if default is None:
        return _plain_name(jax.default_backend())
    return _plain_name(default if isinstance(default, str) else default.platform)


@contextmanager
def compile_for(name: str | None) -> Iterator[None]:
    """What is traced inside takes the forms of this platform; None changes nothing."""
    if name is None:
        yield
        return
    with _target(_plain_name(name)):
        yield


def device_of(tree: Any) -> jax.Device | None:
    """A device that an array, an abstract array with a sharding, or a sharding of the tree lies on;
    None where nothing says so."""
    for leaf in jax.tree.leaves(tree):
        # Inside of a trace nobody knows yet where an array lies.
        if isinstance(leaf, jax.core.Tracer):
            continue
        sharding = leaf if isinstance(leaf, jax.sharding.Sharding) else _sharding(leaf)
        if sharding is not None and not _is_abstract(sharding):
            # An array may be spread over the devices of several processes: take one of ours.
            local = sharding.addressable_devices
            return min(local or sharding.device_set, key=lambda device: device.id)
    return None


def platform_of(tree: Any) -> str:
    """The platform of the tree's arrays or shardings; `platform()` where nothing says so."""
    device = device_of(tree)
    return platform() if device is None else _plain_name(device.platform)


def _sharding(leaf: Any) -> jax.sharding.Sharding | None:
    return getattr(leaf, "sharding", None)


def _is_abstract(sharding: jax.sharding.Sharding) -> bool:
    mesh = getattr(sharding, "mesh", None)
    return isinstance(mesh, jax.sharding.AbstractMesh)


def _plain_name(name: str) -> str:
    """JAX names compilers for GPUs by their makers."""
    return "gpu" if name in ("cuda", "rocm") else name
