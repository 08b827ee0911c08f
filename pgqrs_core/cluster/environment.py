"""Connections to a server of one's own, whatever libpq's environment variables say.

``PGSSLMODE``, ``PGTARGETSESSIONATTRS`` and their like are meant for other servers, and most of them break a connection to
this one. libpq reads them for what a connection string leaves out, so it is given all that they could say. ``PGSERVICE``
alone cannot be overruled: it is taken out of the environment while such a connection is opened.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from typing import Final

from psycopg import pq
from psycopg.conninfo import conninfo_to_dict

__all__ = ["neutral_parameters", "without_service"]

#: What to say in place of a variable where libpq has no default that could be named.
_NEUTRAL: Final = {
    "client_encoding": "UTF8",
    "connect_timeout": "30",
    "max_protocol_version": "3.0",
    "min_protocol_version": "3.0",
    "require_auth": "scram-sha-256",
    "sslcertmode": "allow",
}
_SERVICE: Final = "PGSERVICE"
#: These have no meaning of their own for a connection string that names host, user and password, or do no harm.
_LEFT_ALONE: Final = frozenset(
    {"application_name", "dbname", "host", "passfile", "password", "port", "service", "servicefile", "user"}
)

#: Where servers of one's own are, as far as this process has been told.
_hosts: Final[set[str]] = set()


def neutral_parameters(host: str) -> dict[str, str]:
    """Return the parameters for the connection string of a server of one's own that keep the environment out.

    Args:
        host: the directory of its socket, or its address; `without_service` knows it from now on.
    """
    _hosts.add(host)
    return {
        option.keyword.decode(): _NEUTRAL.get(option.keyword.decode(), (option.compiled or b"").decode())
        for option in pq.Conninfo.get_defaults()
        if option.envvar and option.envvar.decode() in os.environ and option.keyword.decode() not in _LEFT_ALONE
    }


class _Absence:
    """Keeps ``PGSERVICE`` out of the environment while that is needed. It waits for nothing: an event loop may call it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._needed = 0
        self._kept: str | None = None

    def begin(self) -> None:
        with self._lock:
            if not self._needed:
                self._kept = os.environ.pop(_SERVICE, None)
            self._needed += 1

    def end(self) -> None:
        with self._lock:
            self._needed -= 1
            if not self._needed and self._kept is not None:
                os.environ.setdefault(_SERVICE, self._kept)


_absence: Final = _Absence()


@contextlib.contextmanager
def without_service(conninfo: str) -> Iterator[None]:
    """Keep ``PGSERVICE`` out of a connection that is opened in the block, if it goes to a server of one's own."""
    if not _hosts or conninfo_to_dict(conninfo).get("host") not in _hosts:
        yield
        return
    _absence.begin()
    try:
        yield
    finally:
        _absence.end()
