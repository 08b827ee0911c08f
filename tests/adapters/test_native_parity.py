"""Both clients and both workers have one surface: what one learns, the other has."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from pgqrs_native import AsyncClient, AsyncWorker, Client, Worker
from pgqrs_native import async_client as asynchronous
from pgqrs_native import client as blocking

PAIRS = [
    (Client, AsyncClient),
    (blocking.Admin, asynchronous.AsyncAdmin),
    (blocking.Producer, asynchronous.AsyncProducer),
    (blocking.Consumer, asynchronous.AsyncConsumer),
    (Worker, AsyncWorker),
]

#: Plain on both sides: they wait for nothing.
NEVER_WAIT = {"hold", "handler", "batch_handler", "stop"}
CONTEXTS = {"lease", "lease_batch"}

#: The verbs that users of pgqrs know.
VERBS = {
    "admin": {
        *("install", "uninstall", "create_queue", "list_queues", "delete_queue", "purge_queue"),
        *("queue_metrics", "all_queues_metrics"),
    },
    "producer": {"enqueue", "batch_enqueue", "enqueue_delayed"},
    "consumer": {
        *("read", "read_batch", "dequeue", "dequeue_batch", "archive", "archive_batch", "extend_lock"),
        *("nack", "nack_batch", "release", "release_batch", "lease", "lease_batch"),
    },
}


def public(cls: type) -> dict[str, Any]:
    # What a class inherits is as public as what it says itself.
    return {name: function for name, function in inspect.getmembers(cls, inspect.isfunction) if name[0] != "_"}


METHODS = [(one, other, name) for one, other in PAIRS for name in sorted(public(one) | public(other))]


@pytest.mark.parametrize(("one", "other"), PAIRS, ids=lambda cls: cls.__name__)
def test_twins_have_the_same_public_names(one: type, other: type) -> None:
    def names(cls: type) -> set[str]:
        return {name for name in dir(cls) if not name.startswith("_")}

    assert names(one) == names(other)


@pytest.mark.parametrize(("one", "other", "name"), METHODS, ids=lambda value: getattr(value, "__name__", value))
def test_twins_have_the_same_signatures(one: type, other: type, name: str) -> None:
    mine, others = inspect.signature(public(one)[name]), inspect.signature(public(other)[name])

    assert list(mine.parameters.values()) == list(others.parameters.values())
    if name not in CONTEXTS:
        assert mine.return_annotation == others.return_annotation


@pytest.mark.parametrize(("one", "other"), PAIRS, ids=lambda cls: cls.__name__)
def test_twins_are_made_with_the_same_arguments(one: Any, other: Any) -> None:
    mine, others = (list(inspect.signature(cls.__init__).parameters.values())[1:] for cls in (one, other))

    def plain(parameters: list[inspect.Parameter]) -> list[tuple[str, Any, str]]:
        return [(item.name, item.kind, str(item.annotation).replace("Async", "")) for item in parameters]

    assert plain(mine) == plain(others)


@pytest.mark.parametrize(("one", "other", "name"), METHODS, ids=lambda value: getattr(value, "__name__", value))
def test_only_the_asynchronous_twin_is_awaited(one: type, other: type, name: str) -> None:
    function = public(other)[name]
    inner = inspect.unwrap(function)

    waits = inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(inner)
    assert waits == (name not in NEVER_WAIT)
    assert not inspect.iscoroutinefunction(public(one)[name])


@pytest.mark.parametrize(("one", "other", "name"), METHODS, ids=lambda value: getattr(value, "__name__", value))
def test_every_public_method_says_what_it_does(one: type, other: type, name: str) -> None:
    for cls in (one, other):
        first = (inspect.getdoc(public(cls)[name]) or "").split("\n")[0]
        assert first.endswith("."), f"{cls.__name__}.{name}: {first!r}"


@pytest.mark.parametrize("part", VERBS)
def test_the_verbs_that_users_know_are_there(part: str) -> None:
    for client in (Client("postgresql://nobody@nowhere/none"), AsyncClient("postgresql://nobody@nowhere/none")):
        assert VERBS[part] <= {name for name in dir(getattr(client, part)) if not name.startswith("_")}
