"""The native client: every verb, what it answers for each message, and what it refuses."""

from __future__ import annotations

import threading
from datetime import datetime, timedelta, timezone
from typing import Any

import psycopg
import pytest
from pgqrs_native import Client, Message

from pgqrs_core.errors import (
    ArchiveDisabled,
    BodyTooLarge,
    InvalidArgument,
    InvalidQueueName,
    LeaseLost,
    QueueExists,
    QueueNotFound,
    SchemaMissing,
    Unavailable,
)
from pgqrs_core.testing import eventually
from tests.support.database import OURS, terminate_others

from .native_support import Native

SOON = 30.0


def payloads(messages: list[Message[Any]]) -> list[Any]:
    return [message.payload for message in messages]


def backlog(client: Any, queue: str) -> dict[str, int]:
    """Count the messages of a queue by state, empty states left out."""
    found = client.admin.queue_metrics(queue)
    states = ("ready", "delayed", "in_flight", "dead", "archived")
    return {state: count for state in states if (count := getattr(found, state))}


# Admin


def test_operations_before_install_say_what_to_run(native: Native) -> None:
    client = native.client()

    with pytest.raises(SchemaMissing, match="pgqrs install"):
        client.producer.enqueue("jobs", 1)


def test_install_names_its_steps_and_does_nothing_the_second_time(native: Native) -> None:
    client = native.client()

    first, second = client.admin.install(), client.admin.install()

    assert first
    assert second == []
    # Adapters and plugins bring steps of their own; the version is the core's.
    assert client.admin.schema_version() == sum(step.startswith("pgqrs ") for step in first)


def test_uninstall_names_the_queues_and_leaves_nothing(client: Any) -> None:
    client.admin.create_queue("b")
    client.admin.create_queue("a")

    assert sorted(client.admin.uninstall()) == ["a", "b"]
    assert client.admin.schema_version() == 0


def test_queues_are_listed_by_name(client: Any) -> None:
    for name in ("mail", "Mail", "a.b"):
        client.admin.create_queue(name)

    assert {queue.name for queue in client.admin.list_queues()} == {"mail", "Mail", "a.b"}


def test_creating_a_queue_again_with_the_same_options_changes_nothing(client: Any) -> None:
    first = client.admin.create_queue("mail", max_attempts=9)
    client.producer.enqueue("mail", 1)

    second = client.admin.create_queue("mail", max_attempts=9)

    assert second == first
    assert backlog(client, "mail") == {"ready": 1}


def test_creating_a_queue_again_with_other_options_shows_the_difference(client: Any) -> None:
    client.admin.create_queue("mail", max_attempts=9)

    with pytest.raises(QueueExists, match="max_attempts is 9, not 4") as caught:
        client.admin.create_queue("mail", max_attempts=4)

    assert caught.value.differences == {"max_attempts": (9, 4)}


def test_an_unknown_option_is_refused_with_the_known_ones(client: Any) -> None:
    with pytest.raises(InvalidArgument, match="max_attempts"):
        client.admin.create_queue("mail", attempts=4)

    assert client.admin.list_queues() == []


def test_the_lease_of_a_new_queue_is_what_the_configuration_says(native: Native) -> None:
    client = native.client(default_lock_time_seconds=7.5)
    client.admin.install()

    assert client.admin.create_queue("mail").options.lease_seconds == 7.5


@pytest.mark.parametrize("name", ["", "x" * 256, "a\0b", "\ud800"])
def test_names_that_no_queue_may_have_are_refused(client: Any, name: str) -> None:
    with pytest.raises(InvalidQueueName):
        client.admin.create_queue(name)

    assert client.admin.list_queues() == []


NAMES = ["a.b", "a b", "a_b", "A_B", "a-b", "q\"uo'te", "ü€📬", '"; drop table x; --', "%s", "{queue}", "x" * 255]


def test_queue_names_are_data_and_distinct_names_stay_distinct(client: Any) -> None:
    for name in NAMES:
        client.admin.create_queue(name)
        client.producer.enqueue(name, name)

    assert [payloads(client.consumer.read_batch(name)) for name in NAMES] == [[name] for name in NAMES]


