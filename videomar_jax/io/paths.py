"""Paths as a person writes them, in flags, configs and calls."""

import os
import re
from pathlib import Path

from videomar_jax.checks import UserError

# "gs://bucket/x", and "gs:/bucket/x", which pathlib makes of it; not "C:/x".
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")

# Of Linux and macOS; a path has to leave room for the names of what is written below it.
_LONGEST_NAME, _LONGEST_PATH = 255, 3800


def user_path(text: str | os.PathLike, name: str = "") -> Path:
    """The absolute path of a local file or folder that a person names.

    "~" is the home folder, "~ada" that of another user, and relative paths start at the current
    folder. Nothing needs to exist.

    Args:
        text: what the person wrote.
        name: what the path is, such as "--output" or "data.path", for the error's text.
    Raises:
        UserError: the text is empty, an address such as gs://bucket/folder, or no possible path.
    """
    written = os.fspath(text)
    subject = f"{name}: {written!r}" if name else repr(written)
    if not written.strip():
        raise UserError(f"{subject} names no file or folder.")
    if is_address(written):
        raise UserError(
            f"{subject} is not a local path: copy what it holds to this machine and name that copy."
        )
    if "\0" in written:
        raise UserError(f"{subject} holds a NUL character, which no path can hold.")
    expanded = os.path.expanduser(written)
    if expanded.startswith("~") and not os.path.lexists(expanded):
        first = expanded.split("/")[0]
        raise UserError(
            f"{subject}: there is no user {first[1:]!r}; for a folder of that name write ./{first}"
        )
    path = Path(expanded).absolute()
    try:
        lengths = [len(os.fsencode(part)) for part in path.parts]
    except UnicodeEncodeError as error:
        raise UserError(
            f"{subject!a} is no text in UTF-8: it holds parts of characters."
        ) from error
    if max(lengths) > _LONGEST_NAME or sum(lengths) + len(lengths) > _LONGEST_PATH:
        raise UserError(
            f"{subject} is too long: a name may have {_LONGEST_NAME} bytes and a path "
            f"{_LONGEST_PATH}."
        )
    return path


def is_address(text: str | os.PathLike) -> bool:
    """Whether a text names something by its address, such as gs://bucket/folder."""
    return _ADDRESS.match(os.fspath(text)) is not None
