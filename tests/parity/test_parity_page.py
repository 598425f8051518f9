"""The summary in docs/parity.md says what docs/parity_table.md says, which a test run writes."""

from tests.helpers.parity_table import Comparison, read_rows, write_page
from tests.helpers.paths import ROOT


def test_the_summary_adds_up_the_table():
    rows = read_rows(ROOT / "docs/parity_table.md")
    assert len({(row.case, row.quantity) for row in rows}) == len(rows) > 100
    text = (ROOT / "docs/parity.md").read_text(encoding="utf-8")
    summed = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) != 4 or not cells[2].isdecimal():
            continue
        cases = cells[1].split(", ")
        these = [row for row in rows if row.case in cases]
        largest = max(int(row.share.removesuffix("%")) for row in these)
        assert (int(cells[2]), cells[3]) == (len(these), f"{largest}%"), line
        summed += cases
    assert sorted(summed) == sorted({row.case for row in rows}), "each case in one row"
    assert f"each of the {len(rows)} quantities" in text


def test_a_written_page_is_read_back(tmp_path):
    first = Comparison("1e-05", worst=2e-06, share=0.2)
    both = first.joined(Comparison("1e-05", worst=1e-06, share=0.1))
    assert both == first
    write_page(
        tmp_path / "page.md", {("rope", "y"): both, ("rope", "z"): Comparison("exact", 0, 0)}
    )
    assert [tuple(row) for row in read_rows(tmp_path / "page.md")] == [
        ("rope", "y", "1e-05", "2.0e-06", "20%"),
        ("rope", "z", "exact", "0.0e+00", "0%"),
    ]
