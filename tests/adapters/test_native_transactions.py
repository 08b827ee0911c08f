"""Messages and acks that commit or roll back with the caller's own rows."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import psycopg
import pytest
import sqlalchemy
from pgqrs_native import AsyncClient, Client
from psycopg.rows import dict_row
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from pgqrs_core.errors import InvalidArgument, LeaseLost, QueueNotFound
from tests.support.processes import child_environment
from tests.support.versions import IS_SQLALCHEMY_2, sqlalchemy_engine

INSERT = "insert into orders (number) values (1)"


class Undone(Exception):
    """Ends a transaction without committing it."""


def url(dsn: str) -> sqlalchemy.engine.URL:
    """Return the address of a libpq connection string as SQLAlchemy wants it."""
    parts = psycopg.conninfo.conninfo_to_dict(dsn)
    return sqlalchemy.engine.URL.create(
        "postgresql+psycopg",
        parts.get("user"),
        parts.get("password"),
        database=str(parts["dbname"]),
        query={"host": str(parts["host"]), "port": str(parts.get("port", 5432))},
    )


@pytest.fixture
def client(pgqrs_dsn: str) -> Iterator[Client]:
    with Client(pgqrs_dsn) as client:
        client.admin.install()
        client.admin.create_queue("jobs", lease_seconds=300.0)
        with psycopg.connect(pgqrs_dsn) as connection:
            connection.execute("create table orders (number int)")
        yield client


def orders(dsn: str) -> int:
    with psycopg.connect(dsn) as connection:
        return connection.execute("select from orders").rowcount


def left(client: Client) -> tuple[int, int, int]:
    """Count ready, held and archived messages."""
    found = client.admin.queue_metrics("jobs")
    return found.ready, found.in_flight, found.archived


# One transaction of each kind: yields what is passed as `connection`, and a way to run SQL on it.

Transaction = Callable[[str], contextlib.AbstractContextManager[tuple[Any, Callable[[str], object]]]]


@contextlib.contextmanager
def psycopg_connection(dsn: str) -> Iterator[tuple[Any, Callable[[str], object]]]:
    with psycopg.connect(dsn) as connection:
        yield connection, connection.execute


@contextlib.contextmanager
def psycopg_with_other_rows(dsn: str) -> Iterator[tuple[Any, Callable[[str], object]]]:
    with psycopg.connect(dsn, row_factory=dict_row, cursor_factory=psycopg.ClientCursor) as connection:
        yield connection, connection.execute


@contextlib.contextmanager
def psycopg_in_autocommit(dsn: str) -> Iterator[tuple[Any, Callable[[str], object]]]:
    with psycopg.connect(dsn, autocommit=True) as connection, connection.transaction():
        yield connection, connection.execute


@contextlib.contextmanager
def engine_of(dsn: str) -> Iterator[sqlalchemy.engine.Engine]:
    engine = sqlalchemy_engine(dsn)
    try:
        yield engine
    finally:
        engine.dispose()


@contextlib.contextmanager
def sqlalchemy_connection(dsn: str) -> Iterator[tuple[Any, Callable[[str], object]]]:
    with engine_of(dsn) as engine, engine.begin() as connection:
        yield connection, lambda text: connection.execute(sqlalchemy.text(text))


@contextlib.contextmanager
def sqlalchemy_session(dsn: str) -> Iterator[tuple[Any, Callable[[str], object]]]:
    with engine_of(dsn) as engine, Session(engine) as session, session.begin():
        yield session, lambda text: session.execute(sqlalchemy.text(text))


@contextlib.contextmanager
def sqlalchemy_scoped_session(dsn: str) -> Iterator[tuple[Any, Callable[[str], object]]]:
    with engine_of(dsn) as engine:
        session = scoped_session(sessionmaker(engine))
        with session.begin():
            yield session, lambda text: session.execute(sqlalchemy.text(text))
        session.remove()


TRANSACTIONS: list[Transaction] = [
    psycopg_connection,
    psycopg_with_other_rows,
    psycopg_in_autocommit,
    sqlalchemy_connection,
    sqlalchemy_session,
    sqlalchemy_scoped_session,
]

every_transaction = pytest.mark.parametrize("transaction", TRANSACTIONS, ids=lambda made: made.__name__)


@every_transaction
def test_what_is_enqueued_is_there_once_the_caller_commits(
    client: Client, pgqrs_dsn: str, transaction: Transaction
) -> None:
    with transaction(pgqrs_dsn) as (connection, execute):
        execute(INSERT)
        one = client.producer.enqueue("jobs", {"n": 1}, headers={"k": 1}, connection=connection)
        many = client.producer.batch_enqueue("jobs", [b"\0", 3], connection=connection)
        assert client.consumer.read("jobs") is None

    found = client.consumer.read_batch("jobs")
    assert [message.id for message in found] == [one, *many]
    assert [message.payload for message in found] == [{"n": 1}, b"\0", 3]
    assert orders(pgqrs_dsn) == 1


@every_transaction
def test_what_is_enqueued_is_gone_when_the_caller_rolls_back(
    client: Client, pgqrs_dsn: str, transaction: Transaction
) -> None:
    with contextlib.suppress(Undone), transaction(pgqrs_dsn) as (connection, execute):
        execute(INSERT)
        client.producer.enqueue("jobs", 1, connection=connection)
        client.producer.enqueue_delayed("jobs", 1, 5, connection=connection)
        raise Undone

    assert (left(client), orders(pgqrs_dsn)) == ((0, 0, 0), 0)


@every_transaction
def test_what_is_acked_is_gone_once_the_caller_commits(
    client: Client, pgqrs_dsn: str, transaction: Transaction
) -> None:
    client.producer.batch_enqueue("jobs", [1, 2])
    message, other = client.consumer.read_batch("jobs")

    with transaction(pgqrs_dsn) as (connection, execute):
        execute(INSERT)
        client.consumer.dequeue(message, connection=connection)
        client.consumer.archive(other, connection=connection)

    assert (left(client), orders(pgqrs_dsn)) == ((0, 0, 1), 1)


@every_transaction
def test_what_is_acked_is_still_held_when_the_caller_rolls_back(
    client: Client, pgqrs_dsn: str, transaction: Transaction
) -> None:
    client.producer.batch_enqueue("jobs", [1, 2])
    messages = client.consumer.read_batch("jobs")

    with contextlib.suppress(Undone), transaction(pgqrs_dsn) as (connection, execute):
        execute(INSERT)
        assert client.consumer.dequeue_batch(messages[:1], connection=connection) == [True]
        assert client.consumer.archive_batch(messages[1:], connection=connection) == [True]
        raise Undone

    assert (left(client), orders(pgqrs_dsn)) == ((0, 2, 0), 0)
    assert client.consumer.dequeue_batch(messages) == [True, True]


@every_transaction
def test_a_stale_ack_is_refused_inside_the_transaction_and_does_not_break_it(
    client: Client, pgqrs_dsn: str, transaction: Transaction
) -> None:
    client.producer.enqueue("jobs", 1)
    message = client.consumer.read("jobs")
    assert message is not None
    client.consumer.release(message)

    with transaction(pgqrs_dsn) as (connection, execute):
        with pytest.raises(LeaseLost):
            client.consumer.dequeue(message, connection=connection)
        execute(INSERT)

    assert (left(client), orders(pgqrs_dsn)) == ((1, 0, 0), 1)


@every_transaction
def test_what_is_refused_leaves_the_transaction_usable(
    client: Client, pgqrs_dsn: str, transaction: Transaction
) -> None:
    with transaction(pgqrs_dsn) as (connection, execute):
        with pytest.raises(QueueNotFound):
            client.producer.enqueue("jbos", 1, connection=connection)
        with pytest.raises(InvalidArgument):
            client.producer.enqueue("jobs", 1, priority=10, connection=connection)
        execute(INSERT)

    assert (left(client), orders(pgqrs_dsn)) == ((0, 0, 0), 1)


def test_a_handle_leaves_a_message_alone_that_was_acked_with_the_callers_rows(client: Client, pgqrs_dsn: str) -> None:
    client.producer.enqueue("jobs", 1)

    with client.consumer.lease("jobs") as message, psycopg.connect(pgqrs_dsn) as connection:
        assert message is not None
        connection.execute(INSERT)
        client.consumer.dequeue(message, connection=connection)

    assert (left(client), orders(pgqrs_dsn)) == ((0, 0, 0), 1)


def test_a_handle_gives_back_a_message_whose_ack_was_rolled_back(client: Client, pgqrs_dsn: str) -> None:
    client.admin.alter_queue("jobs", backoff_base=0.0)
    client.producer.enqueue("jobs", 1)

    def handle() -> None:
        with client.consumer.lease("jobs") as message, psycopg.connect(pgqrs_dsn) as connection:
            assert message is not None
            connection.execute(INSERT)
            client.consumer.dequeue(message, connection=connection)
            raise Undone

    with pytest.raises(Undone):
        handle()

    again = client.consumer.read("jobs", wait=30)
    assert again is not None
    assert (again.attempt, orders(pgqrs_dsn)) == (2, 0)


def test_the_callers_session_is_left_as_it_was(client: Client, pgqrs_dsn: str) -> None:
    show = "select name, setting from pg_settings where name not like 'transaction%' order by name"
    client.producer.enqueue("jobs", 1)
    message = client.consumer.read("jobs")
    assert message is not None

    with psycopg.connect(pgqrs_dsn) as connection:
        before = connection.execute(show).fetchall()
        client.producer.enqueue("jobs", 1, connection=connection)
        client.consumer.dequeue(message, connection=connection)
        after = connection.execute(show).fetchall()

    assert after == before


@pytest.mark.parametrize("wrong", [5, "postgresql://x", object()], ids=lambda thing: type(thing).__name__)
def test_what_is_no_connection_is_refused_with_what_would_be(client: Client, wrong: object) -> None:
    with pytest.raises(InvalidArgument, match="a psycopg connection, a SQLAlchemy Connection or Session") as caught:
        client.producer.enqueue("jobs", 1, connection=wrong)

    assert caught.value.parameter == "connection"


def test_a_closed_connection_is_refused(client: Client, pgqrs_dsn: str) -> None:
    connection = psycopg.connect(pgqrs_dsn)
    connection.close()

    with pytest.raises(InvalidArgument, match="open"):
        client.producer.enqueue("jobs", 1, connection=connection)


# asyncio

AsyncTransaction = Callable[[str], contextlib.AbstractAsyncContextManager[tuple[Any, Callable[[str], Awaitable[Any]]]]]


@contextlib.asynccontextmanager
async def async_psycopg(dsn: str) -> AsyncIterator[tuple[Any, Callable[[str], Awaitable[Any]]]]:
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        yield connection, connection.execute


@contextlib.asynccontextmanager
async def async_engine_of(dsn: str) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(url(dsn))
    try:
        yield engine
    finally:
        await engine.dispose()


@contextlib.asynccontextmanager
async def async_sqlalchemy_connection(dsn: str) -> AsyncIterator[tuple[Any, Callable[[str], Awaitable[Any]]]]:
    async with async_engine_of(dsn) as engine, engine.begin() as connection:
        yield connection, lambda text: connection.execute(sqlalchemy.text(text))


@contextlib.asynccontextmanager
async def async_sqlalchemy_session(dsn: str) -> AsyncIterator[tuple[Any, Callable[[str], Awaitable[Any]]]]:
    async with async_engine_of(dsn) as engine, AsyncSession(engine) as session, session.begin():
        yield session, lambda text: session.execute(sqlalchemy.text(text))


every_async_transaction = pytest.mark.parametrize(
    "transaction",
    [async_psycopg, async_sqlalchemy_connection, async_sqlalchemy_session],
    ids=lambda made: made.__name__,
)


def needs(transaction: AsyncTransaction) -> None:
    """Skip where SQLAlchemy's asynchronous side cannot work."""
    if transaction is not async_psycopg:
        pytest.importorskip("greenlet", reason="SQLAlchemy needs greenlet for asyncio")
        if not IS_SQLALCHEMY_2:
            pytest.skip("SQLAlchemy 1.4 has no asynchronous dialect for psycopg")


