"""Declarations and bindings that were written by other means: no message of others is lost to them."""

from __future__ import annotations

import random

import psycopg
import pytest
from kombu import Exchange, Producer, Queue
from pgqrs_kombu import dead_letters
from pgqrs_kombu.patterns import pattern_of

from .kombu_support import Bench, Inbox

TOPICS = Exchange("topics", "topic")


@pytest.mark.parametrize(
    "pattern", ["(", "^(?:a(?:b)$", "^(?:(a*)*\\1)$", "[[:nope:]]", "a{100000}", "^(?:a\\1\\.)$", "\\"]
)
def test_a_pattern_that_is_not_of_ours_is_refused(bench: Bench, pattern: str) -> None:
    inbox = Inbox(bench.connect(), Queue("ear", TOPICS, routing_key="a.#", auto_delete=True))

    with pytest.raises(psycopg.errors.CheckViolation, match="kombu_bindings_pattern"):
        bench.sql("update pgqrs.kombu_bindings set pattern = %s", pattern)

    Producer(bench.connect()).publish("x", exchange=TOPICS, routing_key="a.b")
    assert inbox.bodies(1) == ["x"]


def test_every_binding_key_becomes_a_pattern_that_is_stored(bench: Bench) -> None:
    bench.connect().connect()
    rng = random.Random(7)
    words = [
        "*",
        "#",
        "",
        "a",
        "_",
        "é",
        "日本",
        "{",
        "}",
        "[",
        "]",
        "(",
        ")",
        "^",
        "$",
        "|",
        "\\",
        "-",
        "&",
        "~",
        "%",
        "\n",
        "'",
        "\\1",
    ]
    keys = [
        ".".join("".join(rng.choices(words, k=rng.randint(0, 3))) for _ in range(rng.randint(1, 4)))
        for _ in range(2000)
    ]

    bench.sql(
        "insert into pgqrs.kombu_queues (name, ephemeral, exclusive, auto_delete) values ('q', true, false, false)"
    )
    for key in set(keys):
        bench.sql(
            "insert into pgqrs.kombu_bindings (exchange, routing_key, queue_id, pattern) values ('e', %s, 1, %s) "
            "on conflict do nothing",
            key,
            f"^(?:{pattern_of(key)})$",
        )

    assert bench.sql("select count(*) from pgqrs.kombu_bindings") == [(len(set(keys)),)]


@pytest.mark.parametrize("column", ["message_ttl", "expires"])
@pytest.mark.parametrize("value", ["infinity", "-infinity", "nan", "1e300", "-1"])
def test_a_time_that_no_declaration_has_is_refused(bench: Bench, column: str, value: str) -> None:
    Inbox(bench.connect(), Queue("ear", TOPICS, routing_key="#", auto_delete=True))

    with pytest.raises(psycopg.errors.CheckViolation, match="kombu_queues_times"):
        bench.sql(f"update pgqrs.kombu_queues set {column} = %s::float8", value)


@pytest.mark.parametrize(
    "arguments", ["[1]", '{"x-max-length": "\\u0000"}', '{"x-max-length": {}}', '{"x-dead-letter-exchange": 1}', '"x"']
)
def test_arguments_that_no_declaration_has_leave_the_rules_of_other_queues_alone(bench: Bench, arguments: str) -> None:
    connection = bench.connect()
    channel = connection.channel()
    for name in ("good", "bad"):
        Queue(name, max_length=5)(channel).declare()
    bench.sql("update pgqrs.kombu_queues set arguments = %s::json where name = 'bad'", arguments)

    rules = connection.transport.broker.engine.run(dead_letters.queues_with_rules)

    assert list(rules) == ["good"]