def test_altered_options_apply_to_running_clients(client: Any, jobs: str) -> None:
    altered = client.admin.alter_queue(jobs, max_attempts=1)
    client.producer.enqueue(jobs, 1)

    assert altered.options.max_attempts == 1
    assert client.consumer.nack(client.consumer.read(jobs)) == "dead"


def test_a_deleted_queue_is_gone_with_its_messages(client: Any, jobs: str) -> None:
    client.producer.enqueue(jobs, 1)

    client.admin.delete_queue(jobs)
    client.admin.create_queue(jobs)

    assert backlog(client, jobs) == {}


def test_purge_removes_what_waits_and_keeps_what_is_held_or_dead(client: Any, jobs: str) -> None:
    client.producer.batch_enqueue(jobs, [1, 2, 3])
    client.producer.enqueue(jobs, 4, delay=SOON)
    held, doomed = client.consumer.read_batch(jobs, count=2)
    client.consumer.nack(doomed, bury=True)

    assert client.admin.purge_queue(jobs) == 2
    assert backlog(client, jobs) == {"in_flight": 1, "dead": 1}
    client.consumer.dequeue(held)


def test_nothing_is_claimed_from_a_paused_queue_until_it_is_resumed(client: Any, jobs: str) -> None:
    client.producer.enqueue(jobs, 1)

    client.admin.pause_queue(jobs)
    while_paused = client.consumer.read(jobs)
    client.admin.resume_queue(jobs)

    assert while_paused is None
    assert client.consumer.read(jobs).payload == 1


def test_metrics_count_each_state(client: Any, jobs: str) -> None:
    client.producer.batch_enqueue(jobs, range(4))
    client.producer.enqueue(jobs, 4, delay=SOON)
    held, kept, doomed = client.consumer.read_batch(jobs, count=3)
    client.consumer.archive(kept)
    client.consumer.nack(doomed, bury=True)

    found = client.admin.queue_metrics(jobs)

    assert backlog(client, jobs) == {"ready": 1, "delayed": 1, "in_flight": 1, "dead": 1, "archived": 1}
    assert found.oldest_ready_seconds >= 0
    assert 0 < found.next_due_seconds <= SOON
    assert held.attempt == 1


def test_metrics_of_all_queues_come_by_name(client: Any) -> None:
    for name in ("b", "a"):
        client.admin.create_queue(name)
    client.producer.enqueue("b", 1)

    assert [(found.queue, found.ready) for found in client.admin.all_queues_metrics()] == [("a", 0), ("b", 1)]


def test_peek_shows_messages_and_claims_none(client: Any, jobs: str) -> None:
    client.producer.batch_enqueue(jobs, ["a", "b"], headers={"k": 1})

    shown = client.admin.peek(jobs)

    assert [(one.body, one.headers, one.attempt) for one in shown] == [(b'"a"', {"k": 1}, 0), (b'"b"', {"k": 1}, 0)]
    assert backlog(client, jobs) == {"ready": 2}


def test_dead_messages_can_be_listed_shown_replayed_and_purged(client: Any, jobs: str) -> None:
    ids = client.producer.batch_enqueue(jobs, [1, 2, 3])
    client.consumer.nack_batch(client.consumer.read_batch(jobs), bury=True, errors=["one", "two", "three"])

    listed = client.admin.list_dead(jobs)
    shown = client.admin.show_dead(jobs, ids[1])
    replayed = client.admin.replay_dead(jobs, [ids[0]])
    purged = client.admin.purge_dead(jobs)

    assert {one.id for one in listed} == set(ids)
    assert shown.error["message"] == "two"
    assert client.admin.show_dead(jobs, 10**9) is None
    assert (replayed, purged) == (1, 2)
    again = client.consumer.read(jobs)
    assert (again.payload, again.attempt) == (1, 1)


def test_archived_messages_can_be_listed_replayed_and_pruned(client: Any, jobs: str) -> None:
    ids = client.producer.batch_enqueue(jobs, [1, 2])
    assert client.consumer.archive_batch(client.consumer.read_batch(jobs)) == [True, True]

    listed = client.admin.list_archive(jobs)
    replayed = client.admin.replay_archive(jobs, [ids[0]])
    pruned = client.admin.prune_archive(jobs, 0)

    assert [one.id for one in listed] == ids[::-1]
    assert (replayed, pruned) == (1, 1)
    assert client.consumer.read(jobs).payload == 1


