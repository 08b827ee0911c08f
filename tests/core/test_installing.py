"""The command that installs pgqrs again, from where it came."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pgqrs_core import installing
from pgqrs_core.installing import install_command


class Installed:
    def __init__(self, origin: Any) -> None:
        self.origin = origin

    def read_text(self, name: str) -> str | None:
        assert name == "direct_url.json"
        return self.origin if self.origin is None or isinstance(self.origin, str) else json.dumps(self.origin)


GIT = {"url": "https://git.example.org/pgqrs", "vcs_info": {"vcs": "git", "commit_id": "1" * 40}}
TAGGED = {**GIT, "vcs_info": {**GIT["vcs_info"], "requested_revision": "v1"}}  # type: ignore[dict-item]
CLONE = {"url": "file:///home/ada/my%20clone", "dir_info": {}}
EDITABLE = {"url": "file:///home/ada/pgqrs", "dir_info": {"editable": True}}
WHEEL = {"url": "https://example.org/pgqrs_py-1-py3-none-any.whl", "archive_info": {}}


@pytest.mark.parametrize(
    ("origin", "wanted"),
    [
        (GIT, "pip install 'pgqrs-py[cli] @ git+https://git.example.org/pgqrs'"),
        (TAGGED, "pip install 'pgqrs-py[cli] @ git+https://git.example.org/pgqrs@v1'"),
        (CLONE, "pip install '/home/ada/my clone[cli]'"),
        (EDITABLE, "pip install -e '/home/ada/pgqrs[cli]'"),
        (WHEEL, "pip install 'pgqrs-py[cli] @ https://example.org/pgqrs_py-1-py3-none-any.whl'"),
        (None, "pip install 'pgqrs-py[cli]'"),
        ("no json", "pip install 'pgqrs-py[cli]'"),
        ([], "pip install 'pgqrs-py[cli]'"),
        ({"url": 5}, "pip install 'pgqrs-py[cli]'"),
    ],
)
def test_an_extra_comes_from_where_pgqrs_came_from(origin: Any, wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installing, "distribution", lambda _: Installed(origin))

    assert install_command("cli") == wanted


def test_a_newer_version_is_not_the_revision_that_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installing, "distribution", lambda _: Installed(TAGGED))

    assert install_command(upgrade=True) == "pip install --upgrade 'pgqrs-py @ git+https://git.example.org/pgqrs'"
