"""Named points of the computation where a caller may constrain how arrays are sharded.

    x = constrain("stream", x)              in the model: tokens [B, T, S, D] between two layers
    block = constrain("layer", block)       the parameters of the next layer

    with sharding_rule(rule):               outside, around the trace
        z = model(...)

A rule has a function (name, tree) -> tree, and says how attention is spread over a mesh. Without
one, `constrain` does nothing: the model runs as it is on a single device.
"""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadLayout:
    """The mesh axes that queries, keys and values [B, T, S, n, d] are split along; (): none."""

    mesh: Any
    """A `jax.sharding.Mesh`, or an abstract one."""
    samples: tuple[str, ...] = ()
    tokens: tuple[str, ...] = ()
    """Each device has some tokens of every frame."""
    heads: tuple[str, ...] = ()

    @property
    def splits_tokens(self) -> bool:
        return any(self.mesh.shape[name] > 1 for name in self.tokens)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """How a computation is sharded."""

    constrain: Callable[[str, Any], Any] | None = None
    """(name, tree) -> the same tree with sharding constraints; None: none are set."""
    heads: HeadLayout | None = None
    """How attention is; None leaves that to XLA."""


_rule: ContextVar[Rule | None] = ContextVar("sharding_rule", default=None)


@contextmanager
def sharding_rule(rule: Rule | None) -> Iterator[None]:
    """Applies `rule` at the named points of what is traced inside; None: no rule."""
    token = _rule.set(rule)
    try:
        yield
    finally:
        _rule.reset(token)


def constrain(name: str, tree: _T) -> _T:
    """The tree, sharded as the rule in force says; without a rule, as it is."""
    rule = _rule.get()
    return tree if rule is None or rule.constrain is None else rule.constrain(name, tree)


def head_layout() -> HeadLayout | None:
    """How attention is spread, as the rule in force says; None: as XLA finds."""
    rule = _rule.get()
    return None if rule is None else rule.heads
