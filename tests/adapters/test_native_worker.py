"""Workers: who gets which message, what becomes of it, and what they outlive."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from pgqrs_native import AsyncClient, AsyncWorker, Client, Reject, Retry, Worker, WorkerStopped

from pgqrs_core.errors import ArchiveDisabled, ConfigurationError, InvalidArgument, QueueNotFound
from pgqrs_core.testing import PATIENCE, eventually
from tests.support.database import terminate_others
from tests.support.processes import child_environment

from .native_support import Native, Seen

if TYPE_CHECKING:
    from pgqrs_core.cluster import Cluster


@dataclass
class Mail:
    to: str


@dataclass
class Invoice:
    number: int


def left(client: Any, queue: str) -> dict[str, int]:
    """Count what is in a queue by state, empty states left out."""
    found = client.admin.queue_metrics(queue)
    states = ("ready", "delayed", "in_flight", "dead", "archived")
    return {state: count for state in states if (count := getattr(found, state))}


# Who gets which message


def test_a_handler_gets_the_messages_of_its_queue_and_its_return_acks(native: Native, client: Any, jobs: str) -> None:
    client.admin.create_queue("other")
    seen = Seen()
    worker = native.worker(client)
    worker.handler(jobs)(lambda message: seen.add((message.queue, message.payload, message.attempt)))
    worker.handler("other")(lambda message: seen.add((message.queue, message.payload, message.attempt)))
    client.producer.enqueue(jobs, 1)

    with native.working(worker):
        seen.wait_for(1)
        client.producer.enqueue("other", 2)
        seen.wait_for(2)

    assert seen.items == [(jobs, 1, 1), ("other", 2, 1)]
    assert (left(client, jobs), left(client, "other")) == ({}, {})


def test_handlers_of_one_queue_are_told_apart_by_type(native: Native, client: Any, jobs: str) -> None:
    seen = Seen()
    worker = native.worker(client)
    worker.handler(jobs, Mail)(lambda message: seen.add(message.payload))
    worker.handler(jobs, Invoice)(lambda message: seen.add(message.payload))
    worker.handler(jobs, message_type="legacy")(lambda message: seen.add(("legacy", message.payload)))
    worker.handler(jobs)(lambda message: seen.add(("other", message.payload)))
    client.producer.batch_enqueue(jobs, [Mail("a"), Invoice(1), {"plain": True}])
    client.producer.enqueue(jobs, {"to": 1}, headers={"message_type": "legacy"})

    with native.working(worker):
        seen.wait_for(4)

    for one in (Mail("a"), Invoice(1), ("other", {"plain": True}), ("legacy", {"to": 1})):
        assert one in seen.items


def test_a_message_that_no_handler_takes_is_dead_with_that_reason(native: Native, client: Any, jobs: str) -> None:
    seen = Seen()
    worker = native.worker(client, on_unknown="bury")
    worker.handler(jobs, Mail)(lambda message: seen.add(message.payload))
    worker.handler(jobs, message_type="legacy")(lambda message: seen.add(message.payload))
    unknown = client.producer.enqueue(jobs, Invoice(1))
    client.producer.enqueue(jobs, Mail("a"))

    with native.working(worker):
        seen.wait_for(1)
        eventually(lambda: left(client, jobs) == {"dead": 1})

    assert "no handler takes messages of type 'Invoice'" in client.admin.show_dead(jobs, unknown).error["message"]


@pytest.mark.parametrize("what", ["message type", "message type of the only handler", "content type", "codec"])
def test_what_a_worker_does_not_know_is_left_to_one_that_does(
    native: Native, client: Any, pgqrs_dsn: str, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    # One attempt: that of the worker that does not know it must not count.
    client.admin.create_queue("jobs", max_attempts=1)
    seen = Seen()
    old, new = native.worker(client), native.worker(client)
    old.handler("jobs", Mail)(lambda message: seen.add(message.payload))
    if what == "message type":
        old.handler("jobs", message_type="legacy")(lambda message: seen.add(message.payload))
    client.producer.enqueue("jobs", Invoice(1))
    with psycopg.connect(pgqrs_dsn, autocommit=True) as connection:
        if what == "content type":
            connection.execute("update pgqrs.q_jobs set content_type = 'application/new'")
        if what == "codec":
            encoded = "jsonb_build_object('pgqrs_encoding', jsonb_build_array(jsonb_build_object('codec', 'new')))"
            connection.execute(f"update pgqrs.q_jobs set headers = (headers::jsonb || {encoded})::json")
        with native.working(old):
            waits = "select attempt, lane, last_error->>'message' from pgqrs.q_jobs where lane < 0"
            (attempt, lane, error) = eventually(lambda: connection.execute(waits).fetchone())
        assert (attempt, lane) == (0, -1)
        said = "codec or key that is not loaded here" if what == "codec" else "is left to a worker that knows it"
        assert [line for line in caplog.messages if said in line]
        assert error
        plain = "(headers::jsonb - 'pgqrs_encoding')::json"
        connection.execute(f"update pgqrs.q_jobs set content_type = 'application/json', headers = {plain}")

    new.handler("jobs", Mail)(lambda message: seen.add(message.payload))
    new.handler("jobs", Invoice)(lambda message: seen.add(message.payload))
    with native.working(new):
        assert seen.wait_for(1) == [Invoice(1)]
    assert left(client, "jobs") == {}


@pytest.mark.parametrize(
    "change", ["content_type = 'application/new'", """headers = '{"pgqrs_encoding": [{"codec": "new"}]}'"""]
)
def test_what_a_worker_cannot_decode_is_dead_if_that_is_wished(
    native: Native, client: Any, jobs: str, pgqrs_dsn: str, change: str
) -> None:
    worker = native.worker(client, on_unknown="bury")
    worker.handler(jobs)(lambda message: None)
    sent = client.producer.enqueue(jobs, 1)
    with psycopg.connect(pgqrs_dsn, autocommit=True) as connection:
        connection.execute(f"update pgqrs.q_jobs set {change}")

    with native.working(worker):
        eventually(lambda: left(client, jobs) == {"dead": 1})

    assert client.admin.show_dead(jobs, sent).error


def test_a_payload_that_does_not_fit_is_dead_and_the_rest_is_handled(native: Native, client: Any, jobs: str) -> None:
    seen = Seen()
    worker = native.worker(client)
    worker.handler(jobs, Mail)(lambda message: seen.add(message.payload))
    client.producer.batch_enqueue(jobs, [{"to": 5}, Mail("a")])

    with native.working(worker):
        seen.wait_for(1)
        eventually(lambda: left(client, jobs) == {"dead": 1})

    assert client.admin.list_dead(jobs)[0].error["field"] == "to"


@pytest.mark.parametrize("headers", ["[1]", '"text"', "7"])
def test_headers_that_are_no_object_kill_the_message_and_not_the_worker(
    native: Native, client: Any, jobs: str, pgqrs_dsn: str, headers: str
) -> None:
    seen = Seen()
    worker = native.worker(client)
    worker.handler(jobs, Mail)(lambda message: seen.add(message.payload))
    worker.handler(jobs, Invoice)(lambda message: seen.add(message.payload))
    with psycopg.connect(pgqrs_dsn) as connection:
        insert = "insert into pgqrs.q_jobs (lane, headers, body) values (0, %s::json, '1')"
        connection.execute(insert, [headers])
    client.producer.enqueue(jobs, Mail("a"))

    with native.working(worker):
        seen.wait_for(1)
        eventually(lambda: left(client, jobs) == {"dead": 1})


def test_a_worker_without_handlers_says_so_instead_of_idling(native: Native, client: Any) -> None:
    with pytest.raises(ConfigurationError, match="no handlers"), native.working(native.worker(client)):
        pass


def test_two_handlers_for_the_same_messages_are_refused(native: Native, client: Any) -> None:
    worker = native.worker(client)
    worker.handler("jobs", Mail)(print)

    with pytest.raises(InvalidArgument, match="the only one for messages of type 'Mail' in queue 'jobs'"):
        worker.handler("jobs", message_type="Mail")(print)
    with pytest.raises(InvalidArgument, match="all batch"):
        worker.batch_handler("jobs", Invoice)(print)


@pytest.mark.parametrize(
    ("options", "parameter"),
    [
        ({"concurrency": 0}, "concurrency"),
        ({"concurrency": 1.5}, "concurrency"),
        ({"prefetch": -1}, "prefetch"),
        ({"shutdown_timeout": -1}, "shutdown_timeout"),
        ({"on_success": "delete"}, "on_success"),
    ],
    ids=str,
)
def test_a_workers_options_are_checked(native: Native, client: Any, options: dict[str, Any], parameter: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        native.worker(client, **options)

    assert caught.value.parameter == parameter


def test_a_worker_for_a_queue_that_does_not_exist_does_not_start(native: Native, client: Any, jobs: str) -> None:
    worker = native.worker(client)
    worker.handler("jbos")(print)

    with pytest.raises(QueueNotFound, match="did you mean 'jobs'"), native.working(worker):
        pass


def test_a_worker_that_archives_refuses_a_queue_without_archive(native: Native, client: Any) -> None:
    client.admin.create_queue("lean", archive=False)
    worker = native.worker(client, on_success="archive")
    worker.handler("lean")(print)

    with pytest.raises(ArchiveDisabled), native.working(worker):
        pass


def test_handled_messages_are_archived_when_asked(native: Native, client: Any, jobs: str) -> None:
    worker = native.worker(client, on_success="archive")
    worker.handler(jobs)(lambda message: None)
    client.producer.enqueue(jobs, 1)

    with native.working(worker):
        eventually(lambda: left(client, jobs) == {"archived": 1})


# What becomes of a message


def test_a_handler_that_raises_has_its_message_again_until_its_attempts_are_used_up(
    native: Native, client: Any, jobs: str
) -> None:
    seen = Seen()
    worker = native.worker(client)

    @worker.handler(jobs)
    def fail(message: Any) -> None:
        seen.add(message.attempt)
        raise ValueError(f"attempt {message.attempt}")

    number = client.producer.enqueue(jobs, 1)

    with native.working(worker):
        eventually(lambda: left(client, jobs) == {"dead": 1})

    dead = client.admin.show_dead(jobs, number)
    assert seen.items == [1, 2, 3]
    assert (dead.attempt, dead.error["type"], dead.error["message"]) == (3, "ValueError", "attempt 3")
    assert "in fail" in dead.error["traceback"]


def test_a_poison_message_does_not_keep_others_from_being_handled(
    native: Native, client: Any, jobs: str, caplog: pytest.LogCaptureFixture
) -> None:
    # What is logged cannot be passed on between processes of the test run.
    caplog.set_level(logging.CRITICAL + 1, logger="pgqrs")
    seen = Seen()
    worker = native.worker(client, concurrency=1, prefetch=0)

    @worker.handler(jobs)
    def handle(message: Any) -> None:
        if message.payload == "poison":
            raise ValueError("\ud800 \0")
        seen.add(message.payload)

    client.producer.batch_enqueue(jobs, ["poison", 1, "poison", 2])

    with native.working(worker):
        assert seen.wait_for(2) == [1, 2]
        eventually(lambda: left(client, jobs) == {"dead": 2})


def test_retry_returns_a_message_after_the_delay_it_names(native: Native, client: Any) -> None:
    client.admin.create_queue("slow", backoff_base=3600.0)
    seen = Seen()
    worker = native.worker(client)

    @worker.handler("slow")
    def handle(message: Any) -> None:
        seen.add((message.payload, message.attempt))
        if message.attempt == 1:
            raise Retry("not yet", delay={"soon": 0.05, "later": 3600.0, "backoff": None}[message.payload])

    client.producer.batch_enqueue("slow", ["later", "backoff", "soon"])

    with native.working(worker):
        seen.wait_for(4)
        eventually(lambda: left(client, "slow") == {"delayed": 2})

    assert seen.items[-1] == ("soon", 2)


@pytest.mark.parametrize("delay", [-1, float("nan"), "5", 1e12])
def test_a_retry_with_an_absurd_delay_is_refused_where_it_is_made(delay: Any) -> None:
    with pytest.raises(InvalidArgument, match="delay"):
        Retry("later", delay=delay)


def test_reject_buries_a_message_at_once_with_the_reason(native: Native, client: Any, jobs: str) -> None:
    worker = native.worker(client)

    @worker.handler(jobs)
    def handle(message: Any) -> None:
        raise Reject("no such customer")

    number = client.producer.enqueue(jobs, 1)

    with native.working(worker):
        eventually(lambda: left(client, jobs) == {"dead": 1})

    dead = client.admin.show_dead(jobs, number)
    assert (dead.attempt, dead.error["type"], dead.error["message"]) == (1, "Reject", "no such customer")


def test_a_message_that_its_handler_settled_is_left_alone(native: Native, client: Any, jobs: str) -> None:
    done = Seen()
    worker = native.worker(client)

    @worker.handler(jobs)
    def handle(message: Any) -> None:
        if message.payload == "archive":
            client.consumer.archive(message)
        else:
            client.consumer.nack(message, delay=3600)
        done.add(message)

    client.producer.batch_enqueue(jobs, ["archive", "nack"])

    with native.working(worker):
        done.wait_for(2)

    assert left(client, jobs) == {"archived": 1, "delayed": 1}
    assert not any(message.lease_lost for message in done.items)


def test_a_message_acked_in_a_transaction_that_rolled_back_is_delivered_again(client: Any, pgqrs_dsn: str) -> None:
    with Client(pgqrs_dsn) as client:
        client.admin.create_queue("jobs", backoff_base=0.0)
        seen = Seen()
        worker = Worker(client)

        @worker.handler("jobs")
        def handle(message: Any) -> None:
            with psycopg.connect(pgqrs_dsn) as connection:
                client.consumer.dequeue(message, connection=connection)
                seen.add(message.attempt)
                if message.attempt == 1:
                    raise ValueError("after the ack")

        client.producer.enqueue("jobs", 1)
        native = Native("sync", pgqrs_dsn)

        with native.working(worker):
            assert seen.wait_for(2) == [1, 2]
            eventually(lambda: left(client, "jobs") == {})


def test_an_error_of_pgqrs_in_a_handler_is_logged_like_any_other(
    native: Native, client: Any, jobs: str, caplog: pytest.LogCaptureFixture
) -> None:
    worker = native.worker(client)

    @worker.handler(jobs)
    def handle(message: Any) -> None:
        client.producer.enqueue("nowhere", 1)

    client.producer.enqueue(jobs, 1)

    with native.working(worker):
        eventually(lambda: left(client, jobs) == {"dead": 1})

    assert "handler of queue 'jobs' failed on message 1, attempt 1: QueueNotFound" in caplog.text


# Batches


def test_a_batch_handler_gets_several_messages_and_none_acks_them_all(native: Native, client: Any, jobs: str) -> None:
    seen = Seen()
    worker = native.worker(client, prefetch=100)
    worker.batch_handler(jobs, count=4)(lambda messages: seen.add([message.payload for message in messages]))
    client.producer.batch_enqueue(jobs, range(10))

    with native.working(worker):
        eventually(lambda: left(client, jobs) == {})

    assert sorted(payload for batch in seen.items for payload in batch) == list(range(10))
    assert max(map(len, seen.items)) <= 4
    assert len(seen.items) < 10


@pytest.mark.parametrize("settings", [{}, {"concurrency": 1, "prefetch": 0}, {"concurrency": 3, "prefetch": 20}])
def test_a_batch_handler_gets_as_many_messages_as_it_asks_for(
    native: Native, client: Any, jobs: str, settings: dict[str, int]
) -> None:
    client.producer.batch_enqueue(jobs, range(1000))
    client.producer.batch_enqueue(jobs, range(550))
    seen = Seen()
    worker = native.worker(client, **settings)
    worker.batch_handler(jobs, count=500)(lambda messages: seen.add(len(messages)))

    with native.working(worker):
        eventually(lambda: left(client, jobs) == {})

    assert sorted(seen.items) == [50, 500, 500, 500]


@pytest.mark.parametrize("count", [0, 10_001, True, 2.5, None])
def test_a_batch_that_cannot_be_claimed_at_once_is_refused_by_name(native: Native, client: Any, count: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"max_batch_size") as caught:
        native.worker(client).batch_handler("jobs", count=count)
    assert caught.value.parameter == "count"


def test_a_batch_handler_answers_for_each_message(native: Native, client: Any) -> None:
    client.admin.create_queue("jobs", max_attempts=1)
    worker = native.worker(client, prefetch=100)
    answers = {
        "fine": None,
        "true": True,
        "failed": ValueError("why"),
        "rejected": Reject("bad"),
        "nonsense": 7,
    }
    ids = dict(zip(answers, client.producer.batch_enqueue("jobs", list(answers)), strict=True))
    worker.batch_handler("jobs")(lambda messages: [answers[message.payload] for message in messages])

    with native.working(worker):
        eventually(lambda: left(client, "jobs") == {"dead": 3})

    kinds = {one.id: one.error["type"] for one in client.admin.list_dead("jobs")}
    assert kinds == {ids["failed"]: "ValueError", ids["rejected"]: "Reject", ids["nonsense"]: "TypeError"}


def test_a_batch_handler_that_raises_fails_every_message(native: Native, client: Any) -> None:
    client.admin.create_queue("jobs", max_attempts=1)
    worker = native.worker(client)

    @worker.batch_handler("jobs")
    def handle(messages: Any) -> None:
        raise ValueError("all")

    client.producer.batch_enqueue("jobs", range(3))

    with native.working(worker):
        eventually(lambda: left(client, "jobs") == {"dead": 3})


@pytest.mark.parametrize("result", [[None], [], "ab", 5, {"a": 1}], ids=repr)
def test_a_batch_result_of_the_wrong_length_or_kind_fails_every_message(
    native: Native, client: Any, result: Any
) -> None:
    client.admin.create_queue("jobs", max_attempts=1)
    client.producer.batch_enqueue("jobs", range(2))
    worker = native.worker(client)
    worker.batch_handler("jobs")(lambda messages: result)

    with native.working(worker):
        eventually(lambda: left(client, "jobs") == {"dead": 2})

    errors = {one.error["message"] for one in client.admin.list_dead("jobs")}
    assert errors == {"a batch handler must return None or one outcome for each of its 2 messages"}


# How many at once


def test_as_many_handlers_run_at_once_as_concurrency_says(native: Native, client: Any, jobs: str) -> None:
    everybody = threading.Barrier(4)
    worker = native.worker(client, concurrency=4)
    worker.handler(jobs)(lambda message: everybody.wait(PATIENCE))
    client.producer.batch_enqueue(jobs, range(8))

    with native.working(worker):
        eventually(lambda: left(client, jobs) == {})

    assert not everybody.broken


def test_a_worker_never_holds_more_than_concurrency_and_prefetch(native: Native, client: Any, jobs: str) -> None:
    go = threading.Event()
    seen = Seen()
    worker = native.worker(client, concurrency=2, prefetch=3)

    @worker.handler(jobs)
    def handle(message: Any) -> None:
        seen.add(message.id)
        go.wait(PATIENCE)

    client.producer.batch_enqueue(jobs, range(20))
    most = 0

    with native.working(worker):
        seen.wait_for(2)
        eventually(lambda: left(client, jobs)["in_flight"] == 5)
        go.set()
        while remaining := left(client, jobs):
            most = max(most, remaining.get("in_flight", 0))

    assert most <= 5
    assert len(seen.items) == 20


def test_without_prefetch_another_worker_gets_what_this_one_has_no_hands_for(
    native: Native, client: Any, jobs: str
) -> None:
    go = threading.Event()
    seen = Seen()
    worker = native.worker(client, concurrency=1, prefetch=0)

    @worker.handler(jobs)
    def handle(message: Any) -> None:
        seen.add(message.payload)
        go.wait(PATIENCE)

    client.producer.batch_enqueue(jobs, range(2))

    with native.working(worker):
        seen.wait_for(1)
        other = native.client().consumer.read(jobs)
        go.set()

    assert other.payload == 1


def test_prefetched_messages_keep_their_leases_until_their_turn(native: Native, client: Any) -> None:
    client.admin.create_queue("jobs", lease_seconds=0.5)
    go = threading.Event()
    seen = Seen()
    worker = native.worker(client, concurrency=1, prefetch=10)

    @worker.handler("jobs")
    def handle(message: Any) -> None:
        seen.add((message.payload, message.attempt))
        go.wait(PATIENCE)

    client.producer.batch_enqueue("jobs", range(3))

    with native.working(worker):
        seen.wait_for(1)
        stolen = native.client().consumer.read("jobs", wait=1.2)
        go.set()
        seen.wait_for(3)

    assert stolen is None
    assert seen.items == [(0, 1), (1, 1), (2, 1)]


# Leases


def test_a_lost_lease_is_flagged_to_the_handler_and_logged_and_its_ack_changes_nothing(
    native: Native, client: Any, pgqrs_dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    client.admin.create_queue("jobs", lease_seconds=0.5)
    seen = Seen()
    worker = native.worker(client, concurrency=1, prefetch=0)

    @worker.handler("jobs")
    def handle(message: Any) -> None:
        if message.attempt == 1:
            with psycopg.connect(pgqrs_dsn) as connection:
                connection.execute("update pgqrs.q_jobs set lease_token = 1")
            eventually(lambda: message.lease_lost)
        seen.add(message.attempt)

    number = client.producer.enqueue("jobs", 1)

    with native.working(worker):
        assert seen.wait_for(2) == [1, 2]
        eventually(lambda: left(client, "jobs") == {})

    assert f"the lease on message {number} of queue 'jobs' was lost" in caplog.text
    assert f"<Message {number} of 'jobs', attempt 1> was lost before its outcome (ack) was written" in caplog.text


# Stopping


def test_a_stopped_worker_finishes_what_runs_and_gives_the_rest_back_untried(
    native: Native, client: Any, jobs: str
) -> None:
    seen = Seen()
    stopping = threading.Event()
    worker = native.worker(client, concurrency=1, prefetch=5)

    @worker.handler(jobs)
    def handle(message: Any) -> None:
        seen.add(message.payload)
        stopping.wait(PATIENCE)

    client.producer.batch_enqueue(jobs, range(4))

    with native.working(worker):
        seen.wait_for(1)
        eventually(lambda: left(client, jobs) == {"in_flight": 4})
        (native.loop.call if native.loop else lambda stop: stop())(worker.stop)
        eventually(lambda: left(client, jobs).get("ready") == 3)
        stopping.set()

    assert seen.items == [0]
    assert [(one.payload, one.attempt) for one in client.consumer.read_batch(jobs)] == [(1, 1), (2, 1), (3, 1)]


def test_a_handler_that_outlasts_the_limit_has_its_message_given_back(native: Native, client: Any, jobs: str) -> None:
    started, never = Seen(), threading.Event()
    worker = native.worker(client, concurrency=1, shutdown_timeout=0.05)

    @worker.handler(jobs)
    def handle(message: Any) -> None:
        started.add(message)
        never.wait(PATIENCE)

    client.producer.enqueue(jobs, 1)

    with native.working(worker):
        started.wait_for(1)
    again = client.consumer.read(jobs)
    never.set()

    assert (again.payload, again.attempt) == (1, 2)


def test_what_waits_for_a_dead_server_does_not_hold_up_the_end(native: Native, pgqrs_private_cluster: Cluster) -> None:
    client = native.client(pgqrs_private_cluster.dsn)
    client.admin.install()
    client.admin.create_queue("jobs")
    client.producer.enqueue("jobs", 1)
    started, go = Seen(), threading.Event()
    worker = native.worker(client)

    @worker.handler("jobs")
    def handle(message: Any) -> None:
        started.add(message)
        go.wait(PATIENCE)

    with native.working(worker):
        started.wait_for(1)
        pgqrs_private_cluster.stop("immediate")
        go.set()

    assert not started.items[0].settled
    eventually(lambda: not any(thread.name == "pgqrs-settler" for thread in threading.enumerate()))


CHILD = """
import asyncio, logging, sys, threading
from pgqrs_native import WorkerStopped, AsyncClient, AsyncWorker, Client, Worker

