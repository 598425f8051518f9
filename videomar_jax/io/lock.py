"""A lock: a file that says which process writes to a folder, so that no second one does.

    {"host": "node3", "machine": "...", "pid": 123, "started": "...", "since": "..."}

It appears in one move, and is removed at the end. A process that is killed leaves it behind; the
next one takes it over. On the same machine it does so where the process is gone, or its number now
belongs to a process that was started at another time. The processes of another machine cannot be
seen: their lock is taken over once it has not been touched for `SILENCE` seconds, and the program
waits for that. A process touches its lock every `HEARTBEAT` seconds.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import platform
import stat
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from videomar_jax.checks import UserError
from videomar_jax.io.log import log
from videomar_jax.io.signals import cleaning_up

HEARTBEAT = 15.0
"""Seconds between two signs of life of a process that holds a lock."""
SILENCE = 300.0
"""Seconds without a sign of life after which a lock of another machine is taken over."""
PREFIX = ".lock"
"""What the names of lock files, and of those that are about to be, begin with."""

_POLL = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Holder:
    """The process that holds a lock."""

    host: str
    machine: str
    """Differs between two systems, and two containers, that do not see each other's processes."""
    pid: int
    started: str
    """Tells processes apart that had one number after another; "" where the system does not say."""
    since: str
    """When it took the lock, for people."""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"

    def is_here(self) -> bool:
        """Whether it belongs to this machine, so that its end can be seen."""
        return (self.host, self.machine) == (platform.node(), _machine())

    def is_gone(self) -> bool:
        """Whether a process of this machine has ended."""
        return _started(self.pid) != self.started


@contextlib.contextmanager
def holding(file: Path, what: str) -> Iterator["Lock"]:
    """Holds the lock `file` during the block.

    Folders above it are made where there are none; those that are empty at the end go again.

    Args:
        what: what the lock is for, such as the folder, for the message.
    Raises:
        UserError: another process holds it, and the text names that process; or nothing can be
            written to the folder, or something else has the name of the lock.
    """
    made = [folder for folder in file.parents if not folder.exists()]
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(what, error) from error
    try:
        lock = Lock(file, what)
        try:
            with cleaning_up(lock.drop):
                yield lock
        finally:
            lock.release()
    finally:
        for folder in made:
            with contextlib.suppress(OSError):  # not empty, or gone
                folder.rmdir()


def holder_of(file: Path) -> Holder | None:
    """The process that holds a lock; None if none does, or one that has ended or fallen silent."""
    holder, touched = _read(file), _touched(file)
    if touched is None or not file.is_file():
        return None
    if holder is not None and holder.is_here():
        return None if holder.is_gone() else holder
    if time.time() - touched > SILENCE:
        return None
    return holder or _unknown()


def remove_if_stale(file: Path) -> None:
    """Removes the lock of a process that has ended or fallen silent."""
    if not file.is_file():
        return
    with contextlib.suppress(OSError):
        text = file.read_bytes()
        if holder_of(file) is None:
            _remove(file, text)


