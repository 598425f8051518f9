"""Places of weights that are neither here nor to be had."""

import sys
import types

import pytest

from videomar_jax.io.hub import local_folder, pinned
from videomar_jax.tokenizers.cosmos.tokenizer import _split_release


def test_a_local_place_is_taken_as_it_is(tmp_path):
    assert local_folder(str(tmp_path), ["*"]) == tmp_path


def test_a_repository_that_cannot_be_fetched_says_what_to_do_offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match=r"hf download nobody/nothing --local-dir DIR"):
        local_folder("nobody/nothing", ["*"])
    with pytest.raises(FileNotFoundError, match=r"no file or folder \./nowhere"):
        local_folder("./nowhere/at/all", ["*"])


COMMITS = {"main": "a" * 40, "v1": "b" * 40}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub of one repository that only answers from memory; what was asked of it."""
    asked = []

    class Api:
        def model_info(self, repository, revision=None):
            asked.append(("resolve", repository, revision))
            return types.SimpleNamespace(sha=COMMITS[revision or "main"])

    def snapshot_download(repository, revision, allow_patterns):
        asked.append(("download", repository, revision, allow_patterns))
        folder = tmp_path / "snapshots" / revision
        folder.mkdir(parents=True, exist_ok=True)
        return str(folder)

    hub = types.ModuleType("huggingface_hub")
    hub.HfApi, hub.snapshot_download = Api, snapshot_download
    errors = types.ModuleType("huggingface_hub.errors")
    errors.HfHubHTTPError = errors.LocalEntryNotFoundError = ConnectionError
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", errors)
    return asked


@pytest.mark.parametrize(
    ("revision", "commit"), [("", "a" * 40), ("@v1", "b" * 40), ("@" + "c" * 40, "c" * 40)]
)
def test_all_files_are_of_one_commit(hub, revision, commit):
    folder = local_folder(f"ada/model{revision}", ["*.json"])
    assert folder.name == commit, "the folder tells the commit to what refers to it"
    assert hub[-1] == ("download", "ada/model", commit, ["*.json"])
    resolved = [entry for entry in hub if entry[0] == "resolve"]
    assert len(resolved) == (0 if commit in revision else 1)


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("nvidia/X", ("", "nvidia/X")),
        ("CV8x16x16@nvidia/X", ("CV8x16x16", "nvidia/X")),
        ("nvidia/X@v1", ("", "nvidia/X@v1")),
        ("CV8x16x16@nvidia/X@v1", ("CV8x16x16", "nvidia/X@v1")),
        ("/data/a@b/file.jit", ("", "/data/a@b/file.jit")),
        ("CV8x16x16@/data/a@b", ("CV8x16x16", "/data/a@b")),
    ],
)
def test_a_release_in_front_of_a_place_with_a_revision(spec, parts):
    assert _split_release(spec) == parts


@pytest.mark.parametrize(
    ("spec", "found"),
    [
        ("qwen2:ada/model", "qwen2:ada/model@" + "a" * 40),
        ("qwen2:ada/model@v1", "qwen2:ada/model@" + "b" * 40),
        ("cosmos:CV8x8x8@ada/model@v1", "cosmos:CV8x8x8@ada/model@" + "b" * 40),
        ("ada/model@" + "c" * 40, "ada/model@" + "c" * 40),
        ("hashed:64x256", None),
        ("pca:/some/where/else", None),
        ("", None),
    ],
)
def test_a_spec_is_pinned_to_the_commit_that_it_names_now(hub, spec, found):
    assert pinned(spec) == found


def test_a_local_folder_is_no_repository(hub, tmp_path, monkeypatch):
    (tmp_path / "ada" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert pinned("pca:ada/model") is None and pinned("ada/model") is None and not hub
