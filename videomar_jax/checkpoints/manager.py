"""Checkpoints: what is needed to go on as if nothing had happened, in one directory per step.

A checkpoint of step n is the state after n updates. On disk it is one Orbax composite,

    DIRECTORY/n/params/       one folder for each named part of the state ("params", "ema",
    "opt_state", ...),
    DIRECTORY/n/ema/          a tree of arrays each, so that sampling reads the averaged weights
    alone
    DIRECTORY/n/progress/     a small JSON object: the data position and whatever else the loop must
        remember
    DIRECTORY/n/metrics/      {"score": ...}, where the caller gave one

Four promises:

1. Writing never stops training for longer than the copy to host memory, and a step appears under
    its name only once it
   is complete: what a killed run leaves behind carries a temporary name, is ignored, and is removed
       by the next save.
   An old checkpoint goes only after a newer one is complete.
2. What comes back equals what was saved bit by bit, in the tree and on the devices the caller
    describes, which need
   not be those of the run that saved it.
3. Nothing is cast, cut, padded or left out: the first array that does not fit is named before
    anything is read.
4. What could not be written or read is said with its folder, the reason, and the newest checkpoint
    that is whole. No
   older one is taken in place of a damaged one unasked.

Every process of a run calls every method, in the same order.
"""

import contextlib
import json
import logging
import math
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, EveryNSteps, LatestN

from videomar_jax.checkpoints.compatibility import (
    PyTree,
    Unfit,
    arranged_like,
    check_fits,
    leaves,
    target,
)

