"""Who may import whom: every import of the package is read from its source and held to one table.

The table is the one of docs/design.md. A part imports what stands on the lines above its own, and
itself; parts on one line do not import each other. A module that no line names fails the test.
"""

import ast
import re
from pathlib import Path
from typing import NamedTuple

import pytest

import videomar_jax

NAME = "videomar_jax"
ROOT = Path(videomar_jax.__file__).parent

COMMANDS = (
    "commands",
    "__main__",
    "main",
    "sample",
    "evaluate",
    "prepare",
    "convert",
)

LEVELS = (
    ("types", "checks", "platforms"),
    ("io", "accelerators"),
    ("interop.formats",),
    ("checkpoints", "diffusion", "tokenizers", "text_encoders", "data", "evaluation"),
    ("models",),
    ("parallel", "sampling", "interop"),
    ("training", "pretrained", "preparation"),
    ("inference",),
    ("experiment",),
    COMMANDS,
)
"""From bottom to top. A module belongs to the part with the longest matching name."""

APART = {
    "training": ("sampling",),  # the loop is handed a function that draws previews
    "inference": ("training",),  # they meet in `experiment` only
}
"""Part → parts below it that it must not import all the same."""

NO_FILES = ("os", "pathlib", "io", "json", "shutil", "tempfile")
NEVER = {
    "models": (*NO_FILES, "orbax", "ml_collections", "absl", "jax.sharding"),
    "models.config": (*NO_FILES, "orbax", "ml_collections", "absl", "jax", "flax"),
    "diffusion": (*NO_FILES, "orbax", "ml_collections", "absl"),
    "parallel.config": ("jax", "flax"),
    "sampling.config": ("jax", "flax"),
    "sampling.schedules": ("jax", "flax"),
    "training.config": ("jax", "flax"),
    "experiment.sections": ("jax", "flax"),
    "data": ("jax", "flax", "torch"),
    "data.loader": ("flax", "torch"),  # places batches on devices
    "evaluation": ("orbax", "ml_collections", "grain"),
}
"""Module or part → libraries that it does without; the longest matching name counts."""


class Import(NamedTuple):
    """One import statement's target."""

    module: str
    """The importing module, without the package's name."""
    path: Path
    line: int
    target: str
    """What is imported, with the package's name if it is our own."""


def is_within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def module_name(path: Path, root: Path) -> str:
    """models/rope.py → models.rope; a package's __init__ is the package."""
    parts = path.relative_to(root).with_suffix("").parts
    if parts[-1] == "__init__":
        parts = parts[:-1]
    return ".".join(parts)


def imports(root: Path) -> list[Import]:
    """All imports under the package folder `root`, also relative ones and those in functions."""
    found = []
    for path in sorted(root.rglob("*.py")):
        module = module_name(path, root)
        package = (NAME, *path.relative_to(root).parts[:-1])
        for node in ast.walk(ast.parse(path.read_text(), str(path))):
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = [node.module] if node.module else []
                if node.level:
                    base = [*package[: len(package) + 1 - node.level], *base]
                targets = [".".join([*base, alias.name]) for alias in node.names]
            else:
                continue
            found += [Import(module, path, node.lineno, target) for target in targets]
    return found


def longest_match(names, module: str) -> str | None:
    matches = [name for name in names if is_within(module, name)]
    return max(matches, key=len, default=None)


def part_of(module: str) -> str | None:
    """The part of the table that a module belongs to."""
    return longest_match([part for level in LEVELS for part in level], module)


def level_of(part: str) -> int:
    return next(number for number, level in enumerate(LEVELS) if part in level)


def broken_rule(module: str, target: str) -> str | None:
    """The rule that an import breaks, in words; None if it breaks none."""
    if is_within(target, "configs") or is_within(target, f"{NAME}.configs"):
        return "nothing imports configs"
    if is_within(target, NAME):
        return broken_level(module, target.removeprefix(NAME).removeprefix("."))
    rule = longest_match(NEVER, module)
    if rule is None:
        return None
    if any(is_within(target, library) for library in NEVER[rule]):
        return f"{rule} does without {', '.join(NEVER[rule])}"
    return None


def broken_level(module: str, target: str) -> str | None:
    if module == "" or target in ("", "__version__"):  # the package's own __init__, its version
        return None
    importer, imported = part_of(module), part_of(target)
    if importer is None:
        return f"{module} stands on no line of LEVELS"
    if imported is None:
        return f"{target} stands on no line of LEVELS"
    if importer == imported or {importer, imported} <= set(COMMANDS):
        return None
    if imported in APART.get(importer, ()):
        return f"{importer} imports no {imported}"
    if level_of(imported) >= level_of(importer):
        below = [part for level in LEVELS[: level_of(importer)] for part in level]
        return f"{importer} may import only {', '.join(below) or 'nothing of the package'}"
    return None


