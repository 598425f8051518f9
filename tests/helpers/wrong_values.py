"""Every value of a JSON document replaced by wrong ones."""

import copy
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

LEFT_OUT = "<left out>"
WRONG = (LEFT_OUT, None, "", "abc", -1, 2.5, math.nan, math.inf, [], {}, True, 10**12, [1])


def places(value: Any, at: tuple = ()) -> Iterator[tuple]:
    """The way to every value of a document; of a list only to its first two entries."""
    yield at
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*at, key))
    elif isinstance(value, list):
        for number in range(min(len(value), 2)):
            yield from places(value[number], (*at, number))


def changed(document: Any, place: tuple, value: Any) -> Any:
    """The document with another value at one place."""
    if not place:
        return {} if value == LEFT_OUT else value
    document = copy.deepcopy(document)
    inner = document
    for key in place[:-1]:
        inner = inner[key]
    if value == LEFT_OUT:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    return document


def accepted(file: Path, read: Callable[[], Any]) -> list[tuple[str, Any]]:
    """(place, wrong value) of each change of a JSON file that `read` takes.

    The file is left as it was. Any error besides a ValueError or a missing file is raised.
    """
    text = file.read_text(encoding="utf-8")
    document = json.loads(text)
    read()
    taken = []
    try:
        for place in places(document):
            for value in WRONG:
                new = changed(document, place, value)
                if json.dumps(new) == json.dumps(document):
                    continue
                file.write_text(json.dumps(new), encoding="utf-8")
                try:
                    read()
                except (ValueError, FileNotFoundError):
                    continue
                except Exception as error:
                    raise AssertionError(f"{place} = {value!r} raises {error!r}") from error
                taken.append((".".join(map(str, place)), value))
    finally:
        file.write_text(text, encoding="utf-8")
    return taken
