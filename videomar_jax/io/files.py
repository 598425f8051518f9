"""Writing files in one move, and telling them apart by their bytes."""

import contextlib
import glob
import hashlib
import json
import os
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from videomar_jax.checks import UserError

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO (named pipe)",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
"""What a path can be besides a regular file."""


def atomic_write(
    path: str | os.PathLike,
    content: str | bytes | Callable[[Path], object],
    *,
    overwrite: bool = True,
) -> None:
    """Writes a file in one move: readers see the old file or the whole new one, never a part.

    Args:
        path: the file; the folder above it must exist.
        content: a text (written in UTF-8), bytes, or a function that writes the file whose path it
            is given.
        overwrite: replace a file that exists.
    Raises:
        FileExistsError: `path` is a folder, or exists and `overwrite` is False.
        OSError: the file cannot be written; what was there before is unchanged.
    """
    with replacing(path, overwrite=overwrite) as part:
        if isinstance(content, str):
            part.write_text(content, encoding="utf-8")
        elif isinstance(content, bytes):
            part.write_bytes(content)
        else:
            content(part)


@contextlib.contextmanager
def replacing(path: str | os.PathLike, *, overwrite: bool = True) -> Iterator[Path]:
    """A hidden name beside `path` for a new file or folder, which is moved to `path` at the end.

    The move happens when the block ends without an exception, once the bytes of a file are on the
    disk. After an exception, KeyboardInterrupt included, nothing is left and `path` is unchanged.
    No other process or thread gets the same name. It has a fixed length, as that of `path` may be
    the longest there is. A process that is killed leaves a file or folder `.DIGEST.*.part`.

    Raises:
        FileExistsError: `path` is a folder, or exists and `overwrite` is False.
    """
    path = Path(path)
    if path.is_dir() or (path.exists() and not overwrite):
        raise FileExistsError(
            f"{path} exists already: choose another name, or pass overwrite=True for a file."
        )
    part = path.with_name(f".{_digest_of_name(path.name)}.{uuid.uuid4().hex[:12]}.part")
    try:
        yield part
        if part.is_file():
            _flush_to_disk(part)
        os.replace(part, path)
    except BaseException:
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)
        raise


def clear_leftovers(folder: Path, name: str | None = None, before: float | None = None) -> None:
    """Removes what killed processes left of unfinished files and folders of `replacing`.

    Only for a caller that knows that nobody is writing them.

    Args:
        name: of the finished file or folder; None: all in `folder`.
        before: only what was last changed before this time (seconds since the epoch).
    """
    # Those of earlier versions hold the whole name.
    owners = ["*"] if name is None else [_digest_of_name(name), glob.escape(name)]
    leftovers = [part for owner in owners for part in folder.glob(f".{owner}.*.part")]
    for part in leftovers:
        with contextlib.suppress(FileNotFoundError):
            if before is not None and part.stat().st_mtime >= before:
                continue
            if part.is_dir():
                shutil.rmtree(part, ignore_errors=True)
            else:
                part.unlink()


def check_regular(path: str | os.PathLike) -> None:
    """Refuses what is no regular file, such as a FIFO, whose reader would wait for ever.

    Everything that reads a file whose name comes from outside calls this first. Links are followed,
    and a path without anything passes: the reader says what is missing.

    Raises:
        UserError: it is a folder, a FIFO, a socket or a device.
    """
    try:
        kind = stat.S_IFMT(os.stat(path).st_mode)
    except (OSError, ValueError):
        return
    if kind != stat.S_IFREG:
        found = _KINDS.get(kind, "no regular file")
        raise UserError(f"{os.fspath(path)} is {found}: name a regular file.")


def read_json(path: str | os.PathLike) -> Any:
    """What a JSON file holds.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it is no regular file, not UTF-8, no JSON, or nested too deep. The text begins
            with the reason, as callers name the file and the way out.
    """
    check_regular(path)
    try:
        return json.loads(Path(path).read_bytes().decode("utf-8"))
    except RecursionError as error:
        raise UserError("it is nested too deep") from error
    except ValueError as error:
        raise UserError(f"it is no JSON in UTF-8 ({error})") from error


def sha256(path: str | os.PathLike) -> str:
    """SHA-256 of the bytes of a file, in 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def with_digest(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON values with a digest of the others under "sha256", by which `take_digest` knows them."""
    return {**values, "sha256": _digest_of_values(values)}


def take_digest(values: dict[str, Any]) -> bool:
    """Removes what `with_digest` added; whether it fits, which it also does where there is none."""
    digest = values.pop("sha256", None)
    return digest is None or digest == _digest_of_values(values)


def _digest_of_values(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _digest_of_name(name: str) -> str:
    return hashlib.sha256(os.fsencode(name)).hexdigest()[:16]


def _flush_to_disk(path: Path) -> None:
    """Without this a power cut after the move could leave an empty file under the final name."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
