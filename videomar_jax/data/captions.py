"""Captions of a folder of videos: one table (CSV or JSON lines) or a text file beside each clip.

A table has the columns (keys) `file`, relative to the folder, and `caption`:

    captions.csv                 captions.jsonl

    file,caption                 {"file": "a/cat.mp4", "caption": "a cat walks"}
    a/cat.mp4,a cat walks

A clip that the table does not name takes the text file of the same stem; a clip with neither has
the empty caption.
"""

import csv
import json
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from videomar_jax.checks import UserError
from videomar_jax.io.files import check_regular
from videomar_jax.io.log import warn_once

# The longest caption, in characters, that is believed to be one.
_LONGEST_FIELD = 100_000
_EXAMPLES = 3


class _Row(NamedTuple):
    """One row of a table."""

    where: str
    """For messages: "captions.csv, line 3"."""
    columns: dict


def read_captions(folder: Path, clips: Sequence[Path], table: Path | None) -> dict[Path, str]:
    """The caption of every clip.

    Args:
        clips: files under `folder`.
        table: None looks for captions.csv or captions.jsonl in the folder.
    Raises:
        FileNotFoundError: the table, or a clip that it names, is missing.
        UserError: a row is malformed or names a clip again. Both errors say the file and the line.
    """
    if table is None:
        table = _find_table(folder)
    captions = {} if table is None else _read_table(folder, set(clips), table)
    texts = {clip: captions[clip] if clip in captions else _text_beside(clip) for clip in clips}
    empty = [clip for clip in clips if not texts[clip]]
    if table is not None and 2 * len(empty) > len(clips):
        examples = ", ".join(clip.relative_to(folder).as_posix() for clip in empty[:_EXAMPLES])
        warn_once(
            f"{len(empty)} of {len(clips)} clips have no caption, such as {examples}, although "
            f"there is the table {table}"
        )
    return texts


def _find_table(folder: Path) -> Path | None:
    candidates = [folder / "captions.csv", folder / "captions.jsonl"]
    found = [path for path in candidates if path.is_file()]
    if len(found) > 1:
        raise UserError(
            f"{folder} holds both captions.csv and captions.jsonl: keep one, or name one with "
            "captions=."
        )
    return found[0] if found else None


def _read_table(folder: Path, clips: set[Path], table: Path) -> dict[Path, str]:
    if not table.is_file():
        raise FileNotFoundError(f"caption table {table} does not exist")
    readers = {".csv": _csv_rows, ".jsonl": _json_rows}
    ending = table.suffix.lower()
    if ending not in readers:
        raise UserError(f"caption table {table} must end in .csv or .jsonl")
    captions: dict[Path, str] = {}
    for where, columns in readers[ending](table):
        name, caption = columns.get("file"), columns.get("caption")
        if not isinstance(name, str) or not isinstance(caption, str):
            raise UserError(f'{where}: needs "file" and "caption", both text, got {columns}')
        _check_text(where, name, caption)
        clip = _find_clip(folder, name.strip(), clips)
        if clip is None:
            reason = "does not exist in " + str(folder)
            if (folder / name.strip()).is_file():
                reason = f"is not a video of {folder} by its name"
            raise FileNotFoundError(
                f"{where}: {name!r} {reason}: correct the name or remove the row"
            )
        if clip in captions:
            raise UserError(f"{where}: {name!r} is named twice: keep one row")
        if ending == ".csv":
            _check_swallows_no_row(where, folder, columns, clips)
        captions[clip] = caption.strip()
    return captions


def _find_clip(folder: Path, name: str, clips: set[Path]) -> Path | None:
    """The clip of this name, also where the file system writes accents in the other form."""
    for form in ("NFC", "NFD"):
        for spelled in (name, unicodedata.normalize(form, name)):
            if folder / spelled in clips:
                return folder / spelled
    return None


def _check_text(where: str, name: str, caption: str) -> None:
    """Raises a UserError for what no caption can be."""
    if len(caption) > _LONGEST_FIELD or len(name) > _LONGEST_FIELD:
        raise UserError(
            f"{where}: holds a text of more than {_LONGEST_FIELD} characters: shorten it, or look "
            "for a quote without its pair"
        )
    text = name + caption
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise UserError(f"{where}: holds characters that are no text: save it as UTF-8")