def test_a_queue_without_archive_says_so(client: Any) -> None:
    client.admin.create_queue("lean", archive=False)
    client.producer.enqueue("lean", 1)
    message = client.consumer.read("lean")

    for refused in (lambda: client.consumer.archive(message), lambda: client.admin.list_archive("lean")):
        with pytest.raises(ArchiveDisabled, match="lean"):
            refused()


def test_maintain_removes_what_has_expired(client: Any, jobs: str) -> None:
    client.producer.enqueue(jobs, 1, ttl=0.001)

    assert eventually(lambda: client.admin.maintain().expired) == 1
    assert backlog(client, jobs) == {}


# Producer and consumer


def test_a_message_arrives_with_id_payload_headers_and_attempt(client: Any, jobs: str) -> None:
    number = client.producer.enqueue(jobs, {"task": "x"}, priority=4, headers={"trace": "t"})

    message = client.consumer.read(jobs)

    assert (message.id, message.queue, message.payload) == (number, jobs, {"task": "x"})
    assert message.headers == {"trace": "t"}
    assert (message.attempt, message.priority, message.content_type) == (1, 4, "application/json")
    assert message.body == b'{"task":"x"}'
    assert message.enqueued_at.utcoffset() == timedelta(0)
    assert (message.settled, message.lease_lost, message.error) == (False, False, None)
    assert repr(message) == f"<Message {number} of 'jobs', attempt 1>"


def test_a_batch_is_stored_in_order_and_answers_with_ids_in_order(client: Any, jobs: str) -> None:
    ids = client.producer.batch_enqueue(jobs, (n for n in range(100)))

    found = client.consumer.read_batch(jobs, count=100)

    assert [message.id for message in found] == ids == sorted(ids)
    assert payloads(found) == list(range(100))


def test_an_empty_batch_stores_nothing(client: Any, jobs: str) -> None:
    assert client.producer.batch_enqueue(jobs, []) == []


def test_a_message_with_an_idempotency_key_is_stored_once_alone_and_in_batches(client: Any, jobs: str) -> None:
    first = client.producer.enqueue(jobs, 1, idempotency_key="k")
    client.consumer.dequeue(client.consumer.read(jobs))

    again = client.producer.enqueue_delayed(jobs, 1, 60, idempotency_key="k")
    ids = client.producer.batch_enqueue(jobs, [1, 2, 3], idempotency_keys=iter(["k", None, "l"]))

    assert (again, ids[0]) == (first, first)
    assert [message.payload for message in client.consumer.read_batch(jobs, count=10)] == [2, 3]


@pytest.mark.parametrize("keys", [["a"], ["a", "b", "c"], "ab", ["a", 2]], ids=repr)
def test_a_batch_wants_one_sound_key_for_each_payload(client: Any, jobs: str, keys: Any) -> None:
    with pytest.raises(InvalidArgument, match="idempotency_key"):
        client.producer.batch_enqueue(jobs, [1, 2], idempotency_keys=keys)

    assert client.consumer.read(jobs) is None


def test_payloads_of_many_kinds_share_one_batch(client: Any, jobs: str) -> None:
    mixed = [b"\0\xff", {"a": [1, None]}, "text", 7, None]

    client.producer.batch_enqueue(jobs, mixed)

    assert payloads(client.consumer.read_batch(jobs)) == mixed


def test_higher_priorities_come_first(client: Any, jobs: str) -> None:
    for priority in (0, 9, 5):
        client.producer.enqueue(jobs, priority, priority=priority)

    assert payloads(client.consumer.read_batch(jobs)) == [9, 5, 0]


def test_a_delayed_message_waits_for_its_time(client: Any, jobs: str) -> None:
    client.producer.enqueue_delayed(jobs, "later", SOON, headers={"k": 1})
    client.producer.enqueue_delayed(jobs, "soon", 0.05)

    assert client.consumer.read(jobs, wait=SOON).payload == "soon"
    assert backlog(client, jobs) == {"delayed": 1, "in_flight": 1}


