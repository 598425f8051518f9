"""Checkpoints: what is needed to continue a run as if it had not stopped, one directory per step.

A checkpoint of step n is the state after n updates. On disk it is one Orbax composite,

    DIRECTORY/n/params/       one folder for each named part of the state ("params", "ema",
    DIRECTORY/n/ema/          "opt_state", ...), each a tree of arrays, so that sampling reads the
                              averaged parameters alone
    DIRECTORY/n/progress/     a small JSON object: the data position, and whatever else the loop
                              needs to continue
    DIRECTORY/n/metrics/      {"score": ...}, if the caller gave one
    DIRECTORY/n/digests.json  of all these files (`digests`); not in a bucket, which has its own

Four guarantees:

1. Saving stops training only for the copy to host memory, and a step appears under its name only
   once it is complete: what a killed run leaves behind has a temporary name, is ignored, and is
   removed by the next save. An old checkpoint is deleted only after a newer one is complete. The
   first checkpoint of a directory is waited for, and read on trial.
2. What is restored equals what was saved bit by bit, in the tree and on the devices that the caller
   describes, which need not be those of the run that saved it. The files are compared with their
   digests before.
3. Nothing is cast, cut, padded or left out: the first array that does not fit is named before
   anything is read.
4. An error names the folder that could not be written or read, the reason, and the newest intact
   checkpoint. An older checkpoint never replaces a damaged one without being asked for.

Every process of a run calls every method, in the same order.
"""

import contextlib
import glob
import json
import logging
import math
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, EveryNSteps, LatestN

from videomar_jax.checkpoints.compatibility import (
    CheckpointMismatch,
    PyTree,
    arrange_like,
    check_compatible,
    leaves,
    restore_target,
)
from videomar_jax.checkpoints.digests import check_digests, write_digests
from videomar_jax.checks import UserError, at_least
from videomar_jax.io.log import log
from videomar_jax.io.paths import user_path

_PROGRESS, _METRICS = "progress", "metrics"
_NOT_STORAGE = (MemoryError, jax.errors.JaxRuntimeError, NameError, AttributeError)
"""Faults of the computation or of the program, which only show when arrays are copied or placed."""


