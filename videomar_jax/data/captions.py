"""Captions of a folder of videos: one table (CSV or JSON lines) or a text file beside each clip.

A table has the columns (keys) `file`, relative to the folder, and `caption`. A clip that the table
does not name falls back to the text file of the same stem; a clip with neither has the empty
caption.

    captions.csv    file,caption             captions.jsonl   {"file": "a/cat.mp4", "caption": "a
    cat walks"}
                    a/cat.mp4,a cat walks
"""

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

Row = tuple[str, dict]
"""Where a row stands ("captions.csv, line 3"), and its columns."""


def read_captions(folder: Path, clips: Sequence[Path], table: Path | None) -> dict[Path, str]:
    """The caption of every clip. `table` None looks for captions.csv or captions.jsonl in the
    folder.

    Raises FileNotFoundError where the table or a clip it names is missing, ValueError for a row
    that is malformed or names a clip twice; both name the file and the line.
    """
    table = _find_table(folder) if table is None else table
    captions = {} if table is None else _read_table(folder, set(clips), table)
    return {clip: captions[clip] if clip in captions else _sidecar(clip) for clip in clips}


def _find_table(folder: Path) -> Path | None:
    found = [
        path for path in (folder / "captions.csv", folder / "captions.jsonl") if path.is_file()
    ]
    if len(found) > 1:
        raise ValueError(
            f"{folder} holds both captions.csv and captions.jsonl: keep one, or name one with captions="
        )
    return found[0] if found else None


def _read_table(folder: Path, clips: set[Path], table: Path) -> dict[Path, str]:
    if not table.is_file():
        raise FileNotFoundError(f"caption table {table} does not exist")
    readers = {".csv": _csv_rows, ".jsonl": _json_rows}
    if table.suffix.lower() not in readers:
        raise ValueError(f"caption table {table} must end in .csv or .jsonl")
    captions: dict[Path, str] = {}
    for where, row in readers[table.suffix.lower()](table):
        name, caption = row.get("file"), row.get("caption")
        if not isinstance(name, str) or not isinstance(caption, str):
            raise ValueError(f'{where}: needs "file" and "caption", both text, got {row}')
        clip = folder / name.strip()
        if clip not in clips:
            reason = (
                "is not a video by its ending" if clip.is_file() else f"does not exist in {folder}"
            )
            raise FileNotFoundError(
                f"{where}: {name!r} {reason}: correct the name or remove the row"
            )
        if clip in captions:
            raise ValueError(f"{where}: {name!r} is named twice: keep one row")
        captions[clip] = caption.strip()
    return captions


def _csv_rows(table: Path) -> Iterator[Row]:
    with table.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines)
        missing = {"file", "caption"} - set(reader.fieldnames or ())
        if missing:
            columns = " and ".join(f'"{name}"' for name in sorted(missing))
            raise ValueError(f"{table}, line 1: the header lacks {columns}")
        for row in reader:
            yield f"{table}, line {reader.line_num}", row


def _json_rows(table: Path) -> Iterator[Row]:
    with table.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            where = f"{table}, line {number}"
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{where}: not JSON ({error})") from None
            if not isinstance(row, dict):
                raise ValueError(
                    f"{where}: needs an object with file and caption, got {line.strip()}"
                )
            yield where, row


def _sidecar(clip: Path) -> str:
    path = clip.with_suffix(".txt")
    return path.read_text(encoding="utf-8-sig").strip() if path.is_file() else ""
