"""Error reporters send the local variables of every frame: no frame of ours, or of a library under us, shows a password."""

from __future__ import annotations

import asyncio
import json
import traceback
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any

import psycopg
import pytest
from celery import Celery
from kombu import Connection
from pgqrs_dramatiq import PgqrsBroker, PgqrsRateLimiterBackend, PgqrsResultBackend
from pgqrs_native import AsyncClient, Client
from pgqrs_native.command.session import Given

from pgqrs_core.config import Config, DatabaseConfig
from pgqrs_core.secret import Hidden, forget_frames, hidden, without_frames

from .test_secrets import BAD_ADDRESSES, PASSWORD

pytestmark = pytest.mark.timeout(60)


def by_client(url: str) -> None:
    with Client(url) as client:
        client.admin.list_queues()


def by_async_client(url: str) -> None:
    async def run() -> None:
        async with AsyncClient(url) as client:
            await client.admin.list_queues()

    asyncio.run(run())


def by_settings(url: str) -> None:
    by_client(Config(database=DatabaseConfig(url=url)))  # type: ignore[arg-type]


def by_environment(url: str) -> None:
    Config.load(env={"DATABASE_URL": url, "PGQRS_QUEUE_MAX_BATCH_SIZE": "many", "PGPASSWORD": PASSWORD})


def by_kombu(url: str) -> None:
    with Connection(url.replace("postgresql://", "pgqrs://"), transport_options={"max_retries": 1}) as connection:
        connection.connect()


def by_celery_result(url: str) -> None:
    app = Celery("secrets", set_as_current=False)
    app.conf.update(result_backend=url.replace("postgresql://", "pgqrs://"))
    app.backend.store_result("one", 1, "SUCCESS")


def by_celery_publish(url: str) -> None:
    app = Celery("secrets", broker=url.replace("postgresql://", "pgqrs://"), set_as_current=False)
    app.send_task("one", retry=False)


def by_dramatiq(url: str) -> None:
    broker = PgqrsBroker(url)
    try:
        broker.declare_queue("default")
        broker.get_queue_message_counts("default")
    finally:
        broker.close()


def by_dramatiq_backends(url: str) -> None:
    PgqrsRateLimiterBackend(url).add("a", 1, 1)
    PgqrsResultBackend(url).close()


WAYS: tuple[Callable[[str], None], ...] = (
    by_client,
    by_async_client,
    by_settings,
    by_environment,
    by_kombu,
    by_celery_result,
    by_celery_publish,
    by_dramatiq,
    by_dramatiq_backends,
)
#: Frames of frameworks above us hold what an application gave to them.
ABOVE = ("celery/", "kombu/", "dramatiq/")
HERE = __file__


