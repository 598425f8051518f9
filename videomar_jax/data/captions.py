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
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from videomar_jax.checks import UserError
from videomar_jax.io.files import check_regular
from videomar_jax.io.log import log

# The longest caption, in characters, that is believed to be one.
_LONGEST_FIELD = 100_000


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
        log.warning(
            "%d of %d clips have no caption, such as %s, although there is the table %s",
            len(empty),
            len(clips),
            empty[0],
            table,
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
        clip = folder / name.strip()
        if clip not in clips:
            reason = "does not exist in " + str(folder)
            if clip.is_file():
                reason = "is not a video by its ending"
            raise FileNotFoundError(
                f"{where}: {name!r} {reason}: correct the name or remove the row"
            )
        if clip in captions:
            raise UserError(f"{where}: {name!r} is named twice: keep one row")
        for line in caption.splitlines()[1:]:
            if folder / line.split(",")[0].strip(' "') in clips:
                raise UserError(
                    f"{where}: the caption of {name!r} goes on over the row {line!r}: look for a "
                    "quote without its pair"
                )
        captions[clip] = caption.strip()
    return captions


def _csv_rows(table: Path) -> Iterator[_Row]:
    reader = csv.DictReader(_lines(table), strict=True)
    try:
        missing = {"file", "caption"} - set(reader.fieldnames or ())
        if missing:
            columns = " and ".join(f'"{name}"' for name in sorted(missing))
            raise UserError(f"{table}, line 1: the header lacks {columns}")
        before = reader.line_num
        for row in reader:
            where = f"{table}, line {reader.line_num}"
            _check_one_row(table, before + 1, reader.line_num, row)
            before = reader.line_num
            yield _Row(where, row)
    except csv.Error as error:
        raise UserError(
            f"{table}, from line {reader.line_num} or before: {error}; look for a quote without "
            'its pair (a quote inside a quoted text is written "")'
        ) from None


def _check_one_row(table: Path, first: int, last: int, row: dict) -> None:
    """Raises a UserError for a row that a quote without its pair has joined from several."""
    where = f"{table}, line {first}" + (f" to {last}" if last > first else "")
    if None in row:
        raise UserError(
            f"{where}: has more columns than the header: put a text with commas in "
            "quotes, and look for a quote without its pair"
        )
    if any(len(value or "") > _LONGEST_FIELD for value in row.values()):
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
    return "".join(_lines(path)).replace("\r\n", "\n").strip() if path.is_file() else ""
