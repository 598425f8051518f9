"""Folders of published weights: local ones, or downloaded from the Hugging Face Hub.

A repository may change. "owner/name@REVISION" names a commit, tag or branch of it; whatever is
named, its commit is looked up once and all files are of that commit, which the log names. What is
made with them keeps it: a tokenizer is copied, and an encoder refers to the folder of the commit.
"""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from videomar_jax.io.log import log
from videomar_jax.io.paths import user_path

_COMMIT = re.compile(r"[0-9a-f]{40}")
_AT_THE_END = re.compile(r"(?:^|[:@])(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?$")
"""A repository at the end of a spec such as "cosmos:owner/name@main"."""
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def local_folder(place: str, patterns: Sequence[str]) -> Path:
    """The local file or folder `place`; else the folder to which the repository is downloaded.

    Args:
        place: a path, or a Hugging Face repository id "owner/name" or "owner/name@REVISION".
        patterns: the files of the repository to download, such as "*.json".
    Raises:
        FileNotFoundError: neither exists; the text says what to do, also when offline.
    """
    path = user_path(place)
    if path.exists():
        return path
    repository, _, revision = place.partition("@")
    if not _REPOSITORY.fullmatch(repository):
        raise FileNotFoundError(f"There is no file or folder {place}.")
    asked = ["--revision", revision] if revision else []
    by_hand = (
        f"fetch it on a connected machine (`{shlex.join(['hf', 'download', repository, *asked])} "
        f"--local-dir DIR`), copy DIR here "
        f"and name DIR."
    )
    try:
        from huggingface_hub import HfApi, snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError as error:
        raise FileNotFoundError(
            f"There is no local {place}, and downloading it needs `pip install huggingface_hub`. "
            f"Without it, {by_hand}"
        ) from error
    try:
        commit = revision or None
        if not _COMMIT.fullmatch(revision):
            commit = _commit_of(HfApi(), repository, commit) or commit
        folder = snapshot_download(repository, revision=commit, allow_patterns=list(patterns))
        found = Path(folder).name  # the cache names folders by their commits
        log.info("%s is of the commit %s: %s@%s is the same again", place, found, repository, found)
        return Path(folder)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise FileNotFoundError(
            f"{place} could not be downloaded ({error}). When offline, {by_hand}"
        ) from error


def pinned(spec: str) -> str | None:
    """A spec "kind:owner/name" or "kind:owner/name@REVISION" with the commit that it names now.

    None for anything that is no repository, such as a local folder, and when the commit cannot be
    looked up.
    """
    found = _AT_THE_END.search(spec)
    if found is None or user_path(spec.partition(":")[2] or spec).exists():
        return None
    repository, revision = found["repository"], found["revision"]
    if revision is not None and _COMMIT.fullmatch(revision):
        return spec
    try:
        from huggingface_hub import HfApi
    except ImportError:
        return None
    commit = _commit_of(HfApi(), repository, revision)
    return None if commit is None else f"{spec[: found.end('repository')]}@{commit}"


def _commit_of(api: Any, repository: str, revision: str | None) -> str | None:
    """The commit that a revision names now; None when offline, where the cache may have one."""
    try:
        return api.model_info(repository, revision=revision).sha
    except Exception as error:  # connection errors of several libraries
        log.debug("the commit of %s cannot be looked up: %r", repository, error)
        return None
