"""Reads the data in a pickle and executes nothing.

A pickle is a program for a small stack machine, and two of its instructions call whatever function
the file names. This reader runs the other instructions itself. For a named function or class it
keeps the name (`Global`) and passes calls to a function of ours, which knows a few names and
refuses all others. No name is ever looked up in Python.
"""

import dataclasses
import io
import pickletools
from collections.abc import Callable
from typing import Any

# Beyond these bounds a value is refused: it is damaged or made to use up memory.
_MAX_NODES = 1_000_000  # values in it
_MAX_DEPTH = 64  # nesting of them


class PickleError(ValueError):
    """The pickle is damaged, or contains something that is not data."""


@dataclasses.dataclass(frozen=True)
class Global:
    """A function or class that the pickle names."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclasses.dataclass(eq=False)
class Instance:
    """Represents an object of an allowed class, with the state that the file gives it."""

    kind: Global
    state: Any = None


_PUSH = {
    "BININT",
    "BININT1",
    "BININT2",
    "LONG1",
    "BINFLOAT",
    "BINUNICODE",
    "SHORT_BINUNICODE",
    "BINUNICODE8",
    "BINSTRING",
    "SHORT_BINSTRING",
    "BINBYTES",
    "SHORT_BINBYTES",
}
"""Instructions that put their argument on the stack."""
_MAKE = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
}
"""Instructions that put a new value on the stack."""
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
"""Instructions that combine the last values into a tuple."""
_IGNORE = {"PROTO", "FRAME"}


class _Machine:
    """The stack, the stacks put aside by MARK, and the memo; arguments as for `read_pickle`."""

    def __init__(self, named: Callable, call: Callable, persistent: Callable):
        self.named = named
        self.call = call
        self.persistent = persistent
        self.stack: list[Any] = []
        self.aside: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def pop_marked(self) -> list[Any]:
        """Everything since the last MARK, taken off the stack."""
        items = self.stack
        self.stack = self.aside.pop()
        return items

    def step(self, code: str, arg: Any) -> None:
        """Runs one instruction."""
        stack = self.stack
        if code in _PUSH:
            stack.append(arg)
        elif code in _MAKE:
            stack.append(_MAKE[code]())
        elif code in _TUPLES:
            items = [stack.pop() for _ in range(_TUPLES[code])]
            stack.append(tuple(reversed(items)))
        elif code in ("BINPUT", "LONG_BINPUT"):
            self.memo[arg] = stack[-1]
        elif code == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif code in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[arg])
        elif code == "MARK":
            self.aside.append(stack)
            self.stack = []
        elif code not in _IGNORE:
            self._compound(code, arg)

    def _compound(self, code: str, arg: Any) -> None:
        """Instructions that combine several values."""
        match code:
            case "TUPLE":
                items = self.pop_marked()
                self.stack.append(tuple(items))
            case "APPEND":
                item = self.stack.pop()
                _expect(self.stack[-1], list).append(item)
            case "APPENDS":
                items = self.pop_marked()
                _expect(self.stack[-1], list).extend(items)
            case "SETITEM":
                value, key = self.stack.pop(), self.stack.pop()
                _set_items(_expect(self.stack[-1], dict), [key, value])
            case "SETITEMS":
                items = self.pop_marked()
                _set_items(_expect(self.stack[-1], dict), items)
            case "GLOBAL":
                module, _, name = arg.partition(" ")
                self.stack.append(self.named(Global(module, name)))
            case "STACK_GLOBAL":
                name, module = self.stack.pop(), self.stack.pop()
                self.stack.append(self.named(Global(_expect(module, str), _expect(name, str))))
            case "REDUCE" | "NEWOBJ":
                args, function = self.stack.pop(), self.stack.pop()
                self.stack.append(self.call(_expect(function, Global), _expect(args, tuple)))
            case "BUILD":
                state = self.stack.pop()
                if isinstance(self.stack[-1], Instance):
                    self.stack[-1].state = state
                else:
                    _expect(self.stack[-1], dict)  # attributes of an OrderedDict carry no tensors
            case "BINPERSID":
                self.stack.append(self.persistent(self.stack.pop()))
            case _:
                raise PickleError(
                    f"the instruction {code}, which files of weights do not need, is refused"
                )


def _expect(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise PickleError(f"{kind.__name__} expected, {type(value).__name__} found")
    return value


def _set_items(table: dict, items: list[Any]) -> None:
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, (str, int)):
            raise PickleError(f"a {type(key).__name__} as a dictionary key is refused")
        if key in table:
            raise PickleError(f"the key {key!r} occurs twice")
        table[key] = value


def read_pickle(
    data: bytes | io.BytesIO,
    *,
    named: Callable[[Global], Any],
    call: Callable[[Global, tuple], Any],
    persistent: Callable[[Any], Any],
) -> Any:
    """The value that the pickle describes.

    Args:
        data: the pickle; of a stream the next one, and the stream stands behind it afterwards.
        named: takes every name that the file mentions; returns what represents it, or raises
            PickleError.
        call: takes an allowed name and the arguments; returns what represents the result, or raises
            PickleError.
        persistent: takes a reference to something stored outside the pickle; returns what
            represents it.
    Raises:
        PickleError: the pickle is damaged, or one of the functions refuses it.
    """
    machine = _Machine(named, call, persistent)
    try:
        for opcode, arg, _ in pickletools.genops(data):
            if opcode.name == "STOP":
                break
            machine.step(opcode.name, arg)
        if len(machine.stack) != 1 or machine.aside:
            raise PickleError("it does not end with one value")
        return machine.stack[0]
    except PickleError:
        raise
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise PickleError(f"it is damaged ({type(error).__name__}: {error})") from error


def named_leaves(
    root: Any, kind: type, separator: str, inside: Callable[[Any], Any] = lambda value: value
) -> dict[str, Any]:
    """Every `kind` in nested dictionaries, lists and tuples by the keys that lead to it.

    The order is that of the file; whatever else the containers hold is passed over.

    Args:
        separator: stands between keys in a name.
        inside: what is looked at in place of a value that is no `kind`.
    Raises:
        PickleError: two have one name, or the nesting does not end.
    """
    found: dict[str, Any] = {}
    nodes = 0
    # A stack rather than recursion: values may contain themselves.
    stack: list[tuple[tuple[str, ...], Any]] = [((), root)]
    while stack:
        path, value = stack.pop()
        nodes += 1
        if nodes > _MAX_NODES or len(path) > _MAX_DEPTH:
            raise PickleError("it nests without end")
        if isinstance(value, kind):
            name = separator.join(path)
            if name in found:
                raise PickleError(f"two tensors are named {name!r}")
            found[name] = value
            continue
        value = inside(value)
        if isinstance(value, dict):
            children = list(value.items())
        elif type(value) in (list, tuple):
            children = list(enumerate(value))
        else:
            continue
        for key, child in reversed(children):
            stack.append(((*path, str(key)), child))
    return found
