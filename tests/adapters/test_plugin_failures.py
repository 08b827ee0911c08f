"""Plugins that fail while messages pass: what happens is defined, told in one line, and nothing is lost."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from pgqrs_core.errors import PluginError
from pgqrs_core.hookspecs import hookimpl
from pgqrs_core.plugins import Plugins
from pgqrs_core.serializers import JsonSerializer
from pgqrs_core.testing import eventually

from .native_support import Native, Seen


def with_hooks(native: Native, **hooks: Callable[..., Any]) -> Any:
    """Return a client on a queue ``jobs`` with short leases and one plugin, ``odd``."""
    plugins = Plugins.core()
    marked = {f"pgqrs_{name}": hookimpl(function) for name, function in hooks.items()}
    plugins.register(SimpleNamespace(**marked), "odd")
    client = native.client(plugins=plugins)
    client.admin.install()
    client.admin.create_queue("jobs", lease_seconds=1, backoff_base=0.05, max_attempts=10)
    return client


def about_plugins(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [one.getMessage() for one in caplog.records if one.name == "pgqrs.plugins"]


def handle(native: Native, client: Any, count: int) -> Counter[int]:
    """Send and handle so many messages; return how often each was handled."""
    worker, seen = native.worker(client, prefetch=count), Seen()
    worker.handler("jobs")(lambda message: seen.add(message.payload))
    with native.working(worker):
        client.producer.batch_enqueue("jobs", range(count))
        seen.wait_for(count)
        eventually(lambda: client.admin.peek("jobs") == [])
    return Counter(seen.items)


def hang(native: Native, caplog: pytest.LogCaptureFixture, hook: str, seconds: float) -> None:
    never, first = threading.Event(), threading.Lock()

    def observe(event: object) -> None:
        if first.acquire(blocking=False):
            never.wait(seconds)

    client = with_hooks(native, **{hook: observe})

    handled = handle(native, client, 40)

    assert handled == Counter(range(40))
    # It is told once the observer is back, which may be after the worker has stopped.
    [line] = eventually(lambda: about_plugins(caplog))
    assert f"'odd': pgqrs_{hook} took" in line
    assert client.admin.list_dead("jobs") == []


@pytest.mark.parametrize("hook", ["after_enqueue", "after_consume"])
def test_an_observer_that_hangs_for_several_leases_delays_and_nothing_is_handled_twice(
    native: Native, caplog: pytest.LogCaptureFixture, hook: str
) -> None:
    hang(native, caplog, hook, 2.5)


@pytest.mark.slow
@pytest.mark.parametrize("hook", ["after_enqueue", "after_consume"])
def test_an_observer_that_hangs_for_ten_seconds_delays_and_nothing_is_handled_twice(
    native: Native, caplog: pytest.LogCaptureFixture, hook: str
) -> None:
    hang(native, caplog, hook, 10)


@pytest.mark.parametrize("hook", ["after_enqueue", "after_consume"])
@pytest.mark.parametrize("wrong", [ZeroDivisionError("no"), "a return value"], ids=repr)
def test_an_observer_that_raises_or_returns_something_is_not_noticed(
    native: Native, caplog: pytest.LogCaptureFixture, hook: str, wrong: object
) -> None:
    def observe(event: object) -> object:
        if isinstance(wrong, Exception):
            raise wrong
        return wrong

    handled = handle(native, with_hooks(native, **{hook: observe}), 20)

    assert handled == Counter(range(20))
    lines = about_plugins(caplog)
    assert len(lines) == isinstance(wrong, Exception)
    assert all(f"'odd': pgqrs_{hook} failed and was ignored" in line for line in lines)


def test_a_hook_that_fails_now_and_then_before_consuming_costs_attempts_and_no_message(
    native: Native, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[int] = []

    def prepare(batch: Any) -> None:
        calls.append(len(batch.deliveries))
        if len(calls) <= 2:
            raise OSError("the key server is away")

    caplog.set_level(logging.WARNING)
    handled = handle(native, with_hooks(native, before_consume=prepare), 5)

    assert handled == Counter(range(5))
    told = [one.getMessage() for one in caplog.records if "key server is away" in one.getMessage()]
    assert told
    assert all("'odd'" in line and "\n" not in line for line in told)


def test_a_hook_that_fails_before_enqueuing_refuses_the_batch_by_its_plugins_name(native: Native) -> None:
    def refuse(batch: Any) -> None:
        raise OSError("the key server is away")

    client = with_hooks(native, before_enqueue=refuse)

    with pytest.raises(PluginError, match=r"'odd': pgqrs_before_enqueue: OSError: the key server is away"):
        client.producer.batch_enqueue("jobs", range(5))
    assert client.admin.peek("jobs") == []


def test_two_serializers_for_one_content_type_refuse_and_name_each_other_until_one_is_blocked(native: Native) -> None:
    class Rival(JsonSerializer):
        pass

    client = with_hooks(native, serializers=lambda: [Rival()])

    with pytest.raises(PluginError, match=r"'odd'.*application/json, as plugin 'json' does; block one of them"):
        client.producer.enqueue("jobs", 1)
    assert client.admin.peek("jobs") == []


@pytest.mark.parametrize("encoded", ["text", None, bytearray(b"x")], ids=repr)
def test_a_serializer_that_returns_no_bytes_is_named_and_nothing_is_stored(native: Native, encoded: object) -> None:
    class Odd:
        content_type = "text/odd"

        def handles(self, payload: object) -> bool:
            return True

        def encode(self, payload: object) -> object:
            return encoded

        def decode(self, body: bytes, type_: object = None) -> object:
            return body

    client = with_hooks(native, serializers=lambda: [Odd()])

    with pytest.raises(PluginError, match=r"'odd': Odd.encode returned .*, not bytes"):
        client.producer.enqueue("jobs", 1)
    assert client.admin.peek("jobs") == []


def test_what_a_plugin_drops_or_buries_is_reported_like_all_that_is_settled(native: Native) -> None:
    seen: list[tuple[str, str | None, float | None]] = []

    def sort_out(batch: Any) -> None:
        for place, delivery in enumerate(list(batch.deliveries)):
            if place == 0:
                batch.drop(delivery, "stale")
            elif place == 1:
                batch.bury(delivery, "forged")

    def note(event: Any) -> None:
        seen.extend((one.kind, one.error, one.seconds_in_handler) for one in event.outcomes)

    client = with_hooks(native, before_consume=sort_out, after_consume=note)
    client.producer.batch_enqueue("jobs", range(3))

    assert [message.payload for message in client.consumer.read_batch("jobs", count=3)] == [2]
    assert seen == [("acked", None, None), ("dead", "forged", None)]
