"""Configs are found by name, by path and when installed; a file of one's own comes first."""

import os
import runpy
import subprocess
import sys
import zipfile

import pytest
import setuptools

from tests.helpers.paths import CONFIGS, ROOT
from videomar_jax.checks import UserError
from videomar_jax.experiment.config_files import (
    find_config,
    packaged_configs,
    sibling,
    with_config_paths,
)


@pytest.fixture
def empty_folder(tmp_path, monkeypatch):
    """The current folder, without any config."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_packaged_configs_are_those_of_the_checkout():
    assert packaged_configs() == CONFIGS


@pytest.mark.parametrize(
    "name", ["stage3", "stage3.py", "configs/stage3", "configs/stage3.py"], ids=str
)
@pytest.mark.parametrize("variant", ["", ":tiny"])
def test_a_packaged_config_by_name_or_by_its_path(name, variant, empty_folder):
    assert find_config(name + variant) == f"{CONFIGS / 'stage3.py'}{variant}"


@pytest.mark.parametrize("name", ["stage3", "stage3.py"])
def test_a_file_of_that_name_in_front_comes_first(name, empty_folder):
    (empty_folder / "stage3.py").write_text("")
    assert find_config(f"{name}:tiny") == f"{empty_folder / 'stage3.py'}:tiny"
    (empty_folder / "configs").mkdir()
    (empty_folder / "configs" / "stage3.py").write_text("")
    assert find_config("configs/stage3.py") == str(empty_folder / "configs" / "stage3.py")


def test_a_config_in_the_home_folder(empty_folder, monkeypatch):
    monkeypatch.setenv("HOME", str(empty_folder / "home"))
    (empty_folder / "home").mkdir()
    (empty_folder / "home" / "mine.py").write_text("")
    assert find_config("~/mine:tiny") == f"{empty_folder / 'home' / 'mine.py'}:tiny"


@pytest.mark.parametrize("name", ["stage4", "other/stage3.py", "configs/mine.py"])
def test_a_config_that_does_not_exist(name, empty_folder):
    with pytest.raises(UserError, match=rf"no config '{name}': .* base, quickstart, stage1"):
        find_config(name)


def test_a_misspelt_name_is_answered_with_the_nearest(empty_folder):
    with pytest.raises(UserError, match="Did you mean 'quickstart'"):
        find_config("quikstart:tiny")


def test_command_lines_name_configs_in_any_form_of_the_flag(empty_folder):
    path = str(CONFIGS / "quickstart.py")
    given = ["main", "--config=quickstart:tiny", "--config.run.log_every=1", "--workdir=stage1"]
    assert with_config_paths(given) == [given[0], f"--config={path}:tiny", *given[2:]]
    assert with_config_paths(["main", "--config", "quickstart"]) == ["main", "--config", path]
    assert with_config_paths(["main", "-config=quickstart"]) == ["main", f"-config={path}"]


def test_a_config_finds_the_one_beside_it_and_else_the_packaged_one(tmp_path):
    (tmp_path / "stage1.py").write_text("VARIANTS = 'mine'")
    assert sibling(tmp_path / "x.py", "stage1").VARIANTS == "mine"
    assert sibling(tmp_path / "x.py", "stage2").__file__ == str(CONFIGS / "stage2.py")


def test_an_installed_package_holds_the_configs(monkeypatch):
    """The arguments that setup.py passes to setuptools; nothing is built."""
    arguments = {}
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(setuptools, "setup", lambda **given: arguments.update(given))
    runpy.run_path(str(ROOT / "setup.py"))
    assert arguments["package_dir"] == {"videomar_jax.configs": "configs"}
    assert {"videomar_jax", "videomar_jax.configs", "videomar_jax.tokenizers.cosmos"} <= {
        *arguments["packages"]
    }
    assert not [name for name in arguments["packages"] if name.split(".")[0] != "videomar_jax"]


@pytest.mark.slow
@pytest.mark.skipif(
    int(setuptools.__version__.split(".")[0]) < 77,
    reason="building the package needs setuptools 77 or later",
)
def test_the_wheel_has_the_configs(tmp_path):
    """Built from a copy, so that no build folder is left in the checkout; then used from a folder
    that holds nothing else."""
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q"]
    source = tmp_path / "source"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if name.startswith("tests/") or not (ROOT / name).is_file():
            continue
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run([*build, str(source), "-w", str(tmp_path)], check=True, cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "installed")
    assert {name for name in names if name.startswith("videomar_jax/configs/")} == {
        f"videomar_jax/configs/{file.name}" for file in CONFIGS.glob("*.py")
    }
    assert not [name for name in names if name.startswith("configs/")], "a package of its own"
    (tmp_path / "empty").mkdir()
    script = (
        "from videomar_jax.experiment.config_files import find_config, sibling; "
        "path = find_config('stage3:tiny'); print(path); "
        "print(sibling(path, 'stage3').get_config('tiny').curriculum[0]['name'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path / "empty",
        env={**os.environ, "PYTHONPATH": str(tmp_path / "installed")},
        capture_output=True,
        text=True,
        check=True,
    )
    installed = tmp_path / "installed" / "videomar_jax" / "configs" / "stage3.py"
    assert done.stdout.split() == [f"{installed}:tiny", "full_size"]
