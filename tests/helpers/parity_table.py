"""The page docs/parity_table.md: the worst error of every recorded quantity, written by a test run.

    VIDEOMAR_GOLDEN=FOLDER VIDEOMAR_PARITY_TABLE=docs/parity_table.md \\
        python -m pytest -n0 tests/parity
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax

HEAD = """\
# Parity with the reference, quantity by quantity

Written by the tests; do not edit. [parity.md](parity.md) explains it and has a summary.

```bash
VIDEOMAR_GOLDEN=FOLDER VIDEOMAR_PARITY_TABLE=docs/parity_table.md \\
    .venv/bin/python -m pytest -n0 tests/parity
```

The last column is the worst error as a share of the tolerance, which is absolute unless it says
"relative". This table was made with jax {version} on the {platform} backend.

| case | quantity | tolerance | worst error seen | share of the tolerance |
|---|---|---|---|---|
"""


class Comparison(NamedTuple):
    """How close one quantity came to the recorded one."""

    tolerance: str
    worst: float
    """The largest error; relative where the tolerance is only relative."""
    share: float
    """The largest error as a share of what is allowed."""

    def joined(self, other: "Comparison") -> "Comparison":
        """Both comparisons of one quantity together."""
        worst = max(self.worst, other.worst)
        return Comparison(other.tolerance, worst, max(self.share, other.share))


class Row(NamedTuple):
    """One line of the page."""

    case: str
    quantity: str
    tolerance: str
    worst: str
    share: str


def write_page(path: Path, seen: Mapping[tuple[str, str], Comparison]) -> None:
    """Writes the page; `seen` is by (case, quantity)."""
    lines = []
    for (case, quantity), one in seen.items():
        row = Row(case, quantity, one.tolerance, f"{one.worst:.1e}", f"{one.share:.0%}")
        lines.append(f"| {' | '.join(row)} |\n")
    head = HEAD.format(version=jax.__version__, platform=jax.default_backend())
    path.write_text(head + "".join(lines), encoding="utf-8")


def read_rows(path: Path) -> list[Row]:
    """The lines of the page's table."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == len(Row._fields) and cells[0] not in ("case", "---"):
            rows.append(Row(*cells))
    return rows
