"""Which versions of other packages are supported, said in the same words by all that need them. Imports none of them."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Final, NamedTuple

from pgqrs_core.errors import ConfigurationError
from pgqrs_core.installing import install_command
from pgqrs_core.logs import get_logger

__all__ = ["SUPPORTED", "Installed", "Supported", "installed_packages", "is_installed", "missing", "require"]

_log = get_logger("pgqrs.plugins")


class Supported(NamedTuple):
    """Which versions of a package are supported.

    Attributes:
        oldest: the first one.
        major: the newest major version that the tests run with.
        install: what `pip install` is told, but for the version, where it is another name than the package's.
    """

    oldest: tuple[int, ...]
    major: int
    install: str = ""


#: docs/versions.md and pyproject.toml say the same, and CI runs the tests with the oldest and the newest of each.
SUPPORTED: Final = {
    # Before 3.3.6 a cancelled statement goes on waiting for a server that does not answer: `wait_for(…, 1)` took 35 s.
    "psycopg": Supported((3, 3, 6), 3, "psycopg[binary]"),
    "celery": Supported((5, 4), 5),
    "kombu": Supported((5, 4), 5),
    "dramatiq": Supported((1, 17), 2),
    "sqlalchemy": Supported((1, 4, 24), 2),
    "django": Supported((4, 2), 6),
}


class Installed(NamedTuple):
    """A package that is installed here.

    Attributes:
        package: its name.
        version: the version, as it calls it.
        is_too_old: whether it is older than what is supported.
        problem: what is wrong with the version, None if nothing is: too old, or a newer major version than was tested.
        remedy: the command for it.
    """

    package: str
    version: str
    is_too_old: bool = False
    problem: str | None = None
    remedy: str = ""

    @property
    def sentence(self) -> str:
        """Problem and remedy, in one sentence."""
        return f"{self.problem}: {self.remedy}"


def missing(package: str, extra: str) -> str | None:
    """Return the sentence that says how to get ``package``, or a newer one, or None if it is there. Imports nothing.

    Args:
        package: its name.
        extra: that of pgqrs-py which installs it.
    """
    if not is_installed(package):
        return f"{package} is not installed: {install_command(extra)}"
    found = _examine(package)
    return found.sentence if found is not None and found.is_too_old else None


def is_installed(package: str) -> bool:
    """Tell whether ``package`` can be imported, without importing it."""
    # Kombu and Celery put objects without a spec in the places of their modules, for which find_spec fails.
    return package in sys.modules or find_spec(package) is not None


def require(package: str, extra: str = "") -> None:
    """Raise unless ``package`` is installed in a version that is supported. Call it before importing from it.

    A major version that is newer than those that were tested is a warning in the log, once.

    Raises:
        ConfigurationError: what is installed, what is needed, and the command that installs it.
    """
    problem = missing(package, extra)
    if problem is not None:
        raise ConfigurationError(problem, key=package)
    found = _examine(package)
    if found is not None and found.problem is not None:
        _warn(found.sentence)


def installed_packages() -> Iterator[Installed]:
    """Yield those of `SUPPORTED` that are installed here."""
    for package in SUPPORTED:
        if is_installed(package):
            found = _examine(package)
            if found is not None:
                yield found


def _examine(package: str) -> Installed | None:
    """Judge the version of an installed package; None where nothing is known of it."""
    supported = SUPPORTED.get(package)
    if supported is None:
        return None
    try:
        text = version(package)
    except PackageNotFoundError:
        return None
    numbers = re.match(r"\d+(?:\.\d+)*", text)
    if numbers is None:
        return Installed(package, text)
    found = tuple(map(int, numbers[0].split(".")))
    oldest, install = ".".join(map(str, supported.oldest)), supported.install or package
    if found < supported.oldest:
        problem = f"{package} {text} is installed, pgqrs needs {oldest} or newer"
        return Installed(package, text, True, problem, f"pip install --upgrade '{install}>={oldest}'")
    if found[0] > supported.major:
        problem = f"{package} {text} is newer than what pgqrs is tested with, which is {oldest} to {supported.major}.x"
        return Installed(package, text, False, problem, f"pip install '{install}<{supported.major + 1}'")
    return Installed(package, text)


@cache
def _warn(sentence: str) -> None:
    """Say it once for each process."""
    _log.warning("%s", sentence)
