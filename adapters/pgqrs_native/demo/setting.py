"""What the demo's processes agree on: names, payloads, and the address of the database."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from psycopg.conninfo import make_conninfo

from pgqrs_core.config import Config

__all__ = ["ADDRESS", "APPLICATION", "QUEUE", "SCHEMA", "CountNames", "Ping", "conninfo_for", "settings_for"]

#: The demo's own schema, for the queue and for the results.
SCHEMA: Final = "pgqrs_demo"
QUEUE: Final = "python files"

#: What the demo's connections call themselves, so that these are broken off and no others.
APPLICATION: Final = "pgqrs_demo"

#: The variable that tells a worker where the database is. Command lines are for everybody to see.
ADDRESS: Final = "PGQRS_DEMO_ADDRESS"


@dataclass(frozen=True)
class CountNames:
    """Count the names in one Python file."""

    path: str


@dataclass(frozen=True)
class Ping:
    """Say when you started to handle this."""

    number: int


def conninfo_for(dsn: str) -> str:
    """Return the string that the demo's connections are opened with."""
    return make_conninfo(Config.load(url=dsn, schema=SCHEMA).conninfo(), application_name=APPLICATION)


def settings_for(conninfo: str) -> Config:
    """Return the settings of a client in this demo; all but the place are the usual ones."""
    return Config.load(url=conninfo, schema=SCHEMA)