@every_async_transaction
def test_asynchronous_messages_and_acks_commit_with_the_callers_rows(
    client: Client, pgqrs_dsn: str, transaction: AsyncTransaction
) -> None:
    needs(transaction)
    client.producer.enqueue("jobs", "old")

    async def main() -> None:
        async with AsyncClient(pgqrs_dsn) as mine:
            message = await mine.consumer.read("jobs")
            assert message is not None
            async with transaction(pgqrs_dsn) as (connection, execute):
                await execute(INSERT)
                await mine.consumer.dequeue(message, connection=connection)
                await mine.producer.enqueue("jobs", "new", connection=connection)
                await mine.producer.batch_enqueue("jobs", [1, 2], connection=connection)

    asyncio.run(main())

    assert [message.payload for message in client.consumer.read_batch("jobs")] == ["new", 1, 2]
    assert orders(pgqrs_dsn) == 1


@every_async_transaction
def test_asynchronous_messages_and_acks_roll_back_with_the_callers_rows(
    client: Client, pgqrs_dsn: str, transaction: AsyncTransaction
) -> None:
    needs(transaction)
    client.producer.enqueue("jobs", "old")

    async def main() -> None:
        async with AsyncClient(pgqrs_dsn) as mine:
            message = await mine.consumer.read("jobs")
            assert message is not None
            with contextlib.suppress(Undone):
                async with transaction(pgqrs_dsn) as (connection, execute):
                    await execute(INSERT)
                    await mine.consumer.archive(message, connection=connection)
                    await mine.producer.enqueue("jobs", "new", connection=connection)
                    raise Undone

    asyncio.run(main())

    assert (left(client), orders(pgqrs_dsn)) == ((0, 1, 0), 0)