class Checkpoints:
    """The checkpoints of one run.

    Use it as a context manager, or call `close()`: saving continues in the background. The newest
    checkpoints are kept and, of those saved with a score, the one with the lowest.

    Args:
        directory: a local path or a bucket URL (`gs://...`); the first save creates it, reading
            never does.
        keep_last: how many of the newest checkpoints are kept.
        keep_every: steps divisible by this number are kept for good; None: no such steps.
    Raises:
        UserError: a setting is not possible, or the score of a checkpoint cannot be read.
    """

    def __init__(
        self, directory: str | os.PathLike, *, keep_last: int = 3, keep_every: int | None = None
    ):
        at_least("keep_last", keep_last, 1)  # without any checkpoint a run could not be resumed
        if keep_every is not None:
            at_least("keep_every", keep_every, 1)
        path = os.fspath(directory)
        self._is_local = "://" not in path
        if self._is_local:
            path = os.path.abspath(user_path(path))
        best = BestN(
            get_metric_fn=_score, reverse=True, n=1, keep_checkpoints_without_metrics=False
        )
        policies = [LatestN(keep_last), best]
        if keep_every:
            policies.append(EveryNSteps(keep_every))
        options = ocp.CheckpointManagerOptions(
            create=False,
            preservation_policy=AnyPreservationPolicy(policies),
            best_fn=_score,
            best_mode="min",
            # Orbax would clean up in a thread, which may meet a new save of the same step.
            cleanup_tmp_directories=False,
            # Called by process 0 in the writing thread, when all files are complete and the step
            # still has its temporary name.
            async_options=ocp.options.AsyncOptions(post_finalization_callback=self._add_digests),
        )
        self._path = path
        self._saving: int | None = None
        self._cleared = False
        try:
            self._manager = ocp.CheckpointManager(path, options=options)
        except ValueError as error:  # JSON or UTF-8
            raise UserError(
                f"The score of a checkpoint in {path} cannot be read ({error}): delete the folder "
                f"'{_METRICS}' of that checkpoint, which then counts as one without a score."
            ) from error

    def save(
        self,
        step: int,
        state: Mapping[str, PyTree],
        progress: Mapping[str, Any],
        score: float | None = None,
    ) -> None:
        """Starts writing checkpoint `step` and returns; the arrays may be donated right away.

        A step that exists already is left as it is.

        Args:
            state: named trees of arrays, such as {"params": ..., "ema": ..., "opt_state": ...}.
            progress: a small mapping that JSON can represent.
            score: how good this step is, lower is better; None: not measured.

        Raises:
            UserError: `step` lies before the newest checkpoint, or `check_place` refuses the
                directory.
            ValueError: a part has a reserved name, or the score is not finite.
            TypeError: `progress` is not JSON.
            OSError: this checkpoint, or the one before it, could not be written; the text says
                which one, and what is left.
        """
        reserved = sorted({_PROGRESS, _METRICS} & set(state))
        if reserved:
            raise ValueError(f"'{reserved[0]}' cannot name a part of the state: it is reserved.")
        if score is not None and not math.isfinite(score):
            raise ValueError(f"The score of checkpoint {step} must be finite, but is {score}.")
        # Here and not in the writing thread, whose error would only show at the next save.
        json.dumps(progress)
        directory = self._manager.directory
        if step in self.all_steps():
            if step != self._saving:  # a run saves its last step again when it stops: no news
                log.info("checkpoint %d exists in %s; it is left as it is", step, directory)
            return
        self.wait()
        check_place(self._path)
        latest = self.latest_step()
        if latest is not None and step < latest:
            raise UserError(
                f"Checkpoint {step} would lie before the newest one, {latest}, in {directory}. To "
                f"continue from an older step use another directory, or delete the later "
                f"checkpoints first."
            )
        self._saving = step
        items: dict[str, Any] = {}
        for name, tree in state.items():
            items[name] = ocp.args.StandardSave(tree)
        items[_PROGRESS] = ocp.args.JsonSave(dict(progress))
        metrics = None if score is None else {"score": float(score)}
        with self._writing():
            directory.mkdir(parents=True, exist_ok=True)
            self._clear_leftovers()
            self._manager.save(step, args=ocp.args.Composite(**items), metrics=metrics, force=True)
        if latest is None:
            self._read_on_trial(step, state)

    def restore(
        self, step: int, like: Mapping[str, PyTree]
    ) -> tuple[dict[str, PyTree], dict[str, Any]]:
        """Reads the parts of checkpoint `step` that `like` names, and its progress.

        Args:
            like: for each part a tree of `jax.ShapeDtypeStruct` or arrays. A sharding on a leaf
                says where its array goes; without one it goes to the first device (one process
                only). A NumPy leaf gives a NumPy array.

        Returns:
            (state, progress): `state` has the names and tree structures of `like`.

        Raises:
            FileNotFoundError: there is no such checkpoint; the message lists those there are.
            CheckpointMismatch: a part is missing, or its arrays differ from `like`.
            UserError: the checkpoint is damaged. The older ones are tried, and the text says which
                one is intact.
        """
        self.wait()
        check_place(self._path, writing=False)
        if step not in self.all_steps():
            raise FileNotFoundError(
                f"There is no checkpoint {step} in {self._manager.directory}: {self._inventory()}."
            )
        try:
            self._check_digests(step, like, shared=True)
            with _one_error_only():
                return self._read(step, like)
        except (CheckpointMismatch, *_NOT_STORAGE):
            raise
        except Exception as error:  # whatever the readers of several file formats raise
            raise UserError(self._describe_damage(step, like, error)) from error

    def _read(
        self, step: int, like: Mapping[str, PyTree]
    ) -> tuple[dict[str, PyTree], dict[str, Any]]:
        folder = self._manager.directory / str(step)
        parts = json.loads((folder / "_CHECKPOINT_METADATA").read_text())["item_handlers"]
        absent = sorted(set(like) - set(parts))
        if absent:
            there = sorted(set(parts) - {_PROGRESS, _METRICS})
            raise CheckpointMismatch(f"Checkpoint {folder} has no part {absent}; it holds {there}.")
        handler = ocp.StandardCheckpointHandler()
        items: dict[str, Any] = {}
        for name, tree in like.items():
            stored = handler.metadata(folder / name).tree
            check_compatible(str(folder), name, leaves(stored), leaves(tree))
            items[name] = ocp.args.StandardRestore(restore_target(stored, leaves(tree)))
        items[_PROGRESS] = ocp.args.JsonRestore()
        read = self._manager.restore(step, args=ocp.args.Composite(**items))
        state = {name: arrange_like(tree, leaves(read[name])) for name, tree in like.items()}
        return state, read[_PROGRESS]

    def all_steps(self) -> list[int]:
        """The steps that have a checkpoint, ascending, with one that is still being written."""
        return sorted(self._manager.all_steps())

    def latest_step(self) -> int | None:
        """The newest of `all_steps()`, None if there is none."""
        return max(self.all_steps(), default=None)

    def best_step(self) -> int | None:
        """The step with the lowest score, None if none has one."""
        return self._manager.best_step()

    def wait(self) -> None:
        """Returns when everything saved so far is on disk; OSError if it cannot be written."""
        with self._writing():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, then ends the writing threads."""
        try:
            self.wait()
        except OSError:
            with contextlib.suppress(Exception):
                self._manager.close()
            raise
        self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            self.close()
        except OSError as unwritten:
            if error is None:
                raise
            log.error("%s", unwritten)  # the run ends with the other error

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Turns whatever writing raises into an OSError that says what is left."""
        try:
            yield
        except _NOT_STORAGE:
            raise
        except Exception as error:  # TensorStore reports a full disk with a ValueError
            # After a failure there may be more on disk than Orbax knows of.
            self._manager.reload()
            latest = self.latest_step()
            left = "there is no older one" if latest is None else f"checkpoint {latest} is intact"
            raise OSError(
                f"Checkpoint {self._saving} could not be written in {self._manager.directory}: "
                f"{_reason(error)}. There, {left}; once the cause is removed, the same command "
                f"continues the run."
            ) from error

    def _read_on_trial(self, step: int, parts: Iterable[str]) -> None:
        """Waits for a checkpoint and reads the smallest array of each part of it, on process 0.

        A file system or a folder's name may lose files without an error; this shows it before a
        day's work depends on it.
        """
        self.wait()
        if jax.process_index() != 0:
            return
        handler = ocp.PyTreeCheckpointHandler()
        for name in parts:
            folder = self._manager.directory / str(step) / name
            try:
                _read_smallest(handler, folder)
            except _NOT_STORAGE:
                raise
            except Exception as error:  # whatever the readers of several file formats raise
                raise OSError(
                    f"Checkpoint {step} was written without an error, but {folder} cannot be read "
                    f"({_reason(error)}): the file system loses files. Use a --workdir elsewhere."
                ) from error

    def _add_digests(self) -> None:
        """Writes the digests of the checkpoint that is being saved, before it gets its name."""
        if not self._is_local:
            return
        unnamed = []
        for entry in Path(self._path).iterdir():
            if entry.name.startswith(f"{self._saving}.") and ocp.utils.is_tmp_checkpoint(entry):
                unnamed.append(entry)
        write_digests(max(unnamed, key=lambda entry: entry.stat().st_mtime))

    def _check_digests(self, step: int, parts: Iterable[str], *, shared: bool = False) -> None:
        """Raises `DamagedFile` if one of the parts, or the progress, is not what was saved."""
        if self._is_local:
            check_digests(Path(self._path) / str(step), {*parts, _PROGRESS}, shared=shared)

    def _clear_leftovers(self) -> None:
        """Removes what killed runs left under temporary names.

        Nothing else writes here before the first save of a run.
        """
        if not self._cleared and jax.process_index() == 0:
            for entry in self._manager.directory.iterdir():
                if ocp.utils.is_tmp_checkpoint(entry):
                    entry.rmtree()
        self._cleared = True

    def _describe_damage(self, step: int, like: Mapping[str, PyTree], error: Exception) -> str:
        """The message for a checkpoint that cannot be read; tries the older ones, newest first."""
        folder = self._manager.directory / str(step)
        damage = f"Checkpoint {folder} is damaged ({_reason(error)})."
        older = [other for other in reversed(self.all_steps()) if other < step]
        if not older:
            return (
                f"{damage} There is no older one: restore it from a copy, or start again in "
                f"another directory."
            )
        intact = next((other for other in older if self._is_intact(other, like)), None)
        if intact is None:
            listed = ", ".join(map(str, older))
            return (
                f"{damage} The older ones cannot be read either ({listed}): look at the disk "
                f"before anything is deleted."
            )
        # Several processes only look for the folders.
        verb = "seems to be" if jax.process_count() > 1 else "is"
        aside = folder.parent.parent / f"damaged_checkpoint_{step}"
        return (
            f"{damage} Checkpoint {intact} {verb} intact. To continue from it, move the damaged "
            f"one away, and give the same command again: mv {folder} {aside}"
        )

    def _is_intact(self, step: int, like: Mapping[str, PyTree]) -> bool:
        """Whether a checkpoint can be read.

        With several processes, which may not all see the damage, only whether it has all folders
        and the files are those of its digests.
        """
        try:
            self._check_digests(step, like)
            if jax.process_count() > 1:
                folder = self._manager.directory / str(step)
                return all((folder / name).is_dir() for name in [*like, _PROGRESS])
            self._read(step, like)
        except _NOT_STORAGE:
            raise
        except Exception:
            return False
        return True

    def _inventory(self) -> str:
        steps = self.all_steps()
        if steps:
            return f"it holds {', '.join(map(str, steps))}"
        if self._manager.directory.exists():
            return "it holds no complete one"
        return "the directory does not exist"