def faults(root: Path) -> list[str]:
    """A line for each import that breaks a rule, with file and line number."""
    lines = []
    for found in imports(root):
        rule = broken_rule(found.module, found.target)
        if rule:
            lines.append(
                f"{found.path}:{found.line}: {found.module} imports {found.target}, but {rule}"
            )
    return lines


def test_the_package_keeps_its_layers():
    found = faults(ROOT)
    assert not found, "\n" + "\n".join(found)


def test_every_module_stands_on_a_line():
    modules = [module_name(path, ROOT) for path in ROOT.rglob("*.py")]
    unlisted = [module for module in modules if module and part_of(module) is None]
    assert not unlisted, f"add these to LEVELS and to docs/design.md: {sorted(unlisted)}"


def test_every_line_names_something():
    """A part that was renamed must not leave a dead line behind."""
    parts = [part for level in LEVELS for part in level]
    for part in {*parts, *NEVER, *APART}:
        path = ROOT.joinpath(*part.split("."))
        assert path.is_dir() or path.with_suffix(".py").exists(), f"{part} does not exist"


BROKEN = [
    ("types.py", "from videomar_jax.models import config", "types may import only nothing"),
    ("models/x.py", "import os", "models does without"),
    ("models/x.py", "from jax.sharding import Mesh", "models does without"),
    ("models/x.py", "from jax import sharding", "models does without"),
    ("models/config.py", "import jax", r"models\.config does without"),
    ("models/x.py", "from ..training.loss import Batch", "models may import only"),
    (
        "models/x.py",
        "def f():\n    from videomar_jax import sampling",
        "models may import only",
    ),
    (
        "diffusion/x.py",
        "from videomar_jax.models.config import ModelConfig",
        "diffusion may import only",
    ),
    (
        "checkpoints/x.py",
        "from videomar_jax.models import videomar",
        "checkpoints may import only",
    ),
    ("sampling/x.py", "from videomar_jax.training import loss", "sampling may import only"),
    ("sampling/config.py", "import jax.numpy as jnp", r"sampling\.config does without"),
    ("training/loop.py", "import videomar_jax.sampling.decoder", "training imports no sampling"),
    ("training/loop.py", "from videomar_jax.pretrained import open", "training may import only"),
    (
        "inference/x.py",
        "from videomar_jax.training.state import x",
        "inference imports no training",
    ),
    ("tokenizers/x.py", "from videomar_jax.models.layers import linear", "tokenizers may import"),
    ("tokenizers/x.py", "from videomar_jax.data import videos", "tokenizers may import only"),
    ("text_encoders/x.py", "from videomar_jax.interop import qwen2", "text_encoders may import"),
    ("data/x.py", "import jax.numpy as jnp", "data does without"),
    ("data/loader.py", "from videomar_jax.tokenizers import pca", "data may import only"),
    ("evaluation/x.py", "from videomar_jax.data.shapes import Shapes", "evaluation may import"),
    (
        "interop/formats/x.py",
        "from videomar_jax.models import rope",
        r"interop\.formats may import",
    ),
    ("experiment/x.py", "from videomar_jax.commands import app", "experiment may import only"),
    ("main.py", "from configs import base", "nothing imports configs"),
    ("main.py", "from videomar_jax.configs import base", "nothing imports configs"),
    ("extra.py", "from videomar_jax import types", "extra stands on no line"),
    ("main.py", "from videomar_jax import extra", "extra stands on no line"),
]


def module_with(root: Path, file: str, source: str) -> Path:
    path = root / NAME / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('"""A module."""\n' + source)
    return path


@pytest.mark.parametrize(("file", "source", "rule"), BROKEN)
def test_a_broken_rule_is_reported_with_file_and_line(tmp_path, file, source, rule):
    path = module_with(tmp_path, file, source)
    (line,) = faults(tmp_path / NAME)
    assert line.startswith(f"{path}:{2 + source.count(chr(10))}: ")
    assert re.search(rule, line), line


ALLOWED = [
    ("__init__.py", "from videomar_jax.inference import pipeline"),
    ("data/loader.py", "import jax"),
    ("training/loop.py", "from videomar_jax.io.media import write_png"),
    ("training/loop.py", "from videomar_jax import __version__"),
    ("models/x.py", "from . import masking\nfrom jax import random"),
    ("text_encoders/x.py", "from videomar_jax.interop.formats import files"),
    ("experiment/x.py", "from videomar_jax import training, inference, sampling"),
    ("convert.py", "from videomar_jax.interop import qwen2\nimport os"),
    ("__main__.py", "from videomar_jax import main\nfrom videomar_jax.commands import app"),
]


@pytest.mark.parametrize(("file", "source"), ALLOWED)
def test_what_the_rules_allow_passes(tmp_path, file, source):
    module_with(tmp_path, file, source)
    assert faults(tmp_path / NAME) == []
