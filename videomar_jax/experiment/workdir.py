"""The folder of a run: whose it is, and on which clips it trains.

    WORKDIR/config.json    the config that the run was started with; a run of another config is
                           refused
    WORKDIR/data.json      a digest of the clips it trains on, which must stay the same
    WORKDIR/failing.json   the clips that turned out damaged so far, which later starts count too
    WORKDIR/.lock          while it runs: which process it is (`io.lock`)

A folder becomes the run's only when everything else has been checked, so that a command that cannot
start leaves it to the corrected one.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from videomar_jax.checks import UserError
from videomar_jax.data.sources import ClipSource, contents_of, digest_of
from videomar_jax.data.videos import VideoFolder
from videomar_jax.data.with_pictures import VideosWithPictures
from videomar_jax.experiment.settings import default_config
from videomar_jax.io import lock
from videomar_jax.io.files import atomic_write, read_json
from videomar_jax.io.log import log
from videomar_jax.io.migration import current_config

CONFIG, DATA, FAILING = "config.json", "data.json", "failing.json"
BUDGET = "budget.json"
"""What `experiment.budget` chose, for a run that was given minutes."""
LOCK = lock.PREFIX

MAY_CHANGE = (
    "run",
    "mesh",
    "evaluation",
    "sampling",
    "data.path",
    "data.images",
    "data.captions",
    "data.data_dir",
    "data.held_out",
    "data.threads",
    "data.decode_all",
    "data.most_failing",
    "tokenizer.path",
    "text.path",
    "text.system_text_file",
    "init_from",
)
"""Sections and keys that may differ between two starts of a run: they do not affect the parameters,
or no longer do, or data.json tells whether they do."""

_NAMED = 5
"""Differing keys that a message names."""


def check_workdir(workdir: Path, config: Mapping[str, Any]) -> None:
    """Makes sure that a run with this config may start or continue in `workdir`; writes nothing.

    Names and values of earlier versions in config.json count as today's.

    Raises:
        UserError: the folder holds another config's run (the differing keys are named), or
            something that is no run.
    """
    file = workdir / CONFIG
    if not file.exists():
        if workdir.exists() and (not workdir.is_dir() or _holds_files(workdir)):
            raise UserError(
                f"{workdir} is not empty and holds no run; choose an empty or new --workdir."
            )
        return
    try:
        before = _comparable(read_json(file))
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is broken ({error}); choose another --workdir.") from error
    # Through JSON, so that tuples and lists are equal.
    now = _comparable(json.loads(json.dumps(config)))
    differing = []
    for key in sorted(before | now):
        may_change = key in MAY_CHANGE or key.split(".")[0] in MAY_CHANGE
        if before.get(key) != now.get(key) and not may_change:
            differing.append(f"{key} ({before.get(key)!r} there, {now.get(key)!r} here)")
    if differing:
        more = f" and {len(differing) - _NAMED} more" if len(differing) > _NAMED else ""
        raise UserError(
            f"{workdir} holds a run of another config; it differs in "
            f"{', '.join(differing[:_NAMED])}{more}. Choose another --workdir, or use the config "
            "of that run to continue it."
        )


def _comparable(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config by "section.key", under today's names, with defaults for keys that it lacks.

    A config of an earlier version lacks the settings that were added since.
    """
    values = dict(current_config(config))
    for name, default in default_config().to_dict().items():
        if isinstance(default, dict):
            values[name] = default | values.get(name, {})
        else:
            values.setdefault(name, default)
    return flatten(values)


def write_config(workdir: Path, config: Mapping[str, Any]) -> None:
    """Makes `workdir` the folder of the run with this config."""
    workdir.mkdir(parents=True, exist_ok=True)
    _write_json(workdir / CONFIG, config)


