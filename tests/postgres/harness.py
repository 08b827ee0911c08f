"""One way to use both engines, so that each test has one body."""

from __future__ import annotations

import asyncio
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import psycopg
from psycopg.rows import dict_row, tuple_row

from pgqrs_core.config import Config
from pgqrs_core.effects import Execute, Wait
from pgqrs_core.engine import AsyncEngine, Engine
from pgqrs_core.events import Draft
from pgqrs_core.marks import Marks
from pgqrs_core.messages import Delivery, Queue, QueueOptions
from pgqrs_core.operations import claim, enqueue, queues
from pgqrs_core.sql import queries
from pgqrs_core.testing import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pgqrs_core.effects import Op


def until(condition: Callable[[], Any], what: str, *, limit: float = 20.0) -> Any:
    """Wait for a condition, and return what it found."""
    return eventually(condition, limit, interval=0.005, what=what)


def ask(dsn: str, query: str, *params: Any) -> list[tuple[Any, ...]]:
    """Run a statement on a connection of its own."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        cursor = connection.execute(query.encode(), params or None)
        return cursor.fetchall() if cursor.description else []


def draft(body: bytes = b"x", queue: str = "jobs", **fields: Any) -> Draft:
    return Draft(queue, body, fields.pop("content_type", "application/octet-stream"), **fields)


def outwait(queue: Queue, patience: float = 30.0) -> Op[float]:
    """Wait as a consumer does until there is something, without claiming it; return the patience left, zero if none."""
    while patience > 0:
        rows = yield Execute(queries["probe"], queues=(queue,))
        if rows[0][1]:
            break
        patience = yield Wait(queue, patience)
    return patience


def sleep_once(queue: Queue, patience: float) -> Op[float]:
    """Wait without having looked; return the patience left."""
    return (yield Wait(queue, patience))


@contextmanager
def meanwhile(action: Callable[[], object]) -> Iterator[None]:
    """Do something in another thread; what it raises is raised at the end."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            action()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join(60)
    assert not thread.is_alive()
    if failures:
        raise failures[0]


