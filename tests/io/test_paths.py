import os
from pathlib import Path

import pytest

from videomar_jax.checks import UserError
from videomar_jax.io.paths import check_length, file_name, is_address, user_path


def test_home_and_relative_paths_become_absolute(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.chdir(tmp_path)
    assert user_path("~/clips") == Path("/home/ada/clips")
    assert user_path("clips/a.mp4") == tmp_path / "clips" / "a.mp4"
    assert user_path(Path("/data/x")) == Path("/data/x")
    assert user_path("a~b:c") == tmp_path / "a~b:c"


@pytest.mark.parametrize(
    "text", ["gs://bucket/x", "s3://bucket", "file:///x", Path("gs://bucket/x")]
)
def test_addresses_are_refused_by_name(text):
    assert is_address(text)
    with pytest.raises(UserError, match=r"--output: '.*:/.*' is not a local path: copy"):
        user_path(text, "--output")


@pytest.mark.parametrize("text", ["", "  "])
def test_an_empty_text_is_refused(text):
    with pytest.raises(UserError, match="names no file or folder"):
        user_path(text)


@pytest.mark.parametrize("text", ["/data/x", "C:/data", "a:b/c", "~/x"])
def test_local_paths_are_no_addresses(text):
    assert not is_address(text)


@pytest.mark.parametrize(
    "text, words",
    [
        ("a\0b", "NUL"),
        ("x" * 256, "too long"),
        ("日" * 86, "too long"),
        ("a/" * 2000, "too long"),
        ("a\ud800", "UTF-8"),
        ("~no such user/x", r"no user 'no such user'.* write \./~no such user"),
    ],
)
def test_what_can_be_no_path_is_refused_by_name(text, words):
    with pytest.raises(UserError, match=f"--output: .*{words}"):
        user_path(text, "--output")


@pytest.mark.parametrize(
    "name", ["a b", "ünï", "a[1]", "*?", "q'u\"o", "-dash", "x" * 255, "日" * 85]
)
def test_odd_names_are_kept(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert user_path(name) == tmp_path / name


def test_what_a_name_becomes_as_a_file():
    assert file_name("a b ü|*.clip") == "a b ü|*.clip"
    for text in ("日" * 72, "x" * 220, "a/b", "..", "", "nul\0", "half \udcff"):
        name = file_name(text)
        assert name != text and len(name.encode()) <= 180
        assert Path(name).name == name and "\0" not in name
    assert file_name("x" * 220 + "1") != file_name("x" * 220 + "2")


def test_names_that_the_file_system_cannot_hold_are_refused(tmp_path, monkeypatch):
    check_length(tmp_path / ("x" * 255))
    with pytest.raises(UserError, match=r"256 bytes, and .* takes at most 255"):
        check_length(tmp_path / "none" / ("x" * 256))
    with pytest.raises(UserError, match="at most 4095"):
        check_length(tmp_path / "/".join(["y" * 200] * 25))
    monkeypatch.setattr(os, "pathconf", lambda folder, name: 143)  # as eCryptfs says
    with pytest.raises(UserError, match="takes at most 143"):
        check_length(tmp_path / ("日" * 48))
