"""Kinds of things that are chosen by name and saved as folders, such as tokenizers.

A `Registry` is the only list of its kinds: what a config may say, what a saved folder may hold and
what "kind:place" may begin with are all read from it. A class of the package is one line of its
table and is imported when it is first asked for, so listing the kinds costs nothing.
"""

import importlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from videomar_jax.checks import UserError, did_you_mean
from videomar_jax.io.files import check_regular, read_json

_Class = TypeVar("_Class", bound=type)


class Registry(Mapping[str, type]):
    """Classes by kind.

    Each class has the class attributes `kind` (its key) and `version` (of its saved form), and the
    class method `open(place, **options)` that makes one from the second half of "kind:place".
    """

    def __init__(self, noun: str, classes: Mapping[str, str]):
        """
        Args:
            noun: what the classes are, for messages: "tokenizer".
            classes: kind -> "package.module:Class".
        """
        self.noun = noun
        self._entries: dict[str, type | str] = dict(classes)

    @property
    def kinds(self) -> tuple[str, ...]:
        """All kinds, in the order in which they were added."""
        return tuple(self._entries)

    def register(self, cls: _Class) -> _Class:
        """Class decorator that adds a class from outside the package under `cls.kind`.

        Raises:
            ValueError: the kind is taken by another class.
        """
        present = self._entries.setdefault(cls.kind, cls)
        if present is not cls:
            name = present if isinstance(present, str) else present.__name__
            raise ValueError(f"the {self.noun} kind {cls.kind!r} is taken by {name}")
        return cls

    def __getitem__(self, kind: str) -> type:
        """The class of a kind, imported now if it was not yet.

        Raises:
            KeyError: there is no such kind.
        """
        entry = self._entries[kind]
        if isinstance(entry, str):
            module, _, name = entry.partition(":")
            entry = getattr(importlib.import_module(module), name)
            self._entries[kind] = entry
        return entry

    def __contains__(self, kind: object) -> bool:
        return kind in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def open(self, spec: str, **options: Any) -> Any:
        """What "kind:place" names.

        Args:
            options: settings that all kinds of this registry accept; a kind ignores those that it
                has no use for.
        Raises:
            UserError: no such kind, no place, or whatever the class's `open` raises.
        """
        kind, _, place = spec.partition(":")
        if not place or kind not in self:
            forms = " or ".join(f"{kind}:PLACE" for kind in self.kinds)
            hint = did_you_mean(kind, self.kinds)
            raise UserError(f"The {self.noun} {spec!r} is not understood: write {forms}.{hint}")
        return self[kind].open(place, **options)

    def read_header(self, path: Path, keys: Collection[str]) -> dict[str, Any]:
        """The JSON header of a saved folder, with its kind and version checked.

        Args:
            path: the header file; it holds at least "kind" and "version".
            keys: what else it must hold.
        Raises:
            FileNotFoundError: no such file.
            UserError: it is damaged, or of an unknown kind or version.
        """
        check_regular(path)
        if not path.is_file():
            raise FileNotFoundError(
                f"no {path.name} in {path.parent}: expected the folder of a saved {self.noun}"
            )
        try:
            header = read_json(path)
            kind, version = str(header["kind"]), header["version"]
            missing = [key for key in keys if key not in header]
            if missing:
                raise KeyError(*missing)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path} is not a {self.noun} header ({error!r}): save the {self.noun} again"
            ) from error
        if kind not in self:
            known = ", ".join(sorted(self.kinds))
            raise UserError(f"{path} is of unknown kind {kind!r}; known kinds: {known}")
        readable = self[kind].version
        if type(version) is not int or version != readable:
            raise UserError(
                f"{path} has format version {version}; this code reads {readable} of kind {kind!r}"
            )
        return header
