"""Digests of the files of a checkpoint: a flipped bit would else load as other parameters.

    DIRECTORY/n/digests.json    {"params/d/0a1b...": SHA-256, ...} of every file below a part

They are taken while the checkpoint still has its temporary name, so that one which has its own name
has digests as well. Files do not depend on the devices that read them: a run that continues on
another mesh, or with another number of processes, compares the same digests.
"""

import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from videomar_jax.io.files import atomic_write, read_json, sha256
from videomar_jax.io.log import log

DIGESTS = "digests.json"

_THREADS = 8
_FINE, _NO_DIGESTS, _BROKEN = -1, -2, 2**31 - 1
"""What a process found, where it is not the number of a damaged file."""


class DamagedFile(Exception):
    """A file is not what it was when the checkpoint was saved."""


def write_digests(folder: str | os.PathLike) -> None:
    """Writes FOLDER/digests.json, of all files in subfolders of the checkpoint `folder`.

    Raises:
        OSError: a file cannot be read, or the digests cannot be written.
    """
    folder = Path(folder)
    names = []
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file.parent != folder:
            names.append(file.relative_to(folder).as_posix())
    with ThreadPoolExecutor(_THREADS) as pool:
        digests = pool.map(sha256, [folder / name for name in names])
        found = dict(zip(names, digests, strict=True))
    atomic_write(folder / DIGESTS, json.dumps(found, indent=0) + "\n")


def check_digests(folder: str | os.PathLike, parts: Iterable[str], *, shared: bool = False) -> None:
    """Compares the files of some parts of a checkpoint with its digests.

    A checkpoint of an earlier version has none: then a line is logged.

    Args:
        shared: every process of the run calls this; each reads its share of the files, and all
            raise the same error.
    Raises:
        DamagedFile: a file is missing or holds something else; the text names it.
    """
    folder = Path(folder)
    process, processes = (jax.process_index(), jax.process_count()) if shared else (0, 1)
    names: list[str] = []
    try:
        digests = _read_digests(folder)
        names = [name for name in digests if name.split("/")[0] in parts]
        found = _first_damaged(folder, digests, names, process, processes)
    except FileNotFoundError:
        found = _NO_DIGESTS
    except (OSError, ValueError):
        found = _BROKEN
    if processes > 1:
        found = int(np.max(multihost_utils.process_allgather(np.int32(found))))
    if found == _NO_DIGESTS and process == 0:
        log.info(
            "checkpoint %s has no %s: it is of an earlier version, and its arrays cannot be "
            "compared with what was saved",
            folder,
            DIGESTS,
        )
    if found >= 0:
        name = names[found] if found < len(names) else DIGESTS
        raise DamagedFile(f"{name} is not what was saved: its SHA-256 differs")


def _first_damaged(
    folder: Path, digests: Mapping[str, str], names: list[str], process: int, processes: int
) -> int:
    """The number of the first damaged file among this process's share of `names`."""

    def is_intact(number: int) -> bool:
        name = names[number]
        try:
            return sha256(folder / name) == digests[name]
        except OSError:
            return False

    share = range(process, len(names), processes)
    with ThreadPoolExecutor(_THREADS) as pool:
        for number, intact in zip(share, pool.map(is_intact, share), strict=True):
            if not intact:
                return number
    return _FINE


def _read_digests(folder: Path) -> dict[str, str]:
    """What FOLDER/digests.json holds; a ValueError if that is not what `write_digests` writes."""
    digests = read_json(folder / DIGESTS)
    if not isinstance(digests, dict):
        raise ValueError("it is no JSON object")
    return digests