kind, dsn, limit, mode = sys.argv[1], sys.argv[2], float(sys.argv[3]), sys.argv[4]
logging.basicConfig(level=logging.INFO)
go = threading.Event()
threading.Thread(target=lambda: (sys.stdin.readline(), go.set()), daemon=True).start()

def sync():
    with Client(dsn) as client:
        worker = Worker(client, concurrency=1, prefetch=5, shutdown_timeout=limit)

        @worker.handler("jobs")
        def handle(message):
            print("started", message.payload, flush=True)
            if mode == "block":
                go.wait()
            print("finished", message.payload, flush=True)

        print("ready", flush=True)
        worker.run()

async def asynchronous():
    async with AsyncClient(dsn) as client:
        worker = AsyncWorker(client, concurrency=1, prefetch=5, shutdown_timeout=limit)

        @worker.handler("jobs")
        async def handle(message):
            print("started", message.payload, flush=True)
            while mode == "block" and not go.is_set():
                await asyncio.sleep(0.01)
            print("finished", message.payload, flush=True)

        print("ready", flush=True)
        await worker.run()

sync() if kind == "sync" else asyncio.run(asynchronous())
print("ended", flush=True)
"""


class Child:
    """A worker in a process of its own. Its handlers run until `go`."""

    def __init__(self, kind: str, dsn: str, *, limit: float = PATIENCE, mode: str = "block") -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD, kind, dsn, str(limit), mode],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=child_environment(),
        )

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def go(self) -> tuple[int, str, str]:
        """Let handlers end, wait for the process; return its exit status and what it printed."""
        out, err = self.process.communicate("go\n", timeout=PATIENCE)
        return self.process.returncode, out, err

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def child(native: Native) -> Iterator[Callable[..., Child]]:
    started: list[Child] = []

    def start(**options: Any) -> Child:
        started.append(Child(native.kind, native.dsn, **options))
        return started[-1]

    yield start
    for one in started:
        one.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_lets_what_runs_finish_and_gives_the_rest_back(
    client: Any, jobs: str, child: Callable[..., Child], number: signal.Signals
) -> None:
    client.producer.batch_enqueue(jobs, range(4))
    process = child()
    assert [process.line(), process.line()] == ["ready", "started 0"]
    eventually(lambda: left(client, jobs) == {"in_flight": 4})

    process.send(number)

    eventually(lambda: left(client, jobs).get("ready") == 3)
    status, out, err = process.go()
    assert (status, out.split("\n")[:2]) == (0, ["finished 0", "ended"]), err
    assert [(one.payload, one.attempt) for one in client.consumer.read_batch(jobs)] == [(1, 1), (2, 1), (3, 1)]


def test_an_idle_worker_ends_at_a_signal(client: Any, jobs: str, child: Callable[..., Child], pgqrs_dsn: str) -> None:
    process = child()
    assert process.line() == "ready"
    with psycopg.connect(pgqrs_dsn, autocommit=True) as connection:
        eventually(lambda: connection.execute("select from pgqrs.waiters").rowcount == 1)

        process.send(signal.SIGTERM)
        status, out, err = process.go()

        assert (status, out) == (0, "ended\n"), err
        assert connection.execute("select from pgqrs.waiters").rowcount == 0


def test_a_handler_that_outlasts_the_limit_after_a_signal_has_its_message_given_back(
    client: Any, jobs: str, child: Callable[..., Child]
) -> None:
    client.producer.enqueue(jobs, 1)
    process = child(limit=0.05)
    assert [process.line(), process.line()] == ["ready", "started 1"]

    process.send(signal.SIGTERM)

    assert process.line() == "ended"
    assert process.process.wait(PATIENCE) == 0
    again = client.consumer.read(jobs)
    assert (again.payload, again.attempt) == (1, 2)


def test_a_second_signal_stops_at_once(client: Any, jobs: str, child: Callable[..., Child]) -> None:
    client.producer.batch_enqueue(jobs, range(2))
    process = child()
    assert [process.line(), process.line()] == ["ready", "started 0"]
    process.send(signal.SIGINT)
    eventually(lambda: left(client, jobs).get("ready") == 1)

    process.send(signal.SIGTERM)

    assert process.process.wait(PATIENCE) == 128 + signal.SIGTERM
    _, out, err = process.go()
    assert (out, "Traceback" in err) == ("", False), err


def test_the_same_signal_twice_within_a_second_is_one(client: Any, jobs: str, child: Callable[..., Child]) -> None:
    client.producer.enqueue(jobs, 0)
    process = child()
    assert [process.line(), process.line()] == ["ready", "started 0"]
    for _ in range(3):
        process.send(signal.SIGTERM)
    # It has been heard, and the handler still gets its time.
    eventually(lambda: process.process.poll() is None)
    status, out, err = process.go()
    assert (status, out, "Traceback" in err) == (0, "finished 0\nended\n", False), err


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_the_handlers_of_signals_are_given_back(pgqrs_dsn: str, kind: str) -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))

    try:
        if kind == "sync":
            with Client(pgqrs_dsn) as client:
                client.admin.install()
                client.admin.create_queue("jobs")
                client.producer.enqueue("jobs", 1)
                worker = Worker(client, housekeeping=False)
                worker.handler("jobs")(lambda message: os.kill(os.getpid(), signal.SIGTERM))
                worker.run()
        else:

            async def main() -> None:
                async with AsyncClient(pgqrs_dsn) as client:
                    await client.admin.install()
                    await client.admin.create_queue("jobs")
                    await client.producer.enqueue("jobs", 1)
                    worker = AsyncWorker(client, housekeeping=False)
                    worker.handler("jobs")(lambda message: os.kill(os.getpid(), signal.SIGTERM))
                    # As uvicorn does: the loop itself handles signals.
                    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, heard.append, -1)
                    await worker.run()
                    heard.clear()
                    os.kill(os.getpid(), signal.SIGTERM)
                    while not heard:
                        await asyncio.sleep(0.01)
                    assert heard == [-1]

            asyncio.run(main())
            signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
            heard.clear()
        os.kill(os.getpid(), signal.SIGTERM)
        eventually(lambda: heard == [signal.SIGTERM])
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_worker_runs_once(native: Native, client: Any, jobs: str) -> None:
    worker = native.worker(client)
    worker.handler(jobs)(lambda message: None)
    with native.working(worker):
        pass
    with pytest.raises(WorkerStopped, match="Make a new one"), native.working(worker):
        pass


def test_the_messages_of_a_killed_worker_are_delivered_again(
    client: Any, child: Callable[..., Child], native: Native
) -> None:
    client.admin.create_queue("jobs", lease_seconds=0.5)
    client.producer.batch_enqueue("jobs", range(3))
    process = child()
    assert [process.line(), process.line()] == ["ready", "started 0"]

    process.send(signal.SIGKILL)
    process.process.wait(PATIENCE)

    seen = Seen()
    worker = native.worker(client)
    worker.handler("jobs")(lambda message: seen.add(message.payload))
    with native.working(worker):
        assert sorted(seen.wait_for(3)) == [0, 1, 2]
        eventually(lambda: left(client, "jobs") == {})


def test_a_process_that_is_killed_again_and_again_by_one_message_buries_it(
    client: Any, child: Callable[..., Child]
) -> None:
    client.admin.create_queue("jobs", lease_seconds=0.2, max_attempts=2)
    number = client.producer.enqueue("jobs", "poison")

    for _ in range(2):
        process = child()
        assert [process.line(), process.line()] == ["ready", "started poison"]
        process.send(signal.SIGKILL)
        process.process.wait(PATIENCE)
    process = child(mode="run")
    assert process.line() == "ready"

    eventually(lambda: left(client, "jobs") == {"dead": 1})
    assert client.admin.show_dead("jobs", number).error["type"] == "AttemptsExhausted"


# What they outlive


@contextlib.contextmanager
def counting(native: Native, client: Any, queue: str) -> Iterator[Seen]:
    """Run a worker that notes payloads."""
    seen = Seen()
    worker = native.worker(client)
    worker.handler(queue)(lambda message: seen.add(message.payload))
    with native.working(worker):
        yield seen


def test_a_worker_outlives_the_end_of_all_its_connections(
    native: Native, client: Any, jobs: str, pgqrs_dsn: str
) -> None:
    with counting(native, client, jobs) as seen, psycopg.connect(pgqrs_dsn, autocommit=True) as connection:
        for number in range(3):
            # A new producer: an old one may not have noticed yet, and would rightly say that it does not know.
            native.client().producer.enqueue(jobs, number)
            seen.wait_for(number + 1)
            eventually(lambda: connection.execute("select from pgqrs.waiters").rowcount)
            assert terminate_others(connection)

        native.client().producer.enqueue(jobs, 3)

        assert seen.wait_for(4) == [0, 1, 2, 3]


def test_an_ack_that_could_not_be_written_is_written_later(
    native: Native, client: Any, jobs: str, pgqrs_dsn: str
) -> None:
    started, go = Seen(), threading.Event()
    worker = native.worker(client)

    @worker.handler(jobs)
    def handle(message: Any) -> None:
        started.add(message.attempt)
        go.wait(PATIENCE)

    client.producer.enqueue(jobs, 1)
    database = psycopg.conninfo.conninfo_to_dict(pgqrs_dsn)["dbname"]

    with native.working(worker), psycopg.connect(pgqrs_dsn, autocommit=True) as connection:
        started.wait_for(1)
        block = psycopg.sql.SQL("alter database {} connection limit {}")
        connection.execute(block.format(psycopg.sql.Identifier(str(database)), 0))
        terminate_others(connection)
        go.set()
        connection.execute(block.format(psycopg.sql.Identifier(str(database)), -1))
        eventually(lambda: connection.execute("select from pgqrs.q_jobs").rowcount == 0)

    assert started.items == [1]


@pytest.mark.parametrize("how", ["fast", "immediate"])
def test_a_worker_outlives_a_restart_of_the_server(native: Native, pgqrs_private_cluster: Cluster, how: Any) -> None:
    client = native.client(pgqrs_private_cluster.dsn)
    client.admin.install()
    client.admin.create_queue("jobs")

    with counting(native, client, "jobs") as seen:
        client.producer.enqueue("jobs", "before")
        seen.wait_for(1)

        pgqrs_private_cluster.restart(how)

        native.client(pgqrs_private_cluster.dsn).producer.enqueue("jobs", "after")
        eventually(lambda: "after" in seen.items)


def test_a_worker_outlives_a_wake_up_connection_that_hangs(
    native: Native, client: Any, jobs: str, pgqrs_dsn: str
) -> None:
    if os.geteuid() != 0 and "localhost" not in pgqrs_dsn:
        pytest.skip("needs the right to stop a server process")
    with counting(native, client, jobs) as seen, psycopg.connect(pgqrs_dsn, autocommit=True) as connection:
        eventually(lambda: connection.execute("select from pgqrs.waiters").rowcount)
        pid = eventually(lambda: listening_backend(connection))
        if not is_local(pid):
            pytest.skip("the server runs on another machine")
        os.kill(pid, signal.SIGSTOP)
        try:
            native.client().producer.enqueue(jobs, 1)
            seen.wait_for(1)
        finally:
            os.kill(pid, signal.SIGCONT)


def listening_backend(connection: psycopg.Connection[Any]) -> int:
    """Return the process of the wake-up connection: the one that probes."""
    row = connection.execute(
        "select pid from pg_stat_activity where datname = current_database() and query like '-- Without claiming%'"
        " or datname = current_database() and query like '%as claimable%' and pid <> pg_backend_pid()"
    ).fetchone()
    return int(row[0]) if row else 0


def is_local(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return b"postgres" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def test_a_queue_that_is_deleted_does_not_keep_others_waiting(native: Native, client: Any, jobs: str) -> None:
    client.admin.create_queue("doomed")
    seen = Seen()
    worker = native.worker(client)
    worker.handler("doomed")(lambda message: seen.add(message.payload))
    worker.handler(jobs)(lambda message: seen.add(message.payload))
    other = native.client()

    with native.working(worker):
        client.producer.enqueue("doomed", 0)
        seen.wait_for(1)
        other.admin.delete_queue("doomed")
        for number in range(1, 4):
            other.producer.enqueue(jobs, number)
            seen.wait_for(number + 1)
        other.admin.create_queue("doomed")
        other.producer.enqueue("doomed", "back")

        assert seen.wait_for(5) == [0, 1, 2, 3, "back"]


def test_a_queue_that_is_deleted_under_its_handlers_does_not_wedge_the_worker(
    native: Native, client: Any, jobs: str, caplog: pytest.LogCaptureFixture
) -> None:
    client.admin.create_queue("doomed")
    started, go, seen = Seen(), threading.Event(), Seen()
    worker = native.worker(client, concurrency=1, prefetch=0)

    @worker.handler("doomed")
    def handle(message: Any) -> None:
        started.add(message)
        go.wait(PATIENCE)

    worker.handler(jobs)(lambda message: seen.add(message.payload))
    client.producer.enqueue("doomed", 1)

    with native.working(worker):
        started.wait_for(1)
        native.client().admin.delete_queue("doomed")
        go.set()
        client.producer.enqueue(jobs, 2)
        assert seen.wait_for(1) == [2]

    assert "1 outcomes (ack) cannot be written" in caplog.text


def test_a_paused_queue_is_worked_on_again_once_it_is_resumed(native: Native, client: Any, jobs: str) -> None:
    client.admin.pause_queue(jobs)
    client.producer.enqueue(jobs, 1)

    with counting(native, client, jobs) as seen:
        client.admin.resume_queue(jobs)

        assert seen.wait_for(1) == [1]


# Housekeeping


def test_one_worker_is_elected_and_applies_ttl_and_retention(native: Native, pgqrs_dsn: str) -> None:
    client = native.client(cleanup_interval_seconds=1)
    client.admin.install()
    client.admin.create_queue("kept", dead_retention_seconds=0.0, archive_retention_seconds=0.0)
    client.admin.create_queue("idle")
    client.producer.batch_enqueue("kept", [1, 2])
    client.producer.enqueue("kept", 3, ttl=0.001)
    dead, archived = client.consumer.read_batch("kept", count=2)
    client.consumer.nack(dead, bury=True)
    client.consumer.archive(archived)
    workers = [native.worker(client), native.worker(client)]
    for worker in workers:
        worker.handler("idle")(print)

    with native.working(workers[0]), native.working(workers[1]), psycopg.connect(pgqrs_dsn) as connection:
        eventually(lambda: client.admin.peek("kept") == client.admin.list_dead("kept") == [])
        eventually(lambda: client.admin.list_archive("kept") == [])
        rows = connection.execute("select host, pid from pgqrs.leaders where until > now()").fetchall()
        assert [(host is not None, pid) for host, pid in rows] == [(True, os.getpid())]

    # Who was elected has resigned, so that another takes over at once.
    with psycopg.connect(pgqrs_dsn) as connection:
        assert connection.execute("select from pgqrs.leaders where until > now()").rowcount == 0


def test_a_worker_without_housekeeping_removes_nothing(native: Native) -> None:
    client = native.client(cleanup_interval_seconds=1)
    client.admin.install()
    client.admin.create_queue("jobs", dead_retention_seconds=0.0)
    client.producer.enqueue("jobs", 1)
    client.consumer.nack(client.consumer.read("jobs"), bury=True)
    keeper = native.client(cleanup_interval_seconds=1)
    keeper.admin.create_queue("other", dead_retention_seconds=0.0)
    worker = native.worker(client, housekeeping=False)
    worker.handler("jobs")(print)

    with native.working(worker):
        # Longer than two intervals, by the patience of a reader.
        client.consumer.read("other", wait=2.2)

    assert left(client, "jobs") == {"dead": 1}


# What only one of the two can do wrong


def test_a_blocking_worker_does_not_ack_what_a_coroutine_has_not_done(pgqrs_dsn: str) -> None:
    with Client(pgqrs_dsn) as client:
        client.admin.install()
        client.admin.create_queue("jobs", max_attempts=1)
        worker = Worker(client)

        @worker.handler("jobs")
        async def handle(message: Any) -> None:
            raise AssertionError("never run")

        client.producer.enqueue("jobs", 1)
        with Native("sync", pgqrs_dsn).working(worker):
            eventually(lambda: left(client, "jobs") == {"dead": 1})

        assert "AsyncWorker runs coroutines" in client.admin.list_dead("jobs")[0].error["message"]


def run_async_worker(dsn: str, count: int, handler: Callable[[Any, AsyncWorker], Any], **options: Any) -> None:
    """Run an asynchronous worker on ``count`` messages until its handler stops it."""

    async def main() -> None:
        async with AsyncClient(dsn) as client:
            await client.admin.install()
            await client.admin.create_queue("jobs")
            await client.producer.batch_enqueue("jobs", list(range(count)))
            worker = AsyncWorker(client, **options)
            worker.handler("jobs")(handler(client, worker))
            await asyncio.wait_for(worker.run(signals=False), PATIENCE)
            assert (await client.admin.queue_metrics("jobs")).ready == 0

    asyncio.run(main())


def test_an_asynchronous_worker_runs_a_hundred_coroutines_at_once(pgqrs_dsn: str) -> None:
    running: list[int] = []

    def make(client: AsyncClient, worker: AsyncWorker) -> Any:
        everybody = asyncio.Event()

        async def handle(message: Any) -> None:
            running.append(message.payload)
            if len(running) == 100:
                everybody.set()
                worker.stop()
            await everybody.wait()

        return handle

    run_async_worker(pgqrs_dsn, 100, make)

    assert sorted(running) == list(range(100))


def test_an_asynchronous_worker_runs_plain_functions_and_those_that_return_awaitables(pgqrs_dsn: str) -> None:
    seen: list[int] = []

    def make(client: AsyncClient, worker: AsyncWorker) -> Any:
        async def note(message: Any) -> None:
            seen.append(message.payload)
            worker.stop()

        return lambda message: note(message)

    run_async_worker(pgqrs_dsn, 1, make)

    assert seen == [0]


def test_cancelling_an_asynchronous_worker_stops_it_gracefully(pgqrs_dsn: str) -> None:
    finished: list[int] = []

    async def main() -> None:
        async with AsyncClient(pgqrs_dsn) as client:
            await client.admin.install()
            await client.admin.create_queue("jobs")
            await client.producer.batch_enqueue("jobs", [1, 2])
            worker = AsyncWorker(client, concurrency=1, prefetch=1)
            started = asyncio.Event()

            @worker.handler("jobs")
            async def handle(message: Any) -> None:
                started.set()
                await asyncio.sleep(0.05)
                finished.append(message.payload)

            running = asyncio.create_task(worker.run(signals=False))
            await asyncio.wait_for(started.wait(), PATIENCE)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            assert (await client.admin.queue_metrics("jobs")).ready == 1

    asyncio.run(main())

    assert finished == [1]


def test_a_free_hand_gets_a_message_though_slow_ones_keep_the_others_busy(
    native: Native, client: Any, jobs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that is nearly full waits for more to be done, so that claims stay fat, but not for ever."""
    monkeypatch.setattr("pgqrs_native.duties.TICK", 0.1)
    seen, enough = Seen(), threading.Event()
    worker = native.worker(client, concurrency=8, prefetch=0)

    @worker.handler(jobs)
    def handle(message: Any) -> None:
        seen.add(message.payload)
        if message.payload < 7:
            enough.wait(PATIENCE)

    client.producer.batch_enqueue(jobs, list(range(7)))
    with native.working(worker):
        try:
            seen.wait_for(7)
            client.producer.enqueue(jobs, 7)
            assert 7 in seen.wait_for(8)
        finally:
            enough.set()


