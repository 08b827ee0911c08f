"""Environment variables that look like settings and are none: ``PGQRS_DSN``, and what else is easily mistaken.

In a section's name space (``PGQRS_QUEUE_…``) an unknown name is an error. Beside the sections it may be another program's,
so it is only told, once in the log and by `pgqrs doctor`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Final

from pgqrs_core.config_sources import Settings, env_names, quote
from pgqrs_core.logs import get_logger

__all__ = ["strays", "tell_strays"]

_log = get_logger("pgqrs.config")

#: Known, though no settings: the file, where the embedded server lives, and what the test fixtures use.
_KNOWN: Final = ("PGQRS_CONFIG", "PGQRS_EMBEDDED_DIR", "PGQRS_TEST_")
#: What the address is called elsewhere.
_ADDRESS: Final = ("PGQRS_DSN", "PGQRS_URI", "PGQRS_CONNINFO", "PGQRS_BROKER")

_told: set[str] = set()


def strays(env: Mapping[str, str], settings: Settings) -> dict[str, str]:
    """Return the variables that no setting has the name of, each with the nearest name that one has.

    Those of a section are left out: reading them has failed already.
    """
    known = [name for section, keys in settings.items() for key in keys for name in env_names(section, key)]
    sections = tuple(f"PGQRS_{section}_".upper() for section in settings)
    return {
        name: _nearest(name, known)
        for name in sorted(env)
        if env[name] and name.startswith("PGQRS_") and name not in known and not name.startswith((*sections, *_KNOWN))
    }


def tell_strays(env: Mapping[str, str], settings: Settings) -> None:
    """Warn of each such variable, once in the life of the process."""
    for name, near in strays(env, settings).items():
        if name not in _told:
            _told.add(name)
            _log.warning("environment variable %s is no setting and is ignored; did you mean %s?", quote(name), near)


def _nearest(name: str, known: Iterable[str]) -> str:
    if name.startswith(_ADDRESS):
        return "PGQRS_DATABASE_URL"
    # Most often it is the section that is missing: PGQRS_PASSWORD, PGQRS_POOL_SIZE.
    tail = name.removeprefix("PGQRS")
    same = [one for one in known if one.startswith("PGQRS_") and one.endswith(tail)]
    return same[0] if same else difflib.get_close_matches(name[:100], known, n=1, cutoff=0.0)[0]