class Lock:
    """A lock that is held from its making to `release`; see `holding`."""

    def __init__(self, file: Path, what: str):
        self._file, self._what = file, what
        pid = os.getpid()
        self._me = Holder(
            host=platform.node(),
            machine=_machine(),
            pid=pid,
            started=_started(pid) or "",
            since=time.strftime("%Y-%m-%d %H:%M:%S"),
        )
        # Two locks of one process differ as well.
        self._text = json.dumps(dataclasses.asdict(self._me) | {"id": uuid.uuid4().hex}) + "\n"
        while not self._create():
            self._wait_until_free()
        self._ended = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="lock", daemon=True)
        self._heart.start()

    def renew(self) -> None:
        """Makes sure that the lock is still held; it is made again if somebody deleted it.

        Raises:
            UserError: another process has it now.
        """
        if self._is_mine():
            return
        with contextlib.suppress(FileExistsError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            if self._create():
                return
        raise UserError(
            f"{self._what} was taken over by {_read(self._file) or _unknown()}, as nothing was "
            f"heard of this process: it stops here."
        )

    def release(self) -> None:
        """Gives the lock up."""
        self._ended.set()
        self._heart.join()
        self.drop()

    def drop(self) -> None:
        """Removes the file."""
        if self._is_mine():
            self._file.unlink(missing_ok=True)

    def _create(self) -> bool:
        """Makes the file in one move; False if it is there."""
        new = self._new_name()
        try:
            try:
                new.write_text(self._text, encoding="utf-8")
            except OSError as error:
                raise _unwritable(self._what, error) from error
            try:
                os.link(new, self._file)
            except FileExistsError:
                return False
            except OSError:  # a file system without hard links
                return self._create_at_once()
            return True
        finally:
            new.unlink(missing_ok=True)

    def _create_at_once(self) -> bool:
        try:
            with self._file.open("x", encoding="utf-8") as file:
                file.write(self._text)
        except FileExistsError:
            return False
        return True

    def _wait_until_free(self) -> None:
        """Returns when the lock may be taken, after removing one that is stale.

        Raises:
            UserError: its process is alive, or it is no file.
        """
        try:
            # Neither followed nor opened: a link may lead nowhere, and a FIFO would be waited for.
            is_file = stat.S_ISREG(self._file.lstat().st_mode)
            text = self._file.read_bytes() if is_file else b""
        except FileNotFoundError:
            return
        if not is_file:
            raise UserError(
                f"{self._file} has the name of the lock of {self._what}, but is no regular file: "
                f"move it away, or choose another folder."
            )
        holder = _parse(text)
        if holder is not None and holder.is_here():
            if not holder.is_gone():
                raise self._refusal(holder)
        elif not self._falls_silent(holder or _unknown()):
            return
        log.info("%s: taking over the lock of %s, which is gone", self._what, holder or _unknown())
        _remove(self._file, text)

    def _falls_silent(self, holder: Holder) -> bool:
        """Watches the lock of another machine; True once it is silent for too long, False if it is
        given up.

        Raises:
            UserError: the process has given a sign of life.
        """
        # Times are compared on the clock of the file system, which may not be ours.
        clock = self._new_name()
        clock.touch()
        try:
            first, begun = _touched(self._file), time.monotonic()
            said = False
            while True:
                touched = _touched(self._file)
                if touched is None:
                    return False
                if touched != first:
                    raise self._refusal(holder)
                os.utime(clock)
                # Nor is a time of the future, of a clock that was wrong, waited for.
                silent = max(clock.stat().st_mtime - touched, time.monotonic() - begun)
                left = SILENCE - silent
                if left <= 0:
                    return True
                if not said:
                    said = True
                    log.info(
                        "%s is in use by %s: waiting for a sign of life of it for %.0f s",
                        self._what,
                        holder,
                        left,
                    )
                time.sleep(_POLL)
        finally:
            clock.unlink(missing_ok=True)

    def _refusal(self, holder: Holder) -> UserError:
        return UserError(
            f"{self._what} is in use by {holder}. Wait until that has ended, stop it, or choose "
            f"another folder."
        )

    def _is_mine(self) -> bool:
        try:
            return self._file.read_text(encoding="utf-8") == self._text
        except (OSError, ValueError):
            return False

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT):
            with contextlib.suppress(OSError):  # deleted: `renew` makes it again
                if self._is_mine():
                    os.utime(self._file)

    def _new_name(self) -> Path:
        return self._file.with_name(f"{PREFIX}-{uuid.uuid4().hex}.new")


def _remove(file: Path, text: bytes) -> None:
    """Removes a lock file if it still has this text."""
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        # Of several that want to remove it only one does so, and the others find what came next.
        with contextlib.suppress(OSError):  # a file system that cannot
            fcntl.flock(folder, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if file.read_bytes() == text:
                file.unlink()
    finally:
        os.close(folder)


def _read(file: Path) -> Holder | None:
    """What a lock file says; None if there is none or it says nothing."""
    if not file.is_file():  # a FIFO would be waited for
        return None
    try:
        return _parse(file.read_bytes())
    except OSError:
        return None


def _parse(text: bytes) -> Holder | None:
    try:
        values = json.loads(text)
        kinds = {"host": str, "machine": str, "pid": int, "started": str, "since": str}
        if not all(isinstance(values[name], kind) for name, kind in kinds.items()):
            return None
        return Holder(**{name: values[name] for name in kinds})
    except (ValueError, KeyError, TypeError):
        return None


def _unwritable(what: str, error: OSError) -> UserError:
    return UserError(
        f"Nothing can be written to {what} ({error.strerror or error}): mend that, or choose "
        f"another folder."
    )


def _unknown() -> Holder:
    """Who holds a lock that cannot be read."""
    return Holder(host="an unknown host", machine="", pid=0, started="", since="an unknown time")


def _touched(file: Path) -> float | None:
    try:
        return file.stat().st_mtime
    except OSError:
        return None


def _machine() -> str:
    """The running system and its space of process numbers, which each container has of its own."""
    parts = []
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
    with contextlib.suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _started(pid: int) -> str | None:
    """When a process was started, in the system's own count; None if it has ended."""
    if not Path("/proc/self/stat").exists():  # macOS
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except OSError:
            pass
        return ""
    try:
        # The name of the program, in brackets, may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return None if fields[0] in ("Z", "X") else fields[19]
    except (OSError, IndexError):
        return None