@pytest.mark.skipif(IS_SQLALCHEMY_2, reason="since 2.0 every connection has commit()")
def test_a_connection_that_commits_each_statement_is_refused_until_a_transaction_begins(
    client: Client, pgqrs_dsn: str
) -> None:
    engine = sqlalchemy.create_engine(url(pgqrs_dsn))
    with engine.connect() as connection:
        with pytest.raises(InvalidArgument, match=r"with connection\.begin\(\):"):
            client.producer.enqueue("jobs", 1, connection=connection)
        with connection.begin():
            connection.execute(sqlalchemy.text(INSERT))
            client.producer.enqueue("jobs", 2, connection=connection)
    engine.dispose()

    assert [message.payload for message in client.consumer.read_batch("jobs")] == [2]
    assert orders(pgqrs_dsn) == 1


def test_a_connection_of_psycopg2_is_refused_with_what_to_use(client: Client) -> None:
    theirs = type("connection", (), {"__module__": "psycopg2.extensions"})()

    with pytest.raises(InvalidArgument, match=r"of psycopg 3: .*postgresql\+psycopg://"):
        client.producer.enqueue("jobs", 1, connection=theirs)


def test_each_client_refuses_the_connections_of_the_other(client: Client, pgqrs_dsn: str) -> None:
    async def main() -> None:
        async with (
            AsyncClient(pgqrs_dsn) as mine,
            await psycopg.AsyncConnection.connect(pgqrs_dsn) as asynchronous,
        ):
            with psycopg.connect(pgqrs_dsn) as blocking:
                with pytest.raises(InvalidArgument, match="open and async"):
                    await mine.producer.enqueue("jobs", 1, connection=blocking)
                with pytest.raises(InvalidArgument, match="open and not async"):
                    client.producer.enqueue("jobs", 1, connection=asynchronous)

    asyncio.run(main())


