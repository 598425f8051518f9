import hashlib
import os

import pytest

from videomar_jax.io.files import atomic_write, replacing, sha256


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
            assert part.name.startswith(".x.mp4.") and part.name.endswith(".part")
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
