"""Paths as a person writes them, in flags, configs and calls."""

import os
import re
from pathlib import Path

from videomar_jax.checks import UserError

# "gs://bucket/x", and "gs:/bucket/x", which pathlib makes of it; not "C:/x".
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


def user_path(text: str | os.PathLike, name: str = "") -> Path:
    """The absolute path of a local file or folder that a person names.

    "~" is the home folder, and relative paths start at the current folder. Nothing needs to exist.

    Args:
        text: what the person wrote.
        name: what the path is, such as "--output" or "data.path", for the error's text.
    Raises:
        UserError: the text is empty or an address such as gs://bucket/folder.
    """
    written = os.fspath(text)
    subject = f"{name}: {written!r}" if name else repr(written)
    if not written.strip():
        raise UserError(f"{subject} names no file or folder.")
    if is_address(written):
        raise UserError(
            f"{subject} is not a local path: copy what it holds to this machine and name that copy."
        )
    return Path(os.path.expanduser(written)).absolute()


def is_address(text: str | os.PathLike) -> bool:
    """Whether a text names something by its address, such as gs://bucket/folder."""
    return _ADDRESS.match(os.fspath(text)) is not None
