"""The docs name what exists: files, settings, flags, and the same core in the same order."""

import ast
import functools
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.paths import CORE, ROOT
from tests.helpers.tiny_run import load_config

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")
CONFIG_KEY = re.compile(r"--config\.([a-z_.]+)")


def page_name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def core_table(page: Path) -> list[Path]:
    """The files that the page's table of the core links to, in its order."""
    text = page.read_text(encoding="utf-8")
    section = text[text.index("## The core, in reading order") :]
    rows = [line for line in section.splitlines() if line.startswith("| [")]
    return [(page.parent / LINK.search(row)[1]).resolve() for row in rows]


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "docs/design.md"], ids=page_name)
def test_pages_name_the_same_core_in_reading_order(page):
    assert core_table(page) == CORE


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_lead_to_files(page):
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        if "://" not in target and not target.startswith("#"):
            path = page.parent / target.split("#")[0]
            assert path.exists(), f"{page_name(page)} links to {target}"


def test_the_index_names_every_page():
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "index.md" or f"({page.name})" in index, f"{page.name} is not listed"


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_config_keys_exist(page):
    """Every `--config.SECTION.KEY` of a page can be set."""
    config = load_config("base")
    for key in set(CONFIG_KEY.findall(page.read_text(encoding="utf-8"))):
        entry = config
        for name in key.strip(".").split("."):
            assert name in entry, f"{page_name(page)} sets --config.{key}"
            entry = entry[name]


def message_templates() -> list[str]:
    """Every text in the package, with … for what is filled in."""
    texts = []
    for path in (ROOT / "videomar_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(re.sub(r"%[sdr]", "…", node.value))
            elif isinstance(node, ast.JoinedStr):
                parts = [p.value if isinstance(p, ast.Constant) else "…" for p in node.values]
                texts.append("".join(parts))
    return texts


def test_troubleshooting_quotes_what_the_code_prints():
    """Each message in a first column is a text of the package, up to what is filled in."""
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    texts = message_templates()
    quotes = re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)
    assert len(quotes) > 30
    for quote in quotes:
        # In an example, numbers and the hosts a and b stand where the code fills something in.
        pieces = re.split(r"…|\b\d+\b|\b[ab]\b", quote)
        pattern = re.compile(".*".join(map(re.escape, pieces)), re.DOTALL)
        assert any(pattern.search(text) for text in texts), f"no message reads {quote!r}"


COMMAND = re.compile(r"-m (videomar_jax|benchmarks)\.(\w+)( .*)?$", re.MULTILINE)
FLAG = re.compile(r"(?<=\s)--(?:no-)?([a-z_]+)(?=[=\s]|$)")


@functools.cache
def flags_of(package: str, module: str) -> set[str]:
    """Every flag in the help of a command; of a benchmark every short string of its source."""
    if package == "videomar_jax":
        call = [sys.executable, "-m", f"{package}.{module}", "--help"]
        done = subprocess.run(call, capture_output=True, text=True, cwd=ROOT, check=True)
        return set(re.findall(r"^  --(?:\[no\])?([a-z_]+)", done.stdout, re.MULTILINE))
    source = (ROOT / package / f"{module}.py").read_text(encoding="utf-8")
    return set(re.findall(r"[\"'](?:--)?(?:no-)?([a-z_]+)[\"']", source))


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_flags_exist(page):
    """Every flag of a command on the page is one of that command."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for package, module, rest in COMMAND.findall(text):
        for flag in FLAG.findall(rest):
            assert flag in flags_of(package, module), f"{package}.{module} has no --{flag}"
