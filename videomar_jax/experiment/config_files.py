"""Finds config files: the user's own, or those that come with the package.

--config=stage3            stage3 or stage3.py in the current folder, else the package's
--config=quickstart:tiny   the same with a variant
--config=configs/x.py      a file; the package's own where there is no such file
"""

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from videomar_jax.checks import UserError, did_you_mean
from videomar_jax.io.files import check_regular
from videomar_jax.io.paths import user_path


def packaged_configs() -> Path:
    """The folder of the configs that come with the package.

    It is configs/ beside the package in a checkout, and videomar_jax/configs when installed.
    """
    package = Path(__file__).resolve().parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def find_config(name: str) -> str:
    """The path of a config as a person names it, with its variant ("FILE:VARIANT") if any.

    Raises:
        UserError: there is neither such a file nor a packaged config of that name.
    """
    written, colon, variant = name.partition(":")
    for file in (written, f"{written}.py"):
        path = user_path(file, "--config")
        if not path.is_dir():
            check_regular(path)
        if path.is_file():
            return f"{path}{colon}{variant}"
    stem = Path(written).name.removesuffix(".py")
    packaged = packaged_configs() / f"{stem}.py"
    if written in (stem, f"{stem}.py", f"configs/{stem}", f"configs/{stem}.py"):
        if packaged.is_file():
            return f"{packaged}{colon}{variant}"
    known = sorted(file.stem for file in packaged_configs().glob("*.py"))
    raise UserError(
        f"There is no config {written!r}: name a file, or one of {', '.join(known)}."
        + did_you_mean(stem, known)
    )


def with_config_paths(arguments: Sequence[str]) -> list[str]:
    """Command-line arguments in which `--config=NAME` holds a path; errors as `find_config`."""
    result = []
    for number, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        if flag in ("--config", "-config") and equals:
            argument = f"{flag}={find_config(value)}"
        elif number and arguments[number - 1] in ("--config", "-config"):
            argument = find_config(argument)
        result.append(argument)
    return result


def sibling(file: str | os.PathLike, name: str) -> ModuleType:
    """Another config of the folder of `file`, or of the packaged ones, as a module.

    Config files are loaded by path and belong to no Python package, so that they cannot import
    each other: `sibling(__file__, "base").get_config()`.
    """
    path = Path(file).with_name(f"{name}.py")
    if not path.is_file():
        path = packaged_configs() / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
