"""Two processes never hold one lock; that of a process which is gone is taken over."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.helpers.paths import ROOT
from videomar_jax.checks import UserError
from videomar_jax.io import lock
from videomar_jax.io.lock import holder_of, holding

HOLD = """
import sys, time
from pathlib import Path
from videomar_jax.io.lock import holding
with holding(Path(sys.argv[1]), "the folder"):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds tmp_path/run/.lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run" / ".lock")],
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )
    assert process.stdout is not None and process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def edit(file, **changes):
    """The lock file with other values."""
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_a_second_process_is_refused_and_told_of_the_first(other, tmp_path):
    file = tmp_path / "run" / ".lock"
    before = file.read_bytes()
    with pytest.raises(
        UserError, match=rf"^RUN is in use by process {other.pid} on \S+, since \d{{4}}-"
    ):
        with holding(file, "RUN"):
            pass
    assert file.read_bytes() == before and [path.name for path in file.parent.iterdir()] == [
        ".lock"
    ]
    holder = holder_of(file)
    assert holder is not None and holder.pid == other.pid


@pytest.mark.parametrize("is_reaped", [True, False])
def test_the_lock_of_a_killed_process_is_taken_over_at_once(other, is_reaped, tmp_path, caplog):
    file = tmp_path / "run" / ".lock"
    other.send_signal(signal.SIGKILL)
    if is_reaped:
        other.wait()
    else:
        os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)  # it stays as a zombie
    assert holder_of(file) is None
    with caplog.at_level(logging.INFO), holding(file, "RUN"):
        assert json.loads(file.read_text())["pid"] == os.getpid()
    assert f"taking over the lock of process {other.pid}" in caplog.text
    assert not list(file.parent.iterdir())


def test_a_number_that_was_given_to_a_later_process_does_not_count(other, tmp_path):
    file = tmp_path / "run" / ".lock"
    edit(file, started="1")
    with holding(file, "RUN"):
        assert json.loads(file.read_text())["pid"] == os.getpid()


def test_a_second_lock_of_the_same_process_is_refused(tmp_path):
    with holding(tmp_path / "x", "RUN"):
        with pytest.raises(UserError, match=f"in use by process {os.getpid()} "):
            with holding(tmp_path / "x", "RUN"):
                pass
        assert (tmp_path / "x").exists()


def test_another_machine_is_believed_dead_after_its_silence(other, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(lock, "SILENCE", 2.0)
    monkeypatch.setattr(lock, "_POLL", 0.05)
    file = tmp_path / "run" / ".lock"
    edit(file, host="elsewhere", pid=1)
    start = time.time()
    with caplog.at_level(logging.INFO), holding(file, "RUN"):
        assert json.loads(file.read_text())["pid"] == os.getpid()
    assert 1.5 < time.time() - start < 10
    assert "in use by process 1 on elsewhere" in caplog.text and "waiting" in caplog.text


def test_another_machine_that_is_alive_is_left_its_lock(other, tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "_POLL", 0.05)
    file = tmp_path / "run" / ".lock"
    edit(file, host="elsewhere")
    beat = threading.Timer(0.5, lambda: os.utime(file))
    beat.start()
    with pytest.raises(UserError, match=f"in use by process {other.pid} on elsewhere"):
        with holding(file, "RUN"):
            pass
    beat.join()
    assert json.loads(file.read_text())["host"] == "elsewhere"


def test_five_minutes_are_waited_for_with_a_sign_of_life_every_few_seconds():
    assert lock.SILENCE == 300 and lock.HEARTBEAT <= 30


def test_a_holder_gives_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "HEARTBEAT", 0.05)
    with holding(tmp_path / "x", "RUN"):
        os.utime(tmp_path / "x", (1, 1))
        time.sleep(0.5)
        assert time.time() - (tmp_path / "x").stat().st_mtime < 10


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": "x"}'])
def test_a_broken_lock_is_taken_over_after_its_silence(text, tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "_POLL", 0.05)
    (tmp_path / "x").write_text(text)
    assert holder_of(tmp_path / "x") is not None
    os.utime(tmp_path / "x", (1, 1))
    assert holder_of(tmp_path / "x") is None
    with holding(tmp_path / "x", "RUN"):
        pass
    assert not list(tmp_path.iterdir())


def test_folders_made_for_the_lock_alone_go_with_it(tmp_path):
    with holding(tmp_path / "a" / "b" / "x", "RUN"):
        assert (tmp_path / "a" / "b" / "x").is_file()
    assert not list(tmp_path.iterdir())
    with holding(tmp_path / "a" / "b" / "x", "RUN"):
        (tmp_path / "a" / "mine").touch()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["mine"]


def test_a_deleted_lock_is_made_again_unless_somebody_else_has_it(tmp_path):
    file = tmp_path / "run" / "x"
    with holding(file, "RUN") as mine:
        mine.renew()
        file.unlink()
        file.parent.rmdir()
        mine.renew()
        assert file.is_file()
        file.unlink()
        with holding(file, "RUN"):
            with pytest.raises(UserError, match=f"RUN was taken over by process {os.getpid()}"):
                mine.renew()
        assert not file.exists()


def test_a_file_system_without_hard_links(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    with holding(tmp_path / "x", "RUN"):
        with pytest.raises(UserError, match="in use"):
            with holding(tmp_path / "x", "RUN"):
                pass
    assert not list(tmp_path.iterdir())


def test_of_many_that_find_a_stale_lock_one_gets_it(other, tmp_path):
    other.kill()
    other.wait()
    file, winners = tmp_path / "run" / ".lock", []
    barrier = threading.Barrier(8)

    def attempt(_):
        barrier.wait()
        try:
            with holding(file, "RUN"):
                winners.append(1)
                time.sleep(0.5)
        except UserError:
            pass

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(attempt, range(8)))
    assert len(winners) == 1


def test_a_lock_from_the_future_is_taken_over_after_its_silence(tmp_path, monkeypatch):
    """The clock of the machine that made it was wrong, or it came from a copy."""
    monkeypatch.setattr(lock, "SILENCE", 0.2)
    monkeypatch.setattr(lock, "_POLL", 0.05)
    file = tmp_path / ".lock"
    file.write_text("of another machine")
    os.utime(file, (time.time() + 4000,) * 2)
    start = time.monotonic()
    with lock.holding(file, "the folder"):
        assert 0.2 <= time.monotonic() - start < 3


@pytest.mark.parametrize("kind", ["folder", "dangling link", "link to a folder", "FIFO"])
def test_what_only_has_the_name_of_a_lock_is_left_alone(kind, tmp_path):
    file = tmp_path / ".lock"
    if kind == "folder":
        file.mkdir()
    elif kind == "FIFO":
        os.mkfifo(file)
    else:
        file.symlink_to(tmp_path if kind == "link to a folder" else tmp_path / "gone")
    before = file.lstat()
    with pytest.raises(UserError, match=r"\.lock has the name of the lock of RUN, but is no reg"):
        with holding(file, "RUN"):
            pass
    assert holder_of(file) is None
    lock.remove_if_stale(file)
    assert file.lstat() == before and list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("exists", [True, False])
def test_a_folder_that_cannot_be_written_to(exists, tmp_path, monkeypatch):
    def refuse(path, *_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("pathlib.Path.write_text", refuse)
    if not exists:
        monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    folder = tmp_path if exists else tmp_path / "run"
    with pytest.raises(UserError, match=r"^Nothing can be written to RUN \(Permission denied\)"):
        with holding(folder / ".lock", "RUN"):
            pass
    assert not list(tmp_path.iterdir())
