"""The workflows run what somebody has looked at, with no more rights than they need."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

FILES = sorted((Path(__file__).parents[2] / ".github" / "workflows").glob("*.y*ml"))
#: Of a tag or a branch its owner, or a thief of the owner's account, can change what it means.
PINNED = re.compile(r"[\w.-]+/[\w./-]+@[0-9a-f]{40}")


def jobs(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text())["jobs"]
    return found


def steps(path: Path) -> Iterator[dict[str, Any]]:
    for job in jobs(path).values():
        yield from job.get("steps", ())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_action_is_pinned_to_a_commit_and_its_version_is_said(path: Path) -> None:
    used = [step["uses"] for step in steps(path) if "uses" in step]
    used += [job["uses"] for job in jobs(path).values() if "uses" in job]

    assert used
    assert [one for one in used if not PINNED.fullmatch(one)] == []
    lines = [line for line in path.read_text().splitlines() if re.search(r"\buses:", line)]
    assert [line for line in lines if not re.search(r"@[0-9a-f]{40} # v\d", line)] == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_job_may_write_nothing_and_a_checkout_leaves_no_token(path: Path) -> None:
    whole = yaml.safe_load(path.read_text())["permissions"]
    rights = [whole, *(job["permissions"] for job in jobs(path).values() if "permissions" in job)]
    checkouts = [step for step in steps(path) if "actions/checkout@" in step.get("uses", "")]

    assert all(right in ({}, {"contents": "read"}, {"id-token": "write"}) for right in rights)
    assert all(step["with"]["persist-credentials"] is False for step in checkouts)


def test_the_job_that_publishes_runs_no_code_of_the_project_and_has_no_secret() -> None:
    (path,) = (path for path in FILES if path.name == "publish.yml")
    publishing = [job for job in jobs(path).values() if job.get("permissions") == {"id-token": "write"}]

    assert len(publishing) == 1
    assert publishing[0]["needs"] == "build"
    assert publishing[0]["environment"]["name"] == "pypi"
    used = [step["uses"].partition("@")[0] for step in publishing[0]["steps"]]
    assert used == ["actions/download-artifact", "pypa/gh-action-pypi-publish"]
    assert publishing[0]["steps"][-1]["with"] == {"attestations": True}
    assert "secrets." not in path.read_text()