_PROGRESS, _METRICS = "progress", "metrics"
_NOT_OURS = (MemoryError, jax.errors.JaxRuntimeError, NameError, AttributeError)
"""Faults of the computation, which only come to light when arrays are copied or placed, and of the
program."""
_log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one run. Use it as a context manager, or call `close()`: saving goes on in
    the background.

    The newest ones stay, and, of those saved with a score, the one with the lowest.

    Args:
      directory: a local path or a bucket URL (`gs://...`); it is created by the first save, never
          by reading.
      keep_last: how many of the newest checkpoints stay.
      keep_every: steps divisible by this number stay for good; None keeps only the newest and the
          best.
    """

    def __init__(
        self, directory: str | os.PathLike, *, keep_last: int = 3, keep_every: int | None = None
    ):
        if keep_last < 1:
            raise ValueError(
                f"keep_last must be at least 1, or a run could not be resumed; got {keep_last}."
            )
        if keep_every is not None and keep_every < 1:
            raise ValueError(
                f"keep_every must be a positive number of steps, or None; got {keep_every}."
            )
        path = os.fspath(directory)
        path = path if "://" in path else os.path.abspath(os.path.expanduser(path))
        best = BestN(
            get_metric_fn=_score, reverse=True, n=1, keep_checkpoints_without_metrics=False
        )
        policies = [LatestN(keep_last), best] + ([EveryNSteps(keep_every)] if keep_every else [])
        options = ocp.CheckpointManagerOptions(
            create=False,
            preservation_policy=AnyPreservationPolicy(policies),
            best_fn=_score,
            best_mode="min",
            # Orbax cleans up in a thread, which may meet a new save of the same step
            cleanup_tmp_directories=False,
        )
        self._saving: int | None = None
        self._cleared = False
        try:
            self._manager = ocp.CheckpointManager(path, options=options)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"The score of a checkpoint in {path} cannot be read ({error}): delete the folder '{_METRICS}' of that "
                f"checkpoint, which then counts as one without a score."
            ) from error

    def save(
        self,
        step: int,
        state: Mapping[str, PyTree],
        progress: Mapping[str, Any],
        score: float | None = None,
    ) -> None:
        """Starts writing checkpoint `step` and returns; the arrays may be donated right away.

        Args:
          state: named trees of arrays, such as {"params": ..., "ema": ..., "opt_state": ...}.
          progress: a small mapping that JSON can hold.
          score: how good this step is, lower is better; None: not measured.

        A step that exists already is left as it is.

        Raises:
          ValueError: `step` lies before the newest checkpoint (going on from an older one needs a
              directory of its
            own), or the score is not finite.
          TypeError: `progress` is not JSON.
          OSError: this checkpoint, or the one before it, could not be written; the text says which
              and what is left.
        """
        if reserved := sorted({_PROGRESS, _METRICS} & set(state)):
            raise ValueError(
                f"'{reserved[0]}' cannot name a part of the state: something else is stored under it."
            )
        if score is not None and not math.isfinite(score):
            raise ValueError(f"The score of checkpoint {step} must be finite, but is {score}.")
        json.dumps(
            progress
        )  # here rather than in the writing thread, where the error would surface one save later
        if step in self.all_steps():
            _log.info(
                "Checkpoint %d exists in %s; it stays as it is.", step, self._manager.directory
            )
            return
        self.wait()
        latest = self.latest_step()
        if latest is not None and step < latest:
            raise ValueError(
                f"Checkpoint {step} would lie before the newest one, {latest}, in {self._manager.directory}. To go on "
                f"from an older step use another directory, or delete the later checkpoints first."
            )
        self._saving = step
        items = {name: ocp.args.StandardSave(tree) for name, tree in state.items()}
        items[_PROGRESS] = ocp.args.JsonSave(dict(progress))
        metrics = None if score is None else {"score": float(score)}
        with self._writing():
            self._manager.directory.mkdir(parents=True, exist_ok=True)
            self._clear_leftovers()
            self._manager.save(step, args=ocp.args.Composite(**items), metrics=metrics, force=True)

    def restore(
        self, step: int, like: Mapping[str, PyTree]
    ) -> tuple[dict[str, PyTree], dict[str, Any]]:
        """Reads the parts of checkpoint `step` that `like` names, and its progress; other parts are
        not touched.

        Args:
          like: for each part a tree of `jax.ShapeDtypeStruct` or arrays. A sharding on a leaf says
              where its array
            goes; without one it goes to the first device (one process only). A NumPy leaf gives a
            NumPy array.

        Returns:
          (state, progress): `state` has the names and tree structures of `like`.

        Raises:
          FileNotFoundError: there is no such checkpoint; the message lists those there are.
          ValueError: a part is missing, or its arrays differ from `like` in name, shape or dtype;
              or the checkpoint is
            damaged, in which case the older ones are tried and the text says which one is whole.
        """
        self.wait()
        if step not in self.all_steps():
            raise FileNotFoundError(
                f"There is no checkpoint {step} in {self._manager.directory}: {self._inventory()}."
            )
        try:
            return self._read(step, like)
        except (Unfit, *_NOT_OURS):
            raise
        except Exception as error:  # whatever the readers of several file formats raise
            raise ValueError(self._damage(step, like, error)) from error

    def _read(
        self, step: int, like: Mapping[str, PyTree]
    ) -> tuple[dict[str, PyTree], dict[str, Any]]:
        folder = self._manager.directory / str(step)
        written = json.loads((folder / "_CHECKPOINT_METADATA").read_text())["item_handlers"]
        if absent := sorted(set(like) - set(written)):
            there = sorted(set(written) - {_PROGRESS, _METRICS})
            raise Unfit(f"Checkpoint {folder} has no part {absent}; it holds {there}.")
        stored = {
            name: ocp.StandardCheckpointHandler().metadata(folder / name).tree for name in like
        }
        for name, tree in like.items():
            check_fits(str(folder), name, leaves(stored[name]), leaves(tree))
        targets = {name: target(stored[name], leaves(tree)) for name, tree in like.items()}
        items = {name: ocp.args.StandardRestore(target) for name, target in targets.items()}
        read = self._manager.restore(
            step, args=ocp.args.Composite(**items, **{_PROGRESS: ocp.args.JsonRestore()})
        )
        return {name: arranged_like(tree, leaves(read[name])) for name, tree in like.items()}, read[
            _PROGRESS
        ]

    def all_steps(self) -> list[int]:
        """The steps that have a checkpoint, ascending; one still being written by this run
        counts."""
        return sorted(self._manager.all_steps())

    def latest_step(self) -> int | None:
        """The newest of `all_steps()`, None where there is none."""
        return max(self.all_steps(), default=None)

    def best_step(self) -> int | None:
        """The step with the lowest score, None where none has one."""
        return self._manager.best_step()

    def wait(self) -> None:
        """Returns when everything saved so far is on disk; raises OSError where it cannot be
        written."""
        with self._writing():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, then lets go of the writing threads."""
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
            _log.error("%s", unwritten)  # what ended the run is the other error

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except _NOT_OURS:
            raise
        except Exception as error:  # TensorStore says a full disk with a ValueError
            self._manager.reload()  # on disk there may be more than Orbax remembers after a failure
            latest = self.latest_step()
            left = (
                f"checkpoint {latest} is whole" if latest is not None else "there is no older one"
            )
            raise OSError(
                f"Checkpoint {self._saving} could not be written in {self._manager.directory}: {_reason(error)}. "
                f"There, {left}; once the cause is gone, the same command goes on."
            ) from error

    def _clear_leftovers(self) -> None:
        """Removes what killed runs left under temporary names; nobody writes here before the first
        save of a run."""
        if not self._cleared and jax.process_index() == 0:
            for entry in self._manager.directory.iterdir():
                if ocp.utils.is_tmp_checkpoint(entry):
                    entry.rmtree()
        self._cleared = True

    def _damage(self, step: int, like: Mapping[str, PyTree], error: Exception) -> str:
        """What to say of a checkpoint that cannot be read; tries the older ones, newest first."""
        folder = self._manager.directory / str(step)
        text = f"Checkpoint {folder} is damaged ({_reason(error)}). "
        older = [other for other in reversed(self.all_steps()) if other < step]
        if not older:
            return (
                text
                + "There is no older one: restore it from a copy, or begin anew in another directory."
            )
        whole = next((other for other in older if self._is_whole(other, like)), None)
        if whole is None:
            listed = ", ".join(map(str, older))
            return (
                text
                + f"Nor can the older ones be read ({listed}): look at the disk before anything is deleted."
            )
        tried = "seems to be" if jax.process_count() > 1 else "is"
        return text + (
            f"Checkpoint {whole} {tried} whole. To go on from it, move the damaged one away, and give the same command "
            f"again: mv {folder} {folder.parent.parent / f'damaged_checkpoint_{step}'}"
        )

    def _is_whole(self, step: int, like: Mapping[str, PyTree]) -> bool:
        """Whether a checkpoint can be read; with several processes, which may not all see the
        damage, whether it has all its folders."""
        try:
            if jax.process_count() > 1:
                return all(
                    (self._manager.directory / str(step) / name).is_dir()
                    for name in [*like, _PROGRESS]
                )
            self._read(step, like)
        except _NOT_OURS:
            raise
        except Exception:
            return False
        return True

    def _inventory(self) -> str:
        if steps := self.all_steps():
            return f"it holds {', '.join(map(str, steps))}"
        return (
            "it holds no complete one"
            if self._manager.directory.exists()
            else "the directory does not exist"
        )


def _score(metrics: Mapping[str, float]) -> float:
    return metrics["score"]


def _reason(error: Exception) -> str:
    """The gist of an error: TensorStore's fill lines with paths, and only end in what happened."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    if code := re.search(r"os_error_code='(\d+)'", str(error)):
        return os.strerror(int(code[1]))
    text = " ".join(str(error).split(" [tensorstore_spec=")[0].split()) or type(error).__name__
    return text if len(text) < 300 else f"{text[:300]} ..."


def _is_news(record: logging.LogRecord) -> bool:
    """Orbax logs the traceback of each error that it raises too, and asks for a score at every
    save."""
    return "orbax" not in record.pathname or not (
        record.exc_info or "tracked_metric" in str(record.msg)
    )


logging.getLogger("absl").addFilter(_is_news)
