import hashlib
import os
import re
import socket
from pathlib import Path

import pytest

from videomar_jax.checks import UserError
from videomar_jax.data import captions
from videomar_jax.data.decode import probe
from videomar_jax.inference.images import load_image
from videomar_jax.inference.requests import from_file
from videomar_jax.interop.formats.files import open_tensors
from videomar_jax.io.files import atomic_write, clear_leftovers, read_json, replacing, sha256
from videomar_jax.tokenizers.cosmos.tokenizer import load_cosmos


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    "content", ["größer\n", "größer\n".encode(), lambda part: part.write_bytes("größer\n".encode())]
)
def test_text_bytes_and_what_a_function_writes_become_the_file(tmp_path, content):
    path = tmp_path / "x.txt"
    for _ in range(2):  # the second time replaces the first
        atomic_write(str(path), content)
        assert path.read_bytes() == "größer\n".encode()
    assert names(tmp_path) == ["x.txt"]


def test_an_existing_file_or_folder_is_kept(tmp_path):
    path = tmp_path / "x"
    path.write_text("precious")
    with pytest.raises(FileExistsError, match="x exists already"):
        atomic_write(path, "new", overwrite=False)
    assert path.read_text() == "precious"
    (tmp_path / "folder").mkdir()
    with pytest.raises(FileExistsError, match="folder exists already"):
        atomic_write(tmp_path / "folder", "new")
    assert names(tmp_path) == ["folder", "x"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_write_that_fails_leaves_the_folder_as_it_was(tmp_path, error):
    def half(part):
        part.write_text("half")
        raise error

    path = tmp_path / "x"
    path.write_text("before")
    with pytest.raises(error):
        atomic_write(path, half)
    assert path.read_text() == "before" and names(tmp_path) == ["x"]


def test_a_missing_folder_and_a_function_that_writes_nothing_are_errors(tmp_path):
    with pytest.raises(OSError, match="nowhere"):
        atomic_write(tmp_path / "nowhere" / "x", "text")
    with pytest.raises(OSError, match="x"):
        atomic_write(tmp_path / "x", lambda part: None)
    assert names(tmp_path) == []


def test_the_part_is_hidden_beside_the_file_and_has_a_name_of_its_own(tmp_path):
    path = tmp_path / "x.mp4"
    with replacing(path) as first, replacing(path) as second:
        first.write_text("first")
        second.write_text("second")
        assert first != second and not path.exists()
        for part in (first, second):
            assert part.parent == tmp_path
            assert re.fullmatch(r"\.[0-9a-f]{16}\.[0-9a-f]{12}\.part", part.name)
    assert path.read_text() == "first", "the outer block ends last"
    assert names(tmp_path) == ["x.mp4"]


def test_the_bytes_are_on_the_disk_before_the_file_gets_its_name(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (calls.append("fsync"), fsync(file)))
    monkeypatch.setattr(os, "replace", lambda *a: (calls.append("replace"), replace(*a)))
    atomic_write(tmp_path / "x", "text")
    assert calls == ["fsync", "replace"]


def test_a_folder_is_moved_whole_or_not_at_all(tmp_path):
    with replacing(tmp_path / "model") as part:
        part.mkdir()
        (part / "a").write_text("a")
    assert names(tmp_path) == ["model"] and names(tmp_path / "model") == ["a"]
    with pytest.raises(RuntimeError), replacing(tmp_path / "other") as part:
        part.mkdir()
        (part / "a").write_text("a")
        raise RuntimeError
    assert names(tmp_path) == ["model"]


def test_the_digest_is_that_of_the_bytes(tmp_path):
    (tmp_path / "x").write_bytes(b"abc" * 100_000)
    assert sha256(tmp_path / "x") == hashlib.sha256(b"abc" * 100_000).hexdigest()


def make_fifo(path):
    os.mkfifo(path)
    return "a FIFO"


def make_socket(path):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.close()
    return "a socket"


def make_device(path):
    path.symlink_to("/dev/zero")
    return "a device"


def make_folder(path):
    path.mkdir()
    return "a folder"


def read_caption_table(path):
    next(captions._lines(path))


READERS = {
    "weights": lambda path: open_tensors(path),
    "cosmos": lambda path: load_cosmos(path, release="CV8x16x16"),
    "image": lambda path: load_image(path, height=8, width=8),
    "video": lambda path: probe(path),
    "requests": lambda path: from_file(path, 0),
    "captions": read_caption_table,
    "json": read_json,
}
"""Everything that reads a file whose name a person gives."""


@pytest.mark.parametrize("make", [make_fifo, make_socket, make_device, make_folder])
@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_regular_file_is_refused_at_once(tmp_path, monkeypatch, make, reader):
    """A FIFO would keep its reader waiting for ever."""
    if make is make_folder and reader in ("weights", "cosmos"):
        pytest.skip("weights may be a folder")
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    kind = make(Path("thing"))
    with pytest.raises(UserError, match=rf"thing is {kind}.*: name a regular file"):
        READERS[reader](Path("thing"))


def test_json_that_is_none(tmp_path):
    file = tmp_path / "x.json"
    for content, words in [
        (b"[" * 200_000, "nested too deep"),
        (b"{", "no JSON in UTF-8"),
        (b'"\xff"', "no JSON in UTF-8"),
        (b"9" * 10_000, "no JSON in UTF-8"),
    ]:
        file.write_bytes(content)
        with pytest.raises(UserError, match=words):
            read_json(file)


def test_the_longest_name_can_be_written_and_what_is_left_of_it_cleared(tmp_path):
    name = "日" * 85
    atomic_write(tmp_path / name, "text")
    assert (tmp_path / name).read_text() == "text"
    with replacing(tmp_path / name) as part:
        part.write_text("new")
        left = part.with_name(part.name.replace(".part", "0.part"))
        left.write_text("of a killed process")
    earlier = tmp_path / ".short.0123456789ab.part"
    earlier.write_text("of a killed process of an earlier version")
    clear_leftovers(tmp_path, "other")
    assert left.exists() and earlier.exists()
    clear_leftovers(tmp_path, name)
    clear_leftovers(tmp_path, "short")
    assert [entry.name for entry in tmp_path.iterdir()] == [name]