class Harness:
    """An engine, and short ways to say what tests say often."""

    kind: ClassVar[str]
    engine: Any

    def __init__(self, url: str, **settings: Any) -> None:
        self.dsn = url
        self.settings = settings
        self.config = Config.load(url=url, **settings)
        self.marks = Marks()

    def create(self, name: str, **options: Any) -> Queue:
        found: Queue = self.transact(queues.create_queue, name, QueueOptions(**options))
        return found

    def send(self, *bodies: bytes, queue: str = "jobs", **fields: Any) -> list[int]:
        """Enqueue one message per body."""
        return self.enqueue(*(draft(body, queue, **fields) for body in bodies or (b"x",)), queue=queue)

    def enqueue(self, *drafts: Draft, queue: str = "jobs") -> list[int]:
        ids: list[int] = self.on(queue, enqueue.enqueue, list(drafts), self.engine.doorbell)
        return ids

    def take(
        self, limit: int = 10, *, queue: str = "jobs", lease: float = 30.0, patience: float = 0.0, fresh: bool = True
    ) -> list[Delivery]:
        """Claim; with ``fresh`` marks, so that what is asked for does not depend on the clock."""
        marks = Marks() if fresh else self.marks
        found: list[Delivery] = self.on(queue, claim.receive, marks, limit=limit, lease=lease, patience=patience)
        return found

    def bodies(self, limit: int = 10, **how: Any) -> list[bytes]:
        return [item.body for item in self.take(limit, **how)]

    def ask(self, query: str, *params: Any) -> list[tuple[Any, ...]]:
        return ask(self.dsn, query, *params)

    def backends(self, where: str = "true") -> list[tuple[Any, ...]]:
        """The sessions in this test's database, ours excepted."""
        return self.ask(
            "select pid, query from pg_stat_activity where datname = current_database() "
            f"and pid <> pg_backend_pid() and backend_type = 'client backend' and {where}"
        )

    def kill_backends(self) -> None:
        """End all sessions of this test's database, and wait until they are gone."""
        pids = [row[0] for row in self.backends()]
        self.ask("select pg_terminate_backend(pid) from unnest(%s::int[]) p(pid)", pids)
        until(
            lambda: not self.ask("select 1 from pg_stat_activity where pid = any(%s::int[])", pids),
            "the sessions are gone",
        )

    def waits_for(self, queue: str = "jobs") -> bool:
        """Whether producers know of somebody who waits."""
        return bool(
            self.ask(
                "select 1 from pgqrs.waiters join pgqrs.queues using (queue_id) where name = %s and until > now()",
                queue,
            )
        )

    def run(self, make: Any, *args: Any, **kwargs: Any) -> Any: ...

    def transact(self, make: Any, *args: Any, **kwargs: Any) -> Any: ...

    def run_in(self, connection: object, make: Any, *args: Any, **kwargs: Any) -> Any: ...

    def on(self, name: str, make: Any, *args: Any, **kwargs: Any) -> Any: ...

    def queue(self, name: str = "jobs") -> Queue: ...  # type: ignore[empty-body]

    def do(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a method that the two kinds have in common, and wait for it."""

    def close(self) -> None: ...


class SyncHarness(Harness):
    """The blocking engine."""

    kind = "sync"

    def __init__(self, url: str, **settings: Any) -> None:
        super().__init__(url, **settings)
        self.engine = Engine(self.config)

    def run(self, make: Any, *args: Any, **kwargs: Any) -> Any:
        return self.engine.run(make, *args, **kwargs)

    def transact(self, make: Any, *args: Any, **kwargs: Any) -> Any:
        return self.engine.transact(make, *args, **kwargs)

    def run_in(self, connection: object, make: Any, *args: Any, **kwargs: Any) -> Any:
        return self.engine.run_in(connection, make, *args, **kwargs)

    def on(self, name: str, make: Any, *args: Any, **kwargs: Any) -> Any:
        return self.engine.on(name, make, *args, **kwargs)

    def queue(self, name: str = "jobs") -> Queue:
        found: Queue = self.engine.queue(name)
        return found

    def do(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return method(*args, **kwargs)

    def close(self) -> None:
        self.engine.close()


class AsyncHarness(Harness):
    """The asynchronous engine, on an event loop of its own that runs while the test waits for it."""

    kind = "async"

    def __init__(self, url: str, **settings: Any) -> None:
        super().__init__(url, **settings)
        self.loop = asyncio.new_event_loop()
        self.engine = AsyncEngine(self.config)

    def do(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        async def call() -> Any:
            return await method(*args, **kwargs)

        return self.loop.run_until_complete(call())

    def run(self, make: Any, *args: Any, **kwargs: Any) -> Any:
        return self.do(self.engine.run, make, *args, **kwargs)

    def transact(self, make: Any, *args: Any, **kwargs: Any) -> Any:
        return self.do(self.engine.transact, make, *args, **kwargs)

    def run_in(self, connection: object, make: Any, *args: Any, **kwargs: Any) -> Any:
        return self.do(self.engine.run_in, connection, make, *args, **kwargs)

    def on(self, name: str, make: Any, *args: Any, **kwargs: Any) -> Any:
        return self.do(self.engine.on, name, make, *args, **kwargs)

    def queue(self, name: str = "jobs") -> Queue:
        found: Queue = self.do(self.engine.queue, name)
        return found

    def close(self) -> None:
        if not self.loop.is_closed():
            self.do(self.engine.close)
            self.loop.run_until_complete(asyncio.sleep(0))
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
            self.loop.close()


class Borrowed:
    """A connection of the caller's, of any make: what tests do with it."""

    def __init__(self, harness: Harness, raw: Any, *, execute: Any, commit: Any, rollback: Any, close: Any) -> None:
        self.raw = raw
        self._harness = harness
        self._execute, self._commit, self._rollback, self._close = execute, commit, rollback, close

    def execute(self, query: str) -> Any:
        return self._harness.do(self._execute, query)

    def commit(self) -> None:
        self._harness.do(self._commit)

    def rollback(self) -> None:
        self._harness.do(self._rollback)

    def close(self) -> None:
        for step in self._close:
            self._harness.do(step)


def borrow(harness: Harness, make: str) -> Borrowed:
    """Open a connection as a user of this make would have it, not yet in a transaction."""
    return MAKES[harness.kind][make](harness)


def _psycopg(harness: Harness, factory: Any = tuple_row) -> Borrowed:
    raw = psycopg.connect(harness.dsn, row_factory=factory)
    return Borrowed(harness, raw, execute=raw.execute, commit=raw.commit, rollback=raw.rollback, close=[raw.close])


def _psycopg_dict_row(harness: Harness) -> Borrowed:
    return _psycopg(harness, dict_row)


def _sqlalchemy_engine(harness: Harness) -> Any:
    from sqlalchemy.pool import NullPool

    from tests.support.versions import sqlalchemy_engine

    return sqlalchemy_engine(harness.dsn, poolclass=NullPool)


def _sqlalchemy_connection(harness: Harness) -> Borrowed:
    from sqlalchemy import text

    raw = _sqlalchemy_engine(harness).connect()
    return Borrowed(
        harness,
        raw,
        execute=lambda query: raw.execute(text(query)),
        commit=raw.commit,
        rollback=raw.rollback,
        close=[raw.close],
    )


def _sqlalchemy_session(harness: Harness) -> Borrowed:
    from sqlalchemy import text
    from sqlalchemy.orm import Session

    raw = Session(_sqlalchemy_engine(harness))
    return Borrowed(
        harness,
        raw,
        execute=lambda query: raw.execute(text(query)),
        commit=raw.commit,
        rollback=raw.rollback,
        close=[raw.close],
    )


def _django(harness: Harness) -> Borrowed:
    import django
    from django.conf import settings
    from django.db.utils import ConnectionHandler

    if not settings.configured:
        settings.configure()
        django.setup()
    parts = psycopg.conninfo.conninfo_to_dict(harness.dsn)
    handler = ConnectionHandler(
        {
            "default": {
                "ENGINE": "django.db.backends.postgresql",
                "NAME": parts["dbname"],
                "USER": parts.get("user", ""),
                "PASSWORD": parts.get("password", ""),
                "HOST": parts.get("host", ""),
                "PORT": parts.get("port", ""),
            }
        }
    )
    raw = handler["default"]
    raw.set_autocommit(False)

    def execute(query: str) -> None:
        with raw.cursor() as cursor:
            cursor.execute(query)

    return Borrowed(harness, raw, execute=execute, commit=raw.commit, rollback=raw.rollback, close=[raw.close])


def _psycopg_async(harness: Harness, factory: Any = tuple_row) -> Borrowed:
    raw = harness.do(psycopg.AsyncConnection.connect, harness.dsn, row_factory=factory)
    return Borrowed(harness, raw, execute=raw.execute, commit=raw.commit, rollback=raw.rollback, close=[raw.close])


def _psycopg_async_dict_row(harness: Harness) -> Borrowed:
    return _psycopg_async(harness, dict_row)


def _sqlalchemy_async_engine(harness: Harness) -> Any:
    from tests.support.versions import IS_SQLALCHEMY_2

    if not IS_SQLALCHEMY_2:
        import pytest

        pytest.skip("SQLAlchemy 1.4 has no asynchronous dialect for psycopg")
    from sqlalchemy.ext.asyncio import create_async_engine
    from sqlalchemy.pool import NullPool

    return create_async_engine(
        "postgresql+psycopg://",
        async_creator=lambda: psycopg.AsyncConnection.connect(harness.dsn),
        poolclass=NullPool,
    )


def _sqlalchemy_async_connection(harness: Harness) -> Borrowed:
    from sqlalchemy import text

    engine = _sqlalchemy_async_engine(harness)
    raw = harness.do(engine.connect().start)
    return Borrowed(
        harness,
        raw,
        execute=lambda query: raw.execute(text(query)),
        commit=raw.commit,
        rollback=raw.rollback,
        close=[raw.close, engine.dispose],
    )


def _sqlalchemy_async_session(harness: Harness) -> Borrowed:
    from sqlalchemy import text
    from sqlalchemy.ext.asyncio import AsyncSession

    engine = _sqlalchemy_async_engine(harness)
    raw = AsyncSession(engine)
    return Borrowed(
        harness,
        raw,
        execute=lambda query: raw.execute(text(query)),
        commit=raw.commit,
        rollback=raw.rollback,
        close=[raw.close, engine.dispose],
    )


MAKES: dict[str, dict[str, Any]] = {
    "sync": {
        "psycopg": _psycopg,
        "psycopg with dict_row": _psycopg_dict_row,
        "SQLAlchemy Connection": _sqlalchemy_connection,
        "SQLAlchemy Session": _sqlalchemy_session,
        "Django": _django,
    },
    "async": {
        "psycopg": _psycopg_async,
        "psycopg with dict_row": _psycopg_async_dict_row,
        "SQLAlchemy Connection": _sqlalchemy_async_connection,
        "SQLAlchemy Session": _sqlalchemy_async_session,
    },
}
