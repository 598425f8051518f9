"""Folders of published weights: local ones, or downloaded from the Hugging Face Hub."""

import re
from collections.abc import Sequence
from pathlib import Path

from videomar_jax.io.paths import user_path

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def local_folder(place: str, patterns: Sequence[str]) -> Path:
    """The local file or folder `place`; else the folder to which the repository is downloaded.

    Args:
        place: a path, or a Hugging Face repository id "owner/name".
        patterns: the files of the repository to download, such as "*.json".
    Raises:
        FileNotFoundError: neither exists; the text says what to do, also when offline.
    """
    path = user_path(place)
    if path.exists():
        return path
    if not _REPOSITORY.fullmatch(place):
        raise FileNotFoundError(f"There is no file or folder {place}.")
    by_hand = (
        f"fetch it on a connected machine (`hf download {place} --local-dir DIR`), copy DIR here "
        f"and name DIR."
    )
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError as error:
        raise FileNotFoundError(
            f"There is no local {place}, and downloading it needs `pip install huggingface_hub`. "
            f"Without it, {by_hand}"
        ) from error
    try:
        return Path(snapshot_download(place, allow_patterns=list(patterns)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise FileNotFoundError(
            f"{place} could not be downloaded ({error}). When offline, {by_hand}"
        ) from error
