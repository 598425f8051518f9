"""Where arrays lie on many devices: the model names what it computes, whoever runs it decides.

    x = laid_out("stream", x)          in the model: tokens [B, T, S, D] between two layers
    block = laid_out("layer", block)   the parameters of the layer that comes next

    with layout(rule):                 outside, around the trace: rule(name, tree) -> tree
        z = model(...)

Without a rule nothing happens, so the model runs anywhere as it is.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

_T = TypeVar("_T")
Rule = Callable[[str, Any], Any]

_rule: ContextVar[Rule | None] = ContextVar("layout", default=None)


@contextmanager
def layout(rule: Rule | None) -> Iterator[None]:
    """Applies `rule` to what is traced inside."""
    token = _rule.set(rule)
    try:
        yield
    finally:
        _rule.reset(token)


def laid_out(name: str, tree: _T) -> _T:
    """The tree where the rule in force wants it."""
    rule = _rule.get()
    return tree if rule is None else rule(name, tree)