def test_a_message_for_a_past_time_is_due_at_once(client: Any, jobs: str) -> None:
    zone = timezone(timedelta(hours=5))
    client.producer.enqueue(jobs, "past", at=datetime(2001, 1, 1, tzinfo=zone))
    client.producer.enqueue(jobs, "future", at=datetime.now(zone) + timedelta(days=1))

    assert payloads(client.consumer.read_batch(jobs)) == ["past"]
    assert backlog(client, jobs) == {"delayed": 1, "in_flight": 1}


def test_an_expired_message_is_not_delivered(client: Any, jobs: str) -> None:
    client.producer.enqueue(jobs, "brief", ttl=0.001)
    client.producer.enqueue(jobs, "lasting", ttl=SOON)

    assert eventually(lambda: client.admin.maintain().expired)
    assert payloads(client.consumer.read_batch(jobs)) == ["lasting"]


def test_read_returns_none_and_read_batch_an_empty_list_when_there_is_nothing(client: Any, jobs: str) -> None:
    assert client.consumer.read(jobs) is None
    assert client.consumer.read_batch(jobs, wait=0.01) == []


def test_a_waiting_reader_gets_what_is_enqueued_meanwhile(native: Native, client: Any, jobs: str) -> None:
    found: list[Any] = []
    reader = threading.Thread(target=lambda: found.append(client.consumer.read(jobs, wait=SOON)))
    reader.start()

    native.client().producer.enqueue(jobs, "hello")
    reader.join(SOON)

    assert payloads(found) == ["hello"]


def test_two_consumers_never_get_the_same_message(native: Native, client: Any, jobs: str) -> None:
    client.producer.batch_enqueue(jobs, range(10))
    other = native.client()

    mine, others = client.consumer.read_batch(jobs, count=5), other.consumer.read_batch(jobs, count=10)

    assert sorted(payloads(mine) + payloads(others)) == list(range(10))


def test_a_dequeued_message_is_gone(client: Any, jobs: str) -> None:
    client.producer.enqueue(jobs, 1)
    message = client.consumer.read(jobs)

    client.consumer.dequeue(message)

    assert message.settled
    assert backlog(client, jobs) == {}


def test_an_archived_message_is_in_the_archive(client: Any, jobs: str) -> None:
    client.producer.enqueue(jobs, 1)

    client.consumer.archive(client.consumer.read(jobs))

    assert backlog(client, jobs) == {"archived": 1}


def test_a_released_message_is_back_at_once_and_its_attempt_does_not_count(client: Any, jobs: str) -> None:
    client.producer.batch_enqueue(jobs, [1, 2])

    client.consumer.release(client.consumer.read(jobs))

    found = client.consumer.read_batch(jobs)
    assert [(message.payload, message.attempt) for message in found] == [(1, 1), (2, 1)]


def test_a_nacked_message_is_back_after_its_delay_and_its_attempt_counts(client: Any, jobs: str) -> None:
    client.producer.batch_enqueue(jobs, [1, 2])
    first, second = client.consumer.read_batch(jobs)

    fates = client.consumer.nack(first, delay=SOON), client.consumer.nack(second, delay=0)

    again = client.consumer.read_batch(jobs)
    assert fates == ("nacked", "nacked")
    assert [(message.payload, message.attempt) for message in again] == [(2, 2)]


def test_a_nack_without_attempts_left_buries_with_the_error(client: Any, jobs: str) -> None:
    number = client.producer.enqueue(jobs, 1)

    fates = [client.consumer.nack(client.consumer.read(jobs, wait=SOON), error=ValueError("why")) for _ in range(3)]

    assert fates == ["nacked", "nacked", "dead"]
    dead = client.admin.show_dead(jobs, number)
    assert (dead.attempt, dead.error["type"], dead.error["message"]) == (3, "ValueError", "why")


def test_a_message_nobody_settles_is_dead_after_its_attempts(client: Any) -> None:
    client.admin.create_queue("jobs", max_attempts=2)
    number = client.producer.enqueue("jobs", 1)

    attempts = [client.consumer.read("jobs", lock_time=0.1, wait=SOON).attempt for _ in range(2)]

    assert attempts == [1, 2]
    assert eventually(lambda: client.consumer.read("jobs") or client.admin.show_dead("jobs", number))
    assert client.admin.show_dead("jobs", number).error["type"] == "AttemptsExhausted"


