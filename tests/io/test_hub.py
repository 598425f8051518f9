"""Places of weights that are neither here nor to be had."""

import pytest

from videomar_jax.io.hub import local_folder


def test_a_local_place_is_taken_as_it_is(tmp_path):
    assert local_folder(str(tmp_path), ["*"]) == tmp_path


def test_a_repository_that_cannot_be_fetched_says_what_to_do_offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match=r"hf download nobody/nothing --local-dir DIR"):
        local_folder("nobody/nothing", ["*"])
    with pytest.raises(FileNotFoundError, match=r"no file or folder \./nowhere"):
        local_folder("./nowhere/at/all", ["*"])
