"""One database as this process sees it: what the broker, results and rate limits of one address share.

They share connections, the one that listens among them, so a process that uses all three holds no more than one that uses
one. Nothing is connected until the first operation.
"""

from __future__ import annotations

import atexit
import threading
import weakref
from collections.abc import Callable
from typing import Any, Final, TypeVar

from typing_extensions import ParamSpec

from pgqrs_core.config import Config
from pgqrs_core.config_address import split_schema
from pgqrs_core.effects import Op
from pgqrs_core.engine import Engine
from pgqrs_core.errors import ConfigurationError, TimedOut, Unavailable
from pgqrs_core.forks import Lock, begin_anew_in_children
from pgqrs_core.operations import schema
from pgqrs_core.secret import hidden
from pgqrs_dramatiq.deputies import Deputies
from pgqrs_dramatiq.errors import translated
from pgqrs_dramatiq.plugin import COMPONENT
from pgqrs_dramatiq.sql import MIGRATIONS

__all__ = ["MAX_CONNECTIONS", "Database", "configure", "database_for", "database_of", "persist"]

T = TypeVar("T")
P = ParamSpec("P")

#: One that claims, one that listens, and two for what is enqueued and settled.
MAX_CONNECTIONS: Final = 4


def configure(url: str | Config | None, schema: str | None, max_connections: int) -> Config:
    """Return the settings for an address.

    Args:
        url: a PostgreSQL URL, which may name the schema as ``?schema=…``; key=value pairs; a whole `Config`; None for
            what the environment and ``pgqrs.yaml`` say.
        schema: the schema that holds the tables.
        max_connections: the most connections of this process.

    Raises:
        ConfigurationError: it is no such address, or names two schemas.
    """
    if isinstance(url, Config):
        return url
    if url is not None and not isinstance(url, str):
        raise ConfigurationError(f"url must be a database URL or a Config, not a {type(url).__name__}", key="url")
    inner = None
    if url is not None:
        url, inner = split_schema(url)
        url = hidden(url)
    if inner is not None and schema not in (None, inner):
        raise ConfigurationError(f"the URL says schema {inner!r}, the argument {schema!r}", key="schema")
    return Config.load(url=url, schema=inner if schema is None else schema, max_connections=max_connections)


def persist(task: Callable[[], T]) -> T:
    """Do something that is harmless to repeat, again where a connection broke on the way: another one may not.

    Connections that were idle and broken off are noticed one by one, so each of them may break in turn.

    Raises:
        Unavailable: the server itself is away; it was not tried again.
    """
    for _ in range(MAX_CONNECTIONS - 1):
        try:
            return task()
        except TimedOut:
            raise
        except Unavailable as error:
            if not error.in_flight:
                raise
    return task()


class Database:
    """Runs operations for all who use one address. Thread-safe; survives a fork.

    Args:
        config: where, and how many connections.
        create_schema: install pgqrs at the first use if nothing of it is there.
    """

    def __init__(self, config: Config, *, create_schema: bool) -> None:
        self.config = config
        self._create_schema = create_schema
        self._engine: Engine | None = None
        self._users: weakref.WeakSet[object] = weakref.WeakSet()
        self._begin()
        begin_anew_in_children(self)

    def begin_anew(self) -> None:
        """In a forked child: forget what belongs to the parent. The engine does the same for itself."""
        self._begin()

    def _begin(self) -> None:
        self.deputies = Deputies()
        #: What belongs to this process and these connections, by name: those who wait for results, for instance.
        self.belongings: dict[str, Any] = {}
        self._lock = threading.RLock()
        self._checked: set[bool] = set()

    def join(self, broker: object) -> None:
        """Keep the connections until this broker leaves."""
        self._users.add(broker)

    def leave(self, user: object) -> None:
        """``user`` is done: close the connections, unless a broker still needs them. They open again at the next use."""
        self._users.discard(user)
        if not self._users:
            self.close()

    def close(self) -> None:
        """Write what is left to write, and close the connections."""
        with self._lock:
            engine, self._engine = self._engine, None
            deputies = self.deputies
            belongings = list(self.belongings.values())
            self._begin()
        deputies.close()
        for belonging in belongings:
            belonging.close()
        if engine is not None:
            engine.close()

    @property
    def engine(self) -> Engine:
        """The engine, made at its first use: with an ``embedded://`` address that starts a server."""
        engine = self._engine
        if engine is None:
            with self._lock:
                engine = self._engine = self._engine or Engine(self.config)
                # Made once, here: consumers and those who wait for results would each make one, were they the first.
                _ = engine.wakeups
        return engine

    def belonging(self, name: str, make: Callable[[], T]) -> T:
        """Return what was made once for this process and these connections. It is closed with them."""
        found = self.belongings.get(name)
        if found is None:
            with self._lock:
                found = self.belongings.get(name)
                if found is None:
                    found = self.belongings[name] = make()
        result: T = found
        return result

    def call(self, task: Callable[[], T]) -> T:
        """Do something that talks to the database, where no exception of Dramatiq's can strike it."""
        return self.deputies.call(task)

    def run(self, make: Callable[P, Op[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run an operation on tables of this adapter, each statement committed by itself.

        Raises:
            SchemaError: the tables are missing or do not fit.
            Unavailable: the server cannot be reached.
        """

        def task() -> T:
            self.prepare(own_tables=True)
            return self.engine.run(make, *args, **kwargs)

        return self.call(task)

    def transact(self, make: Callable[P, Op[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run an operation on tables of this adapter in one transaction. Raises as `run` does."""

        def task() -> T:
            self.prepare(own_tables=True)
            return self.engine.transact(make, *args, **kwargs)

        return self.call(task)

    def prepare(self, *, own_tables: bool) -> None:
        """Check once that the tables are there, with ``own_tables`` those of this adapter too; install them if wanted."""
        if own_tables in self._checked:
            return
        with self._lock:
            own: dict[str, Any] = {"component": COMPONENT, "migrations": MIGRATIONS} if own_tables else {}
            engine = self.engine
            engine.run(schema.prepare, engine.installation, engine.plugins, create=self._create_schema, **own)
            self._checked.add(own_tables)


_lock = Lock()
_databases: weakref.WeakValueDictionary[tuple[Config, bool], Database] = weakref.WeakValueDictionary()


def database_for(config: Config, *, create_schema: bool) -> Database:
    """Return the database of an address, shared by all who ask for it."""
    key = config, create_schema
    with _lock:
        found = _databases.get(key)
        if found is None:
            found = _databases[key] = Database(config, create_schema=create_schema)
        return found


def database_of(url: str | Config | None, *, schema: str | None, max_connections: int, create_schema: bool) -> Database:
    """Return the database that the arguments of a backend name; they mean the same for every backend.

    Raises:
        ConnectionFailed: the address is none.
    """
    url = hidden(url)
    with translated():
        return database_for(configure(url, schema, max_connections), create_schema=create_schema)


def _at_exit() -> None:
    for database in list(_databases.values()):
        database.close()


atexit.register(_at_exit)
