"""Writing files in one move, and telling them apart by their bytes."""

import contextlib
import glob
import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path


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
    No other process or thread gets the same name. A process that is killed leaves a file or folder
    `.NAME.*.part`.

    Raises:
        FileExistsError: `path` is a folder, or exists and `overwrite` is False.
    """
    path = Path(path)
    if path.is_dir() or (path.exists() and not overwrite):
        raise FileExistsError(
            f"{path} exists already: choose another name, or pass overwrite=True for a file."
        )
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.part")
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
    pattern = ".*.part" if name is None else f".{glob.escape(name)}.*.part"
    for part in folder.glob(pattern):
        with contextlib.suppress(FileNotFoundError):
            if before is not None and part.stat().st_mtime >= before:
                continue
            if part.is_dir():
                shutil.rmtree(part, ignore_errors=True)
            else:
                part.unlink()


def sha256(path: str | os.PathLike) -> str:
    """SHA-256 of the bytes of a file, in 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush_to_disk(path: Path) -> None:
    """Without this a power cut after the move could leave an empty file under the final name."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