@pytest.mark.parametrize(
    "kind", [StopIteration, StopAsyncIteration, GeneratorExit, SystemExit, KeyboardInterrupt, asyncio.CancelledError]
)
@pytest.mark.parametrize("coroutine", [False, True])
def test_whatever_a_handler_raises_is_logged_and_its_message_is_dead_in_the_end(
    native: Native, client: Any, kind: type[BaseException], coroutine: bool, caplog: pytest.LogCaptureFixture
) -> None:
    if coroutine and not (native.kind == "async" and issubclass(kind, (Exception, asyncio.CancelledError))):
        pytest.skip("only an event loop runs coroutines, and it ends itself at such an error")
    client.admin.create_queue("jobs", max_attempts=2, backoff_base=0.0)
    client.producer.enqueue("jobs", 1)
    worker = native.worker(client)

    def handle(message: Any) -> None:
        raise kind

    async def handle_later(message: Any) -> None:
        raise kind

    # Without what the harness puts around plain functions.
    (worker.inner if native.kind == "async" else worker).handler("jobs")(handle_later if coroutine else handle)
    with native.working(worker):
        eventually(lambda: left(client, "jobs") == {"dead": 1})

    assert len([line for line in caplog.messages if "handler of queue 'jobs' failed on message 1" in line]) == 2
    assert len([line for line in caplog.messages if "message 1 of queue 'jobs' is dead after attempt 2" in line]) == 1
