"""docs/applications.md: each application of the table has its section, and what is to be copied can be read."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "applications.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_each_application_of_the_table_leads_to_its_section() -> None:
    anchors = re.findall(r"^\| [^|]+ \| \[.*?\]\(#([\w-]+)\) \|", PAGE, re.MULTILINE)
    headings = [heading.lower() for heading in re.findall(r"^## (.*)$", PAGE, re.MULTILINE)]

    assert len(anchors) > 5
    assert anchors == headings


@pytest.mark.parametrize("block", blocks("python"))
def test_examples_in_python_compile(block: str) -> None:
    compile(block, "docs/applications.md", "exec")


def test_the_configuration_of_pretix_is_one() -> None:
    (block,) = blocks("ini")
    parser = configparser.ConfigParser()
    parser.read_string(block)

    assert parser["celery"]["broker"] == parser["celery"]["backend"]