def frames(error: BaseException) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Yield file, function and local variables of every frame of an error and of those that it came from."""
    known: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in known:
            continue
        known.add(id(one))
        waiting += [one.__cause__, one.__context__]
        trace: TracebackType | None = one.__traceback__
        while trace is not None:
            code = trace.tb_frame.f_code
            yield code.co_filename, code.co_name, dict(trace.tb_frame.f_locals)
            trace = trace.tb_next


def sent(value: Any, depth: int = 6) -> Iterator[str]:
    """Yield what a reporter sends of a value: the parts of containers, the repr of everything else."""
    if depth and isinstance(value, Mapping):
        for key, inner in value.items():
            yield from sent(key, depth - 1)
            yield from sent(inner, depth - 1)
    elif depth and isinstance(value, (list, tuple, set, frozenset)):
        for inner in value:
            yield from sent(inner, depth - 1)
    else:
        yield repr(value)


def leaks(error: BaseException) -> list[str]:
    """Return where a report of an error shows the password."""
    found = [text for text in traceback.format_exception(error) if PASSWORD in text]
    for file, function, variables in frames(error):
        if file == HERE or any(f"site-packages/{above}" in file for above in ABOVE):
            continue
        for name, value in variables.items():
            found += [f"{file}:{function}: {name} = {text[:200]}" for text in sent(value) if PASSWORD in text]
    return found


def failure_of(way: Callable[[str], None], url: str) -> BaseException:
    with pytest.raises(BaseException) as caught:
        way(url)
    return caught.value


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_no_frame_of_a_failure_shows_the_password(way: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    addresses = [url for url in BAD_ADDRESSES if url.startswith("postgresql://")]
    if way in (by_client, by_async_client, by_settings):
        addresses = BAD_ADDRESSES
    if way in (by_kombu, by_celery_publish):
        # Kombu's own parser stumbles over it before pgqrs sees it.
        addresses = [url for url in addresses if "[" not in url]
    for url in addresses:
        assert leaks(failure_of(way, url)) == [], url.replace(PASSWORD, "…")


class Interrupted(BaseException):
    """What Celery's time limits, Dramatiq's and Ctrl-C raise at any instruction."""


@pytest.mark.parametrize(
    "way", [by_client, by_async_client, by_celery_result, by_dramatiq], ids=lambda way: way.__name__
)
def test_no_frame_of_an_interrupt_while_connecting_shows_the_password(
    way: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def strike(*_: Any, **__: Any) -> Any:
        raise Interrupted

    monkeypatch.setattr(psycopg.waiting, "wait_conn", strike)
    monkeypatch.setattr(psycopg.waiting, "wait_conn_async", strike)

    assert leaks(failure_of(way, f"postgresql://u:{PASSWORD}@127.0.0.1:1/db")) == []


def test_no_frame_of_a_refused_statement_shows_the_password(pgqrs_dsn: str) -> None:
    url = f"{pgqrs_dsn} password={PASSWORD}" if "password=" not in pgqrs_dsn and "://" not in pgqrs_dsn else pgqrs_dsn

    assert leaks(failure_of(by_client, url)) == []


def test_a_reporter_would_be_noticed() -> None:
    def careless(url: str) -> None:
        parts = {"password": url[13:]}
        raise ValueError(len(parts))

    exec(compile("def call(f, url):\n    f(url)", "elsewhere.py", "exec"), names := {})  # type: ignore[var-annotated]
    assert leaks(failure_of(lambda url: names["call"](careless, url), f"postgresql://{PASSWORD}")) != []


def test_a_hidden_text_is_a_text_that_its_repr_does_not_show() -> None:
    text = hidden(f"postgresql://u:{PASSWORD}@host/db")

    assert isinstance(text, Hidden)
    assert text == f"postgresql://u:{PASSWORD}@host/db"
    assert hash(text) == hash(str(text))
    assert PASSWORD in f"{text}"
    assert PASSWORD not in repr([{"url": text}])
    assert (hidden(None), hidden(5)) == (None, 5)


def test_settings_keep_their_address_and_password_hidden() -> None:
    config = Config.load(url=f"postgresql://u:{PASSWORD}@host/db", env={})
    parts = DatabaseConfig(host="host", password=PASSWORD)
    given = Given()
    given.update({"url": f"postgresql://u:{PASSWORD}@host/db"})

    for thing in (config, config.conninfo(), config.database.url, parts, parts.password, given):
        assert PASSWORD not in repr(thing)
    assert PASSWORD in config.conninfo()


def test_an_error_leaves_without_its_frames_and_those_of_its_causes() -> None:
    def inner() -> None:
        try:
            int("x")
        except ValueError as error:
            raise KeyError from error

    with pytest.raises(KeyError) as caught:
        without_frames(inner)()

    names = [name for _, name, _ in frames(caught.value)]
    assert "inner" not in names
    assert isinstance(caught.value.__cause__, ValueError)
    assert caught.value.__cause__.__traceback__ is None
    assert forget_frames(caught.value).__traceback__ is None


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_an_event_of_sentry_holds_no_password(way: Callable[[str], None]) -> None:
    sentry_sdk = pytest.importorskip("sentry_sdk")
    events: list[Any] = []
    client = sentry_sdk.Client(
        dsn="http://key@localhost/1",
        transport=lambda event: None,
        before_send=lambda event, hint: events.append(event),
        include_local_variables=True,
        send_default_pii=True,
        # Nothing is taken out afterwards.
        event_scrubber=sentry_sdk.scrubber.EventScrubber(denylist=[], pii_denylist=[]),
        default_integrations=False,
        max_value_length=1_000_000,
    )
    with sentry_sdk.new_scope() as scope:
        scope.set_client(client)
        scope.capture_exception(failure_of(way, f"postgresql://u:{PASSWORD}@127.0.0.1:1/db"))

    assert len(events) == 1
    for value in events[0]["exception"]["values"]:
        for frame in value.get("stacktrace", {}).get("frames", ()):
            if frame["abs_path"] == HERE or any(f"site-packages/{above}" in frame["abs_path"] for above in ABOVE):
                frame.clear()
    assert PASSWORD not in json.dumps(events[0], default=repr)
