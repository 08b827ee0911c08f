"""How this pgqrs was installed, and so the command that installs it again with what is missing.

The name ``pgqrs-py`` on the index is not this project's until it is published there, and anybody may take it meanwhile. So
where it was installed from somewhere else, an error names that place and not the index.
"""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, distribution
from typing import Any
from urllib.parse import unquote, urlsplit

from pgqrs_core.pasting import shell_quoted

__all__ = ["install_command"]

_NAME = "pgqrs-py"


def install_command(extra: str | None = None, *, upgrade: bool = False) -> str:
    """Return a command to be pasted into a shell that installs pgqrs, or upgrades it, from where it was installed.

    Args:
        extra: the extra that is wanted with it.
        upgrade: whether a newer version is wanted.
    """
    name = f"{_NAME}[{extra}]" if extra else _NAME
    options = ["--upgrade"] if upgrade else []
    origin = _origin()
    url = origin.get("url")
    if not isinstance(url, str):
        return " ".join(["pip install", *options, shell_quoted(name)])
    if "dir_info" in origin:
        path = unquote(urlsplit(url).path) + (f"[{extra}]" if extra else "")
        editable = ["-e"] if _part(origin, "dir_info").get("editable") else []
        return " ".join(["pip install", *options, *editable, shell_quoted(path)])
    vcs = _part(origin, "vcs_info").get("vcs")
    revision = _part(origin, "vcs_info").get("requested_revision")
    place = f"{vcs}+{url}" if vcs else url
    if vcs and revision and not upgrade:
        place += f"@{revision}"
    return " ".join(["pip install", *options, shell_quoted(f"{name} @ {place}")])


def _origin() -> dict[str, Any]:
    """Return where pip took the distribution from, as PEP 610 has it; nothing if that was an index."""
    try:
        text = distribution(_NAME).read_text("direct_url.json")
        found = json.loads(text) if text else {}
    except (PackageNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _part(origin: dict[str, Any], name: str) -> dict[str, Any]:
    found = origin.get(name)
    return found if isinstance(found, dict) else {}
