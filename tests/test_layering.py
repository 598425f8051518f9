"""Who may import whom: every import of the package is read from its source and held against one
table.

A module's rule is the one with the longest matching prefix; what the rule does not name is refused.
"""

import ast
import re
from pathlib import Path
from typing import NamedTuple

import pytest

import videomar_jax

NAME = "videomar_jax"
ROOT = Path(videomar_jax.__file__).parent

MAY_IMPORT = {  # parts of the package, by the importing module's prefix
    "types": (),
    "models": ("types", "models"),
    "training": ("types", "models", "training"),
    "training.loop": (
        "types",
        "models",
        "training",
        "data",
        "tokenizers",
        "text_encoders",
        "media",
    ),
    "training.stream": ("types", "models", "training", "data", "tokenizers", "text_encoders"),
    "training.recipe": ("types", "models", "training", "tokenizers", "text_encoders"),
    "training.validation": ("types", "models", "training", "data"),
    "sampling": ("types", "models", "sampling", "tokenizers", "text_encoders"),
    "sampling.config": (),
    "sampling.schedules": ("sampling.config",),
    "sampling.decode": ("types", "models", "sampling"),
    "tokenizers": ("types", "tokenizers"),
    "text_encoders": ("types", "text_encoders"),
    "data": ("types", "data"),
    "evaluation": ("types", "evaluation", "media"),
    "interop": ("types", "models", "tokenizers", "text_encoders", "interop"),
    "preparation": ("types", "data", "tokenizers", "text_encoders", "preparation", "distributed"),
    "preparation.beam": (
        "types",
        "data",
        "tokenizers",
        "text_encoders",
        "preparation",
        "interop.qwen2",
    ),
    "media": ("types",),
}
"""Modules that stand directly in the package and are not listed are entry points: they may import
everything."""

NEVER = {  # libraries that a part must do without
    "models": (
        "os",
        "pathlib",
        "io",
        "json",
        "shutil",
        "tempfile",
        "orbax",
        "ml_collections",
        "absl",
        "jax.sharding",
    ),
    "sampling.config": ("jax", "flax"),
    "sampling.schedules": ("jax", "flax"),
    "data": ("jax", "flax", "torch"),
    "evaluation": ("orbax", "ml_collections", "grain"),
}
EXCEPT = {"data.pipeline": "data"}  # the one module of data that may see jax
EVERYWHERE = ("configs",)


class Import(NamedTuple):
    module: str  # who imports, without the package's name
    path: Path
    line: int
    target: str  # what, with the package's name if it is our own


def starts_with(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def imports(root: Path) -> list[Import]:
    """All imports under the package folder `root`, those inside functions and relative ones
    included."""
    found = []
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        package = (NAME, *parts[:-1])
        for node in ast.walk(ast.parse(path.read_text(), str(path))):
            if isinstance(node, ast.Import):
                found += [Import(module, path, node.lineno, alias.name) for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = ".".join(package[: len(package) + 1 - node.level]) if node.level else ""
                base = ".".join(part for part in (base, node.module) if part)
                found += [
                    Import(module, path, node.lineno, f"{base}.{alias.name}")
                    for alias in node.names
                ]
    return found


def longest(table, module: str) -> str | None:
    return max((prefix for prefix in table if starts_with(module, prefix)), key=len, default=None)


def fault(module: str, target: str) -> str | None:
    """The rule that an import breaks, in words."""
    for name in EVERYWHERE:
        if starts_with(target, name) or starts_with(target, f"{NAME}.{name}"):
            return f"nothing imports {name}"
    if starts_with(target, NAME):
        rule, inner = longest(MAY_IMPORT, module), target.removeprefix(NAME).removeprefix(".")
        if rule is not None and not any(starts_with(inner, part) for part in MAY_IMPORT[rule]):
            return (
                f"{rule} may import only {', '.join(MAY_IMPORT[rule]) or 'nothing of the package'}"
            )
        return None
    rule = longest(NEVER, module)
    if (
        rule is not None
        and EXCEPT.get(module) != rule
        and any(starts_with(target, name) for name in NEVER[rule])
    ):
        return f"{rule} does without {', '.join(NEVER[rule])}"
    return None


def faults(root: Path) -> list[str]:
    broken = ((found, fault(found.module, found.target)) for found in imports(root))
    return [
        f"{i.path}:{i.line}: {i.module} imports {i.target}, but {rule}"
        for i, rule in broken
        if rule
    ]


def test_the_package_keeps_its_layers():
    assert not faults(ROOT), "\n" + "\n".join(faults(ROOT))


def test_every_part_has_a_rule():
    """A new folder gets a line in the table, not a free pass as if it were an entry point."""
    folders = {path.name for path in ROOT.iterdir() if (path / "__init__.py").exists()}
    assert folders <= set(MAY_IMPORT), f"no rule for {sorted(folders - set(MAY_IMPORT))}"


BROKEN = [
    ("types.py", "from videomar_jax.models import config", "types may import only nothing")(
        "models/x.py", "import os", "models does without"
    )("models/x.py", "from jax.sharding import Mesh", "models does without")(
        "models/x.py", "from jax import sharding", "models does without"
    )("models/x.py", "from ..training.loss import Batch", "models may import only")(
        "models/x.py", "def f():\n    from videomar_jax import sampling", "models may import only"
    )(
        "training/loss.py",
        "from videomar_jax.tokenizers.pca import PCATokenizertraining may import only",
    ),
    ("training/loop.py", "import videomar_jax.sampling.decoder", r"training\.loop may import only")(
        "sampling/decode.py",
        "from videomar_jax.training import loss"
        r"sampling\.decode may import only",
    ),
    ("tokenizers/x.py", "from videomar_jax.models.layers import lineartokenizers may import only"),
    ("text_encoders/x.py", "from videomar_jax.interop import qwen2text_encoders may import only"),
    ("data/x.py", "import jax.numpy as jnp", "data does without")(
        "data/pipeline.py", "from videomar_jax.tokenizers import pca", "data may import only"
    )("evaluation/x.py", "from videomar_jax.data.shapes import Shapesevaluation may import only"),
    ("main.py", "from configs import base", "nothing imports configs"),
]


@pytest.mark.parametrize(("file", "source", "rule"), BROKEN)
def test_a_broken_rule_is_told_with_file_and_line(tmp_path, file, source, rule):
    path = tmp_path / NAME / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('"""A module."""\n' + source)
    (told,) = faults(tmp_path / NAME)
    assert told.startswith(f"{path}:{2 + source.count(chr(10))}: ")
    assert re.search(rule, told), told


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("data/pipeline.py", "import jax")(
            "training/loop.py", "from videomar_jax.io.media import write_png"
        )("models/x.py", "from . import masking\nfrom jax import random")(
            "convert.py", "from videomar_jax.interop import qwen2\nimport os"
        )
    ],
)
def test_what_the_rules_allow_passes(tmp_path, file, source):
    path = tmp_path / NAME / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source)
    assert faults(tmp_path / NAME) == []