def check_place(directory: str | os.PathLike, *, writing: bool = True) -> None:
    """Refuses folders whose names the libraries below misread, which would lose arrays silently.

    Args:
        directory: of checkpoints, or a folder above it; it need not exist.
        writing: False asks only whether checkpoints can be read there.
    Raises:
        UserError: the path holds a backslash, bytes that are not UTF-8 or, to be written to, one
            of * ? [ that may stand for other folders.
    """
    path = os.fspath(directory)
    if "://" in path:
        return
    try:
        path.encode()
    except UnicodeEncodeError:
        raise UserError(
            f"{path!a} is no text in UTF-8, so that checkpoints cannot be kept there: rename the "
            f"folder, or choose another."
        ) from None
    if "\\" in path:  # TensorStore takes it for a slash
        raise UserError(
            f"{path} holds a backslash, so that checkpoints cannot be kept there: rename the "
            f"folder, or choose another."
        )
    # Orbax searches for what it has just written with the whole path as a pattern. A folder of
    # earlier versions that is its own match can still be written to.
    if writing and glob.has_magic(path) and not (os.path.isdir(path) and glob.glob(path) == [path]):
        raise UserError(
            f"{path} holds one of the characters * ? [ which stand for other names in a search, so "
            f"that checkpoints would be lost: rename the folder, or choose another."
        )


