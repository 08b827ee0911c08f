"""Compressed bodies expand to a limit, whoever compressed them."""

from __future__ import annotations

import zlib

import pgqrs_kombu
import pytest
from amqp.exceptions import PreconditionFailed
from kombu import Producer, Queue
from kombu.compression import compress, encoders
from pgqrs_kombu.compression import expand

from pgqrs_core.errors import DecodeError

from .kombu_support import Bench, Inbox

KINDS = ["application/x-gzip", "application/x-bz2", "application/x-lzma", "application/zstd", "application/x-brotli"]


@pytest.mark.parametrize("name", KINDS)
def test_a_bomb_is_refused_and_what_is_small_enough_is_expanded(name: str) -> None:
    if name not in encoders():
        pytest.skip(f"{name} is not installed")
    body, content_type = compress(b"x" * 1_000_000, name)

    assert expand(body, content_type, 1_000_000) == b"x" * 1_000_000
    with pytest.raises(DecodeError, match="more than 999,999 bytes"):
        expand(body, content_type, 999_999)


@pytest.mark.parametrize("name", KINDS)
def test_what_is_cut_off_is_refused(name: str) -> None:
    if name not in encoders():
        pytest.skip(f"{name} is not installed")
    body, content_type = compress(bytes(range(256)) * 100, name)

    with pytest.raises(DecodeError):
        expand(body[:-3], content_type)


def test_a_body_that_no_consumer_would_expand_is_refused_when_it_is_published(bench: Bench) -> None:
    connection = bench.connect(max_body_bytes=2_000_000)
    channel = connection.channel()
    Queue("jobs")(channel).declare()
    producer = Producer(channel)

    producer.publish("x" * 1_900_000, routing_key="jobs", compression="zlib")
    with pytest.raises(PreconditionFailed, match="expands to at most 2,000,000 bytes"):
        producer.publish("x" * 2_100_000, routing_key="jobs", compression="zlib")
    with pytest.raises(PreconditionFailed, match="expands to at most"), pgqrs_kombu.batch():
        producer.publish("x" * 2_100_000, routing_key="jobs", compression="zlib")

    assert bench.rows("jobs") == 1


def test_a_queue_that_takes_large_bodies_has_them_expanded(bench: Bench) -> None:
    Queue("large")(bench.connect(max_body_bytes=4_000_000).channel()).declare()
    connection = bench.connect(max_body_bytes=1_000_000)
    Producer(connection).publish("x" * 3_000_000, routing_key="large", compression="zlib")

    assert Inbox(connection, Queue("large")).bodies(1) == ["x" * 3_000_000]


def test_a_bomb_that_somebody_stored_is_an_error_of_its_own(bench: Bench) -> None:
    inbox = Inbox(bench.connect(), Queue("jobs"))
    Producer(bench.connect()).publish("small", routing_key="jobs", compression="zlib")
    bench.sql("update pgqrs.q_jobs set body = %s", zlib.compress(bytes(20_000_000)))

    with pytest.raises(DecodeError, match="more than 16,777,216 bytes"):
        inbox.bodies(1)
