"""What the pages on moving here promise as supported is held by tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [*sorted((ROOT / "docs").glob("moving-*.md")), ROOT / "docs" / "dramatiq.md"]
TESTS = {
    name
    for path in (ROOT / "tests").rglob("test_*.py")
    for name in re.findall(r"def (test_\w+)\(", path.read_text("utf-8"))
}


def rows(page: Path) -> list[str]:
    """The lines of the table of what is supported; its head says nothing."""
    _, _, rest = page.read_text(encoding="utf-8").partition("## Supported\n")
    section, _, _ = rest.partition("\n## ")
    return [line for line in section.splitlines() if line.startswith("| ") and line.strip("| ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_line_of_what_is_supported_names_its_tests(page: Path) -> None:
    assert rows(page)

    assert [row for row in rows(page) if not re.search(r"<!-- (test_\w+ ?)+-->", row)] == []
    assert set(re.findall(r"\btest_\w+", "".join(rows(page)))) - TESTS == set()