def _read_smallest(handler: ocp.PyTreeCheckpointHandler, folder: Any) -> None:
    """Reads the smallest array of one part of a checkpoint."""
    tree = ocp.StandardCheckpointHandler().metadata(folder).tree
    sizes = [math.prod(leaf.shape) for leaf in jax.tree.leaves(tree)]
    if not sizes:
        return
    flat, structure = jax.tree.flatten(tree)
    chosen = sizes.index(min(sizes))
    item = [ocp.PLACEHOLDER] * len(flat)
    item[chosen] = flat[chosen]
    arguments = [ocp.RestoreArgs(restore_type=np.ndarray)] * len(flat)
    handler.restore(
        folder,
        args=ocp.args.PyTreeRestore(
            item=jax.tree.unflatten(structure, item),
            restore_args=jax.tree.unflatten(structure, arguments),
        ),
    )


def _score(metrics: Any) -> float:
    """The score of a checkpoint; the worst there is for one whose file holds something else."""
    score = metrics.get("score") if isinstance(metrics, Mapping) else None
    return float(score) if isinstance(score, int | float) and not math.isnan(score) else math.inf


@contextlib.contextmanager
def _one_error_only() -> Iterator[None]:
    """Drops what Python prints for each array that arrives after the reading of another failed.

    Those that come after the block are dropped as well, if it fails.
    """
    before = sys.unraisablehook

    def drop_closed_loops(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    sys.unraisablehook = drop_closed_loops
    yield
    sys.unraisablehook = before


def _reason(error: Exception) -> str:
    """The gist of an error: TensorStore's texts fill lines with paths before what happened."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    code = re.search(r"os_error_code='(\d+)'", str(error))
    if code:
        return os.strerror(int(code[1]))
    text = " ".join(str(error).split(" [tensorstore_spec=")[0].split()) or type(error).__name__
    return text if len(text) < 300 else f"{text[:300]} ..."


def _is_worth_logging(record: logging.LogRecord) -> bool:
    """Drops what Orbax logs besides raising it, and its question for a score at every save."""
    if "orbax" not in record.pathname:
        return True
    return not (record.exc_info or "tracked_metric" in str(record.msg))


logging.getLogger("absl").addFilter(_is_worth_logging)