def test_an_extended_lease_outlives_the_old_one(native: Native, client: Any, jobs: str) -> None:
    client.producer.enqueue(jobs, 1)
    message = client.consumer.read(jobs, lock_time=0.2)

    client.consumer.extend_lock(message, SOON)

    assert native.client().consumer.read(jobs, wait=0.6) is None
    client.consumer.dequeue(message)


def test_batch_verbs_answer_for_each_message_and_do_the_others(client: Any, jobs: str) -> None:
    client.producer.batch_enqueue(jobs, range(8))
    messages = client.consumer.read_batch(jobs)
    gone, rest = messages[0], messages[1:]
    client.consumer.dequeue(gone)

    assert client.consumer.extend_lock_batch([rest[0], gone], SOON) == [True, False]
    assert client.consumer.dequeue_batch([gone, rest[0], rest[1]]) == [False, True, True]
    assert client.consumer.archive_batch([rest[2], gone]) == [True, False]
    assert client.consumer.nack_batch([gone, rest[3]], delay=SOON) == ["lost", "nacked"]
    assert client.consumer.release_batch([rest[4], gone, rest[5]]) == [True, False, True]
    assert backlog(client, jobs) == {"ready": 2, "delayed": 1, "in_flight": 1, "archived": 1}


def test_a_batch_may_span_queues_and_is_answered_in_its_order(client: Any, jobs: str) -> None:
    client.admin.create_queue("other")
    client.producer.batch_enqueue(jobs, [1, 2])
    client.producer.batch_enqueue("other", [3])
    one, two = client.consumer.read_batch(jobs)
    three = client.consumer.read("other")
    client.consumer.dequeue(two)

    assert client.consumer.dequeue_batch([one, two, three]) == [True, False, True]


def test_single_verbs_raise_lease_lost_once_another_consumer_holds_the_message(
    native: Native, client: Any, jobs: str
) -> None:
    number = client.producer.enqueue(jobs, 1)
    stale = client.consumer.read(jobs, lock_time=0.1)
    fresh = native.client().consumer.read(jobs, wait=SOON)

    for verb in ("dequeue", "archive", "release", "nack"):
        with pytest.raises(LeaseLost) as caught:
            getattr(client.consumer, verb)(stale)
        assert (caught.value.queue, caught.value.message_id) == (jobs, number)
    with pytest.raises(LeaseLost):
        client.consumer.extend_lock(stale, 5)
    assert stale.lease_lost
    client.consumer.dequeue(fresh)


# What is refused, before anything is changed

OUT_OF_RANGE = [
    ({"priority": -1}, "priority", "from 0 to 9"),
    ({"priority": 10}, "priority", "from 0 to 9"),
    ({"priority": 1.5}, "priority", "whole number"),
    ({"priority": True}, "priority", "whole number"),
    ({"delay": -0.1}, "delay", "from 0"),
    ({"delay": 1e12}, "delay", "315,360,000|3.1536e"),
    ({"delay": float("nan")}, "delay", "from 0"),
    ({"delay": "5"}, "delay", "a number"),
    ({"ttl": 0}, "ttl", "above 0"),
    ({"ttl": -1}, "ttl", "above 0"),
    ({"ttl": float("inf")}, "ttl", "at most"),
    ({"at": datetime(2030, 1, 1)}, "at", "time zone"),
    ({"at": 5}, "at", "time zone"),
    ({"at": datetime.max.replace(tzinfo=timezone(timedelta(hours=-5)))}, "at", "time zone"),
    ({"at": datetime(2030, 1, 1, tzinfo=timezone.utc), "delay": 5}, "at", "None when a delay is given"),
    ({"headers": [1]}, "headers", "dict"),
    ({"headers": {1: 2}}, "headers", "text keys"),
    ({"headers": {"a": {1, 2}}}, "headers", "JSON"),
    ({"headers": {"a": float("nan")}}, "headers", "JSON"),
]


@pytest.mark.parametrize(("arguments", "parameter", "expected"), OUT_OF_RANGE, ids=lambda value: str(value)[:40])
def test_an_enqueue_out_of_range_names_parameter_and_range_and_stores_nothing(
    client: Any, jobs: str, arguments: dict[str, Any], parameter: str, expected: str
) -> None:
    for send in (
        lambda: client.producer.enqueue(jobs, 1, **arguments),
        lambda: client.producer.batch_enqueue(jobs, [1, 2], **arguments),
    ):
        with pytest.raises(InvalidArgument, match=expected) as caught:
            send()
        assert caught.value.parameter == parameter

    assert backlog(client, jobs) == {}


