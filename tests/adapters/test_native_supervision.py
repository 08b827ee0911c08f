"""Whatever fails around a handler, its message gets an outcome, and the worker goes on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from pgqrs_native import Reject

from pgqrs_core.hookspecs import hookimpl
from pgqrs_core.plugins import Plugins
from pgqrs_core.testing import eventually as until

from .native_support import Native, Seen


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class UnprintableExit(Exception):
    def __str__(self) -> str:
        raise SystemExit(2)

    __repr__ = __str__


def depth(client: Any, queue: str = "jobs") -> tuple[int, int, int]:
    """Return how many messages of a queue are in flight, dead, and there at all."""
    found = client.admin.queue_metrics(queue)
    return found.in_flight, found.dead, found.ready + found.delayed + found.in_flight + found.dead


class RaisingHandler(logging.Handler):
    def handle(self, record: logging.LogRecord) -> bool:
        raise SystemExit("a handler of the log")


class RaisingFilter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        raise RuntimeError("a filter of the log")


def raising_factory(*args: Any, **options: Any) -> logging.LogRecord:
    raise ValueError("a record factory")


@pytest.fixture(params=["handler", "filter", "factory"])
def hostile_log(request: pytest.FixtureRequest) -> Iterator[None]:
    """Make every line that pgqrs logs fail."""
    logger = logging.getLogger("pgqrs")
    names = [name for name in logging.root.manager.loggerDict if name.startswith("pgqrs")]
    handler, sieve, before = RaisingHandler(), RaisingFilter(), logging.getLogRecordFactory()
    if request.param == "handler":
        logger.addHandler(handler)
    elif request.param == "filter":
        for name in names:
            logging.getLogger(name).addFilter(sieve)
    else:
        logging.setLogRecordFactory(raising_factory)
    yield
    logger.removeHandler(handler)
    for name in names:
        logging.getLogger(name).removeFilter(sieve)
    logging.setLogRecordFactory(before)


@pytest.mark.usefixtures("hostile_log")
def test_a_hostile_log_costs_no_message_and_no_thread(native: Native, client: Any) -> None:
    client.admin.create_queue("jobs", max_attempts=2, backoff_base=0.0)
    worker, seen = native.worker(client, concurrency=2), Seen()

    @worker.handler("jobs")
    def handle(message: Any) -> None:
        seen.add(message.payload)
        if message.payload % 2:
            raise RuntimeError("boom")

    for number in range(8):
        client.producer.enqueue("jobs", number)
    with native.working(worker):
        until(lambda: depth(client) == (0, 4, 4))
        client.producer.enqueue("jobs", 100)
        until(lambda: depth(client) == (0, 4, 4) and 100 in seen.items)


@pytest.mark.parametrize("kind", [Unprintable, UnprintableExit, SystemExit, KeyboardInterrupt, GeneratorExit])
def test_a_handler_may_raise_anything(native: Native, client: Any, kind: type[BaseException]) -> None:
    client.admin.create_queue("jobs", max_attempts=1)
    worker, seen = native.worker(client, concurrency=1), Seen()

    @worker.handler("jobs")
    def handle(message: Any) -> None:
        seen.add(message.payload)
        if message.payload == "bad":
            raise kind

    client.producer.enqueue("jobs", "bad")
    client.producer.enqueue("jobs", "good")
    with native.working(worker):
        until(lambda: depth(client) == (0, 1, 1))
    assert sorted(seen.items) == ["bad", "good"]


class Odd(list):  # type: ignore[type-arg]
    """A result that cannot be looked at."""

    def __len__(self) -> int:
        raise SystemExit(4)


def test_a_result_that_cannot_be_looked_at_fails_its_messages(native: Native, client: Any) -> None:
    client.admin.create_queue("jobs", max_attempts=1)
    worker = native.worker(client)
    worker.batch_handler("jobs")(lambda messages: Odd())
    client.producer.enqueue("jobs", 1)
    with native.working(worker):
        until(lambda: depth(client) == (0, 1, 1))


class AfterConsume:
    """Fails the first time that it is told what became of messages."""

    def __init__(self) -> None:
        self.calls = 0

    @hookimpl
    def pgqrs_after_consume(self, event: Any) -> None:
        self.calls += 1
        if self.calls == 1:
            raise SystemExit(5)


def test_a_hook_that_ends_the_program_does_not_end_the_settling(native: Native) -> None:
    plugins = Plugins.core()
    plugins.register(AfterConsume(), "ends")
    client = native.client(plugins=plugins)
    client.admin.install()
    client.admin.create_queue("jobs")
    worker = native.worker(client)
    worker.handler("jobs")(lambda message: None)
    with native.working(worker):
        for number in range(3):
            client.producer.enqueue("jobs", number)
            until(lambda: depth(client) == (0, 0, 0))


# One line for each message that dies


def lines(caplog: pytest.LogCaptureFixture, part: str) -> list[str]:
    return [message for message in caplog.messages if part in message]


def fail(message: Any) -> None:
    raise ValueError("too\nbad")


def reject(message: Any) -> None:
    raise Reject("not wanted")


@pytest.mark.parametrize(
    ("handler", "type_", "batch", "reason"),
    [
        (fail, Any, False, "ValueError: too bad"),
        (reject, Any, False, "Reject: not wanted"),
        (lambda message: None, int, False, "PayloadMismatch: the payload does not fit int"),
        (lambda messages: [ValueError("one")] * len(messages), Any, True, "ValueError: one"),
        (lambda messages: [Reject("one")] * len(messages), Any, True, "Reject: one"),
    ],
    ids=["raises", "rejects", "misfit", "batch returns an error", "batch returns Reject"],
)
def test_a_message_that_dies_is_logged_once_with_all_that_is_known_in_the_text(
    native: Native,
    client: Any,
    caplog: pytest.LogCaptureFixture,
    handler: Callable[[Any], Any],
    type_: Any,
    batch: bool,
    reason: str,
) -> None:
    client.admin.create_queue("jobs", max_attempts=1)
    worker = native.worker(client)
    (worker.batch_handler if batch else worker.handler)("jobs", type_)(handler)
    number = client.producer.enqueue("jobs", "x")
    with native.working(worker):
        until(lambda: depth(client) == (0, 1, 1))
    (line,) = lines(caplog, "is dead")
    assert line.startswith(f"message {number} of queue 'jobs' is dead after attempt 1: {reason}")


def test_a_message_whose_attempts_are_used_up_is_logged(
    client: Any, caplog: pytest.LogCaptureFixture, pgqrs_dsn: str
) -> None:
    client.admin.create_queue("jobs", max_attempts=1)
    number = client.producer.enqueue("jobs", 1)
    assert client.consumer.read("jobs", lock_time=0.1) is not None
    until(lambda: client.consumer.read("jobs") is None and depth(client)[1] == 1)
    (line,) = lines(caplog, "is dead")
    assert line.startswith(f"message {number} of queue 'jobs' is dead after attempt 1: AttemptsExhausted: delivered 1")


def test_a_failure_of_a_handler_names_queue_message_attempt_and_error(
    native: Native, client: Any, jobs: str, caplog: pytest.LogCaptureFixture
) -> None:
    worker = native.worker(client)
    worker.batch_handler(jobs)(lambda messages: [ValueError("one")] * len(messages))
    number = client.producer.enqueue(jobs, 1)
    with native.working(worker):
        until(lambda: depth(client) == (0, 1, 1))
    failures = lines(caplog, "handler of queue 'jobs' failed on")
    assert failures == [
        f"handler of queue 'jobs' failed on message {number}, attempt {attempt}: ValueError: one"
        for attempt in (1, 2, 3)
    ]


# Outcomes that the server refuses for a while


@pytest.mark.parametrize("state", ["55P03", "53200", "53100", "40001", "42501"])
def test_an_ack_that_is_refused_for_a_while_is_kept_and_the_handler_does_not_run_again(
    native: Native, client: Any, pgqrs_dsn: str, state: str
) -> None:
    client.admin.create_queue("jobs", lease_seconds=1.0)
    client.admin.create_queue("others")
    worker, seen = native.worker(client, concurrency=2), Seen()
    worker.handler("jobs")(lambda message: seen.add(message.payload))
    worker.handler("others")(lambda message: None)
    with psycopg.connect(pgqrs_dsn, autocommit=True) as connection:
        table = "pgqrs.q_jobs"
        connection.execute(
            "create function refuse() returns trigger language plpgsql as $$ begin "
            f"raise exception 'not now' using errcode = '{state}'; end $$"
        )
        connection.execute(f"create trigger refuse before delete on {table} execute function refuse()")
        with native.working(worker):
            client.producer.enqueue("jobs", "once")
            until(lambda: seen.items == ["once"])
            client.producer.enqueue("others", 1)
            until(lambda: depth(client, "others") == (0, 0, 0))
            # Beyond the lease, which goes on being renewed.
            age = "select extract(epoch from now() - min(enqueued_at)) > 2.5 from " + table
            until(lambda: connection.execute(age).fetchone() == (True,))
            assert depth(client) == (1, 0, 1)
            connection.execute(f"drop trigger refuse on {table}")
            until(lambda: depth(client) == (0, 0, 0))
    assert seen.items == ["once"]