def _check_swallows_no_row(where: str, folder: Path, columns: dict, clips: set[Path]) -> None:
    """Raises a UserError where a text over several lines holds what looks like rows."""
    for text in columns.values():
        lines = text.splitlines() if isinstance(text, str) else []
        for line in lines if len(lines) > 1 else []:
            cells = [cell.strip(' "') for cell in line.split(",")]
            if any(cell and folder / cell in clips for cell in cells):
                raise UserError(
                    f"{where}: a text goes on over the row {line!r}: look for a quote without its "
                    "pair"
                )


def _csv_rows(table: Path) -> Iterator[_Row]:
    reader = csv.DictReader(_lines(table), strict=True)
    try:
        reader.fieldnames = _header(table, reader.fieldnames or ())
        before = reader.line_num
        for row in reader:
            where = f"{table}, line {reader.line_num}"
            extra = row.pop(None, ())  # pyright: ignore: the key of columns without a name
            _check_one_row(table, before + 1, reader.line_num, [*row.values()], [*extra])
            before = reader.line_num
            if any(value and value.strip() for value in row.values()):
                yield _Row(where, row)
    except csv.Error as error:
        raise UserError(
            f"{table}, from line {reader.line_num} or before: {error}; look for a quote without "
            'its pair (a quote inside a quoted text is written "")'
        ) from None


def _header(table: Path, names: Sequence[str]) -> list[str]:
    """The names of the columns.

    Raises:
        UserError: they are not those of a table of captions.
    """
    columns = [name.strip().lower() for name in names]
    missing = {"file", "caption"} - set(columns)
    if missing:
        lacking = " and ".join(f'"{name}"' for name in sorted(missing))
        found = ",".join(names)[:80]
        hint = f": it must name the columns, such as file,caption, and is {found!r}"
        for separator, called in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
            if separator in found:
                hint += f"; columns are separated by commas, not by {called}"
        raise UserError(f"{table}, line 1: the header lacks {lacking}{hint if found else ''}")
    for name in ("file", "caption"):
        if columns.count(name) > 1:
            raise UserError(f'{table}, line 1: the header names "{name}" twice: keep one')
    return columns


def _check_one_row(
    table: Path, first: int, last: int, values: Sequence[str | None], extra: Sequence[str]
) -> None:
    """Raises a UserError for a row that a quote without its pair has joined from several.

    Args:
        extra: what stands behind the last column of the header; commas at the end do no harm.
    """
    where = f"{table}, line {first}" + (f" to {last}" if last > first else "")
    if any(value.strip() for value in extra):
        raise UserError(
            f"{where}: has more columns than the header: put a text with commas in "
            "quotes, and look for a quote without its pair"
        )
    if any(len(value or "") > _LONGEST_FIELD for value in values):
        raise UserError(
            f"{where}: holds a text of more than {_LONGEST_FIELD} characters: shorten it, or look "
            "for a quote without its pair"
        )


def _lines(path: Path) -> Iterator[str]:
    """Yields the lines of a UTF-8 file, with their ends; a UserError names a line that is not."""
    check_regular(path)
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            # "utf-8-sig" drops the byte order mark that spreadsheets write.
            encoding = "utf-8-sig" if number == 1 else "utf-8"
            if b"\0" in line:
                raise UserError(f"{path}, line {number}: holds NUL bytes: save it as UTF-8")
            try:
                yield line.decode(encoding)
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{path}, line {number}: is not UTF-8 ({error.reason}): save it as UTF-8"
                ) from None


def _json_rows(table: Path) -> Iterator[_Row]:
    for number, line in enumerate(_lines(table), start=1):
        where = f"{table}, line {number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise UserError(f"{where}: not JSON ({error})") from None
        if not isinstance(row, dict):
            raise UserError(f"{where}: needs an object with file and caption, got {line.strip()}")
        yield _Row(where, row)


def _text_beside(clip: Path) -> str:
    path = clip.with_suffix(".txt")
    if path.is_file() and path.stat().st_size > 4 * _LONGEST_FIELD:
        raise UserError(f"{path}: is too long for a caption: shorten or rename it")
    return "".join(_lines(path)).replace("\r\n", "\n").strip() if path.is_file() else ""
