"""Named points of the computation where a caller may constrain how arrays are sharded.

    x = constrain("stream", x)              in the model: tokens [B, T, S, D] between two layers
    block = constrain("layer", block)       the parameters of the next layer

    with sharding_rule(rule):               outside, around the trace
        z = model(...)

A rule is a function (name, tree) -> tree. Without one, `constrain` does nothing: the model runs as
it is on a single device.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

_T = TypeVar("_T")
Rule = Callable[[str, Any], Any]

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
    return tree if rule is None else rule(name, tree)