READS_OUT_OF_RANGE = [
    ({"count": 0}, "count", "from 1 to 10,000"),
    ({"count": -1}, "count", "from 1 to 10,000"),
    ({"count": 10_001}, "count", "from 1 to 10,000"),
    ({"count": 2.0}, "count", "whole number"),
    ({"lock_time": 0}, "lock_time", "from 0.1 to 43,200"),
    ({"lock_time": -1}, "lock_time", "from 0.1 to 43,200"),
    ({"lock_time": 1e6}, "lock_time", "from 0.1 to 43,200"),
    ({"wait": -1}, "wait", "from 0 to 86,400"),
    ({"wait": float("nan")}, "wait", "from 0 to 86,400"),
    ({"mismatch": "ignore"}, "mismatch", "'bury' or 'return'"),
]


@pytest.mark.parametrize(("arguments", "parameter", "expected"), READS_OUT_OF_RANGE, ids=str)
def test_a_read_out_of_range_names_parameter_and_range_and_claims_nothing(
    client: Any, jobs: str, arguments: dict[str, Any], parameter: str, expected: str
) -> None:
    client.producer.enqueue(jobs, 1)

    with pytest.raises(InvalidArgument, match=expected) as caught:
        client.consumer.read_batch(jobs, **arguments)

    assert caught.value.parameter == parameter
    assert backlog(client, jobs) == {"ready": 1}


def test_settling_out_of_range_names_parameter_and_range_and_settles_nothing(client: Any, jobs: str) -> None:
    client.producer.enqueue(jobs, 1)
    message = client.consumer.read(jobs)

    with pytest.raises(InvalidArgument, match="delay must be a number from 0"):
        client.consumer.nack(message, delay=-1)
    with pytest.raises(InvalidArgument, match=r"lock_time must be a number from 0\.1"):
        client.consumer.extend_lock(message, 0)

    assert not message.settled
    client.consumer.dequeue(message)


def test_errors_given_to_nack_batch_must_match_its_messages(client: Any, jobs: str) -> None:
    client.producer.batch_enqueue(jobs, [1, 2])
    messages = client.consumer.read_batch(jobs)

    with pytest.raises(InvalidArgument, match="one for each of 2 messages"):
        client.consumer.nack_batch(messages, errors=["only one"])

    assert client.consumer.dequeue_batch(messages) == [True, True]


def test_a_body_over_the_limit_is_refused_with_both_sizes_and_the_whole_batch_is_kept_out(client: Any) -> None:
    client.admin.create_queue("small", max_body_bytes=10)

    with pytest.raises(BodyTooLarge, match="at most 10 bytes in queue 'small', not 11 bytes") as caught:
        client.producer.batch_enqueue("small", [b"x" * 10, b"x" * 11])

    assert (caught.value.queue, caught.value.size, caught.value.limit) == ("small", 11, 10)
    assert backlog(client, "small") == {}


def test_more_than_max_batch_size_is_refused_by_producer_and_consumer(native: Native) -> None:
    client = native.client(max_batch_size=3)
    client.admin.install()
    client.admin.create_queue("jobs")

    with pytest.raises(InvalidArgument, match="at most 3 at once"):
        client.producer.batch_enqueue("jobs", range(4))
    with pytest.raises(InvalidArgument, match="from 1 to 3"):
        client.consumer.read_batch("jobs", count=4)

    assert backlog(client, "jobs") == {}


def test_an_unknown_queue_is_reported_with_the_nearest_names(client: Any, jobs: str) -> None:
    for ask in (
        lambda: client.producer.enqueue("jbos", 1),
        lambda: client.producer.batch_enqueue("jbos", []),
        lambda: client.consumer.read("jbos"),
        lambda: client.admin.queue_metrics("jbos"),
        lambda: client.admin.purge_queue("jbos"),
        lambda: client.admin.pause_queue("jbos"),
        lambda: client.admin.delete_queue("jbos"),
        lambda: client.admin.alter_queue("jbos", max_attempts=1),
    ):
        with pytest.raises(QueueNotFound, match="did you mean 'jobs'") as caught:
            ask()
        assert (caught.value.name, caught.value.similar) == ("jbos", ("jobs",))


