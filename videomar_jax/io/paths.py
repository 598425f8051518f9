"""Paths as a person writes them, in flags, configs and calls."""

import hashlib
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


def check_length(path: Path) -> None:
    """Makes sure that the file system can hold a file of this name, before work is done for it.

    Raises:
        UserError: the name or the whole path is too long.
    """
    existing = next((above for above in path.parents if os.path.isdir(above)), Path("/"))
    size, whole = len(os.fsencode(path.name)), len(os.fsencode(path))
    longest_name = _limit(existing, "PC_NAME_MAX", _LONGEST_NAME)
    longest_path = _limit(existing, "PC_PATH_MAX", 4096) - 1
    if size > longest_name:
        raise UserError(
            f"the name {path.name!r} is too long: it has {size} bytes, and {existing} takes at "
            f"most {longest_name}. Choose a shorter one."
        )
    if whole > longest_path:
        raise UserError(
            f"{os.fspath(path)!r} is too long: it has {whole} bytes, and at most {longest_path} "
            f"are possible. Choose another folder."
        )


def file_name(text: str, longest: int = 180) -> str:
    """A file name for what is called `text`: the text itself, where that can be one.

    Otherwise a digest is added to what is left of it, so that different texts have different names.

    Args:
        longest: bytes of the name, which leave room for an ending.
    """
    name = re.sub("[/\0]", "_", text.encode(errors="replace").decode())
    if name == text and len(name.encode()) <= longest and name not in ("", ".", ".."):
        return name
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:8]
    kept = name.encode()[: longest - len(digest) - 1].decode(errors="ignore")
    return f"{kept}_{digest}"


def _limit(folder: Path, name: str, default: int) -> int:
    """What a file system says of the lengths of its names."""
    try:
        limit = os.pathconf(folder, name)
    except (OSError, ValueError):
        return default
    return limit if limit > 0 else default


def is_address(text: str | os.PathLike) -> bool:
    """Whether a text names something by its address, such as gs://bucket/folder."""
    return _ADDRESS.match(os.fspath(text)) is not None
