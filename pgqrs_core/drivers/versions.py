"""Which psycopg is needed."""

from __future__ import annotations

import re
from typing import Final

import psycopg

from pgqrs_core.errors import ConfigurationError

__all__ = ["NEEDED", "check_psycopg"]

#: Before it, a cancelled statement goes on waiting for a server that does not answer: `wait_for(…, 1)` took 35 s.
NEEDED: Final = (3, 3, 6)


def check_psycopg(installed: str | None = None) -> None:
    """Raise unless psycopg is new enough.

    Raises:
        ConfigurationError: it is not.
    """
    found = installed or psycopg.__version__
    numbers = [int(number) for number in re.findall(r"\d+", found)[:3]]
    if tuple(numbers + [0] * (3 - len(numbers))) < NEEDED:
        needed = ".".join(map(str, NEEDED))
        raise ConfigurationError(
            f"psycopg {found} is installed, {needed} is needed: pip install --upgrade 'psycopg[binary]>={needed}'"
        )