def test_a_queue_deleted_behind_the_clients_back_is_not_found(native: Native, client: Any, jobs: str) -> None:
    client.producer.enqueue(jobs, 1)

    native.client().admin.delete_queue(jobs)

    with pytest.raises(QueueNotFound):
        client.producer.enqueue(jobs, 2)
    with pytest.raises(QueueNotFound):
        client.consumer.read(jobs)


def test_a_queue_created_anew_behind_the_clients_back_is_used(native: Native, client: Any, jobs: str) -> None:
    client.producer.enqueue(jobs, 1)
    other = native.client()
    other.admin.delete_queue(jobs)
    other.admin.create_queue(jobs, max_attempts=7)

    client.producer.enqueue(jobs, 2)

    assert client.consumer.read(jobs).payload == 2


def test_an_unreachable_server_is_named_but_never_the_password(native: Native) -> None:
    client = native.client("postgresql://someone:secret@127.0.0.1:1/there")

    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1/there") as caught:
        client.producer.enqueue("jobs", 1)

    assert "secret" not in f"{caught.value!r}{caught.value.__cause__!r}"


def test_a_closed_client_says_so(native: Native, client: Any, jobs: str) -> None:
    closed = native.client()
    closed.producer.enqueue(jobs, 1)
    closed.close()
    closed.close()

    with pytest.raises(Unavailable, match="the client is closed"):
        closed.producer.enqueue(jobs, 1)