def files_of_run(workdir: Path) -> list[Path]:
    """The files without which the run in `workdir` cannot be continued, besides checkpoints."""
    model = [path for path in sorted((workdir / "model").rglob("*")) if path.is_file()]
    budget = [workdir / BUDGET] if (workdir / BUDGET).exists() else []
    return [workdir / CONFIG, workdir / DATA, *budget, *model]


def check_same_clips(workdir: Path, source: ClipSource, *, contents: bool = True) -> dict[str, Any]:
    """Makes sure that the run in `workdir` was trained on these clips so far.

    The place of their files does not matter. Files that have not been touched since the last start
    are not read again.

    Args:
        contents: compare the bytes of the files and the captions too, which one process of a run
            does for all.
    Returns:
        What `write_clips` keeps.
    Raises:
        UserError: it was trained on others, or they have changed.
    """
    file = workdir / DATA
    now: dict[str, Any] = {"clips": len(source), "digest": digest_of(source)}
    before: dict[str, Any] = {}
    if file.exists():
        try:
            before = read_json(file)
            is_same = before["digest"] == now["digest"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{file} is broken ({error!r}); delete it to continue with the clips there are."
            ) from error
        if not is_same:
            raise UserError(
                f"The clips to train on are not those that the run in {workdir} started with, and "
                f"would come in another order. Put them back as they were, or delete {file} to "
                "continue with those there are."
            )
    if not contents:
        return now
    found = contents_of(source)
    now |= {"stamp": found.stamp(), "captions": found.digest_of_captions()}
    is_untouched = before.get("stamp") == now["stamp"] and "files" in before
    now["files"] = before["files"] if is_untouched else found.digest_of_files()
    if before and not {"files", "captions"} <= set(before):
        log.info("%s is of an earlier version: the clips count as unchanged", file)
        return now
    changed = [part for part in ("files", "captions") if before and before[part] != now[part]]
    if changed:
        what = "The contents of the files" if "files" in changed else "The captions"
        raise UserError(
            f"{what} to train on are not what they were when the run in {workdir} started, though "
            f"their names and lengths are. Put them back as they were, or delete {file} to "
            "continue with those there are."
        )
    return now


def write_clips(workdir: Path, record: Mapping[str, Any]) -> None:
    """Keeps which clips the run in `workdir` trains on, as `check_same_clips` found them."""
    _write_json(workdir / DATA, record)


def write_failing(workdir: Path, source: ClipSource) -> None:
    """Keeps which clips have failed while they were read, if any."""
    failing = source.failing() if isinstance(source, VideoFolder | VideosWithPictures) else []
    if failing:
        _write_json(workdir / FAILING, {"files": failing})


def count_failing(workdir: Path, source: ClipSource) -> None:
    """Counts the clips that failed in earlier starts of the run in `workdir` as failing.

    A file that cannot be read counts for nothing: clips that fail are found again.
    """
    file = workdir / FAILING
    if not file.exists() or not isinstance(source, VideoFolder | VideosWithPictures):
        return
    try:
        files = [str(name) for name in read_json(file)["files"]]
    except (ValueError, KeyError, TypeError, OSError) as error:
        log.warning("%s is broken (%r): clips that fail are counted anew", file, error)
        return
    source.count_failing(files)
    failing = source.failing()
    if failing:
        log.warning("skipped as in earlier starts: %d videos, such as %s", len(failing), failing[0])


def _holds_files(workdir: Path) -> bool:
    """Whether there is anything but locks."""
    return any(not entry.name.startswith(lock.PREFIX) for entry in workdir.iterdir())


def flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings and lists as {"a.b": value, "a.0": value}."""
    if isinstance(values, Mapping):
        items = list(values.items())
    elif isinstance(values, list):
        items = list(enumerate(values))
    else:
        return {prefix: values}
    flat: dict[str, Any] = {}
    for key, value in items:
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def _write_json(file: Path, values: Mapping[str, Any]) -> None:
    atomic_write(file, json.dumps(values, indent=2) + "\n")
