"""What an adapter needs beside the core, said in the same words by all."""

from __future__ import annotations

import re
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Final

from pgqrs_core.errors import ConfigurationError

__all__ = ["OLDEST", "is_installed", "missing", "require"]

#: The oldest versions that adapters work with; the extras in pyproject.toml say the same.
OLDEST: Final = {"celery": (5, 4), "kombu": (5, 4), "dramatiq": (1, 17)}


def missing(module: str, extra: str) -> str | None:
    """Return the sentence that says how to get ``module``, or a newer one, or None if it is there. Imports nothing."""
    if not is_installed(module):
        return f"{module} is not installed: pip install 'pgqrs-py[{extra}]'"
    oldest = OLDEST.get(module)
    installed = _version(module)
    if oldest is None or installed is None or installed[1] >= oldest:
        return None
    needed = ".".join(map(str, oldest))
    return f"{module} {installed[0]} is installed, pgqrs needs {needed} or newer: pip install --upgrade 'pgqrs-py[{extra}]'"


def is_installed(module: str) -> bool:
    """Tell whether ``module`` can be imported, without importing it."""
    # Kombu and Celery put objects without a spec in the places of their modules, for which find_spec fails.
    return module in sys.modules or find_spec(module) is not None


def require(module: str, extra: str) -> None:
    """Raise unless ``module`` is installed in a version that the adapter works with. Call it before importing from it.

    Raises:
        ConfigurationError: what is installed, what is needed, and the command that installs it.
    """
    problem = missing(module, extra)
    if problem is not None:
        raise ConfigurationError(problem, key=module)


def _version(module: str) -> tuple[str, tuple[int, ...]] | None:
    """Return the installed version, as it is called and as numbers; None where there is no metadata to read."""
    try:
        text = version(module)
    except PackageNotFoundError:
        return None
    found = re.match(r"\d+(?:\.\d+)*", text)
    return (text, tuple(map(int, found[0].split(".")))) if found else None