def test_ten_threads_that_wait_for_messages_share_two_connections(
    native: Native, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On a crowded machine the first connection may take longer to open than others wait for it.
    monkeypatch.setattr("pgqrs_core.drivers.shelf.GRACE", 20.0)
    names = [f"queue {number}" for number in range(10)]
    for name in names:
        client.admin.create_queue(name)
    fresh = native.client()
    together = threading.Barrier(len(names))
    found: list[Any] = []

    def wait(name: str) -> None:
        together.wait()
        found.append(fresh.consumer.read_batch(name, wait=20)[0].payload)

    threads = [threading.Thread(target=wait, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for name in names:
        client.producer.enqueue(name, name)
    for thread in threads:
        thread.join()

    assert sorted(found) == sorted(names)
    assert fresh.engine.connections.total <= 2


def test_a_client_survives_the_end_of_its_connections(client: Any, jobs: str, pgqrs_dsn: str) -> None:
    client.producer.enqueue(jobs, 1)
    with psycopg.connect(pgqrs_dsn, autocommit=True) as connection:
        terminate_others(connection)
        assert eventually(lambda: connection.execute(OURS).fetchone() == (0,))

    client.producer.enqueue(jobs, 2)

    assert payloads(client.consumer.read_batch(jobs)) == [1, 2]


def test_a_client_is_a_context_manager_that_leaves_no_connection(pgqrs_dsn: str) -> None:
    with Client(pgqrs_dsn) as client:
        client.admin.install()
        client.admin.create_queue("jobs")
        client.consumer.read("jobs", wait=0.01)

    with psycopg.connect(pgqrs_dsn) as connection:
        assert eventually(lambda: connection.execute(OURS).fetchone() == (0,))


# Handles


def test_a_leased_message_is_acked_at_the_end_of_the_block(client: Any, jobs: str) -> None:
    client.producer.enqueue(jobs, 1)

    with client.consumer.lease(jobs) as message:
        assert backlog(client, jobs) == {"in_flight": 1}

    assert message.settled
    assert backlog(client, jobs) == {}


def test_a_leased_message_is_archived_when_asked(client: Any, jobs: str) -> None:
    client.producer.enqueue(jobs, 1)

    with client.consumer.lease(jobs, archive=True):
        pass

    assert backlog(client, jobs) == {"archived": 1}


def test_a_lease_on_an_empty_queue_gives_none(client: Any, jobs: str) -> None:
    with client.consumer.lease(jobs) as message, client.consumer.lease_batch(jobs) as messages:
        assert (message, messages) == (None, [])


def test_a_leased_message_is_nacked_when_the_block_raises_and_keeps_the_traceback(client: Any) -> None:
    client.admin.create_queue("jobs", max_attempts=1)
    client.producer.enqueue("jobs", 1)

    with pytest.raises(ZeroDivisionError), client.consumer.lease("jobs"):
        divide_by_zero()

    error = client.admin.list_dead("jobs")[0].error
    assert (error["type"], error["message"]) == ("ZeroDivisionError", "division by zero")
    assert "in divide_by_zero" in error["traceback"]


def divide_by_zero() -> float:
    return 1 / 0


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
def test_a_leased_message_is_released_when_the_block_is_interrupted(
    client: Any, jobs: str, interruption: type[BaseException]
) -> None:
    client.producer.enqueue(jobs, 1)

    with pytest.raises(interruption), client.consumer.lease(jobs):
        raise interruption

    again = client.consumer.read(jobs)
    assert (again.payload, again.attempt) == (1, 1)


def test_what_the_block_settled_itself_is_left_alone(client: Any, jobs: str) -> None:
    client.producer.batch_enqueue(jobs, range(4))

    with client.consumer.lease_batch(jobs) as messages:
        client.consumer.nack(messages[0], delay=SOON)
        client.consumer.archive(messages[1])
        client.consumer.release(messages[2])

    assert backlog(client, jobs) == {"delayed": 1, "archived": 1, "ready": 1}


def test_what_the_block_settled_before_it_raised_is_left_alone(client: Any, jobs: str) -> None:
    client.producer.batch_enqueue(jobs, [1, 2])

    def handle() -> None:
        with client.consumer.lease_batch(jobs) as messages:
            client.consumer.dequeue(messages[0])
            divide_by_zero()

    with pytest.raises(ZeroDivisionError):
        handle()

    again = client.consumer.read_batch(jobs, wait=SOON)
    assert [(message.payload, message.attempt) for message in again] == [(2, 2)]


def test_a_lease_is_renewed_for_as_long_as_the_block_runs(native: Native, client: Any, jobs: str) -> None:
    client.producer.enqueue(jobs, 1)
    other = native.client()

    with client.consumer.lease(jobs, lock_time=1.0) as message:
        # More than two leases, by the patience of a consumer that would take it.
        stolen = other.consumer.read(jobs, wait=2.5)

    assert stolen is None
    assert not message.lease_lost
    assert backlog(client, jobs) == {}


def test_leases_of_several_lengths_are_each_renewed_in_time(native: Native, client: Any, jobs: str) -> None:
    client.producer.batch_enqueue(jobs, [1, 2])
    other = native.client()

    with client.consumer.lease(jobs, lock_time=SOON), client.consumer.lease(jobs, lock_time=0.5):
        assert other.consumer.read(jobs, wait=1.2) is None

    assert backlog(client, jobs) == {}


def test_held_messages_are_renewed_even_if_most_of_the_lease_is_over(native: Native, client: Any, jobs: str) -> None:
    client.producer.enqueue(jobs, 1)
    message = client.consumer.read(jobs, lock_time=1.5)
    other = native.client()
    assert other.consumer.read(jobs, wait=1.2) is None

    client.consumer.hold([message])

    assert other.consumer.read(jobs, wait=1.5) is None
    client.consumer.dequeue(message)


def test_a_lease_that_was_lost_meanwhile_is_flagged_logged_and_raised(
    native: Native, client: Any, jobs: str, pgqrs_dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    number = client.producer.enqueue(jobs, 1)

    def handle() -> None:
        with client.consumer.lease(jobs, lock_time=0.5) as message:
            with psycopg.connect(pgqrs_dsn) as connection:
                connection.execute("update pgqrs.q_jobs set lease_token = 1")
            eventually(lambda: message.lease_lost)

    with pytest.raises(LeaseLost):
        handle()

    assert f"the lease on message {number} of queue 'jobs' was lost" in caplog.text


def test_a_message_settled_in_the_block_is_renewed_no_more(client: Any, jobs: str) -> None:
    client.producer.enqueue(jobs, 1)

    with client.consumer.lease(jobs, lock_time=0.2) as message:
        client.consumer.nack(message, delay=SOON)
        # Long enough for a renewal of the settled lease, which would find it lost.
        client.consumer.read(jobs, wait=0.4)

    assert not message.lease_lost
