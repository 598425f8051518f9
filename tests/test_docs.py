"""The docs name what exists: files, settings, flags, and the same core in the same order."""

import argparse
import re
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