# Django: settings are global to a process, so it gets one of its own.

DJANGO = """
import sys
import django
from django.conf import settings
from psycopg.conninfo import conninfo_to_dict

parts = conninfo_to_dict(sys.argv[1])
settings.configure(
    DATABASES={"default": {
        "ENGINE": "django.db.backends.postgresql", "NAME": parts["dbname"], "USER": parts.get("user"),
        "PASSWORD": parts.get("password"), "HOST": parts.get("host"), "PORT": parts.get("port"),
    }},
    USE_TZ=True,
)
django.setup()

from django.db import connection, connections, transaction
from pgqrs_native import Client

def order():
    with connection.cursor() as cursor:
        cursor.execute("insert into orders (number) values (1)")

with Client(sys.argv[1]) as client:
    client.producer.batch_enqueue("jobs", ["acked", "kept"])
    acked, kept = client.consumer.read_batch("jobs")
    # The first use of the proxy and of the wrapper behind it: neither is connected yet.
    with transaction.atomic():
        order()
        client.producer.enqueue("jobs", "committed", connection=connection)
        client.consumer.dequeue(acked, connection=connections["default"])
    try:
        with transaction.atomic():
            order()
            client.producer.enqueue("jobs", "rolled back", connection=connection)
            client.consumer.dequeue(kept, connection=connection)
            raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    connection.close()
    client.producer.enqueue("jobs", "in autocommit", connection=connection)
    print(sorted(message.payload for message in client.consumer.read_batch("jobs")))
    print(client.consumer.dequeue_batch([kept, acked]))
"""


def test_messages_and_acks_join_the_transactions_of_django(client: Client, pgqrs_dsn: str) -> None:
    pytest.importorskip("django")

    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", DJANGO, pgqrs_dsn],
        capture_output=True,
        text=True,
        timeout=60,
        env=child_environment(),
        check=False,
    )

    assert done.stdout.splitlines() == ["['committed', 'in autocommit']", "[True, False]"], done.stderr
    assert orders(pgqrs_dsn) == 1
