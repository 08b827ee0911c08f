"""Sessions that accept no writes, as on a standby or where a provider has switched a full server to reading."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from harness import ask

from pgqrs_core.errors import EnqueueUnknown, ReadOnly
from pgqrs_core.operations import queues, schema

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from harness import Harness


class Switch:
    """Makes sessions of a database read-only that begin from now on; those that are open stay as they are."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._name = ask(dsn, "select current_database()")[0][0]

    def set(self, *, read_only: bool) -> None:
        setting = "on" if read_only else "off"
        options = "begin read write; alter database {} set default_transaction_read_only = {}; commit"
        ask(self._dsn, options.format(self._name, setting))


@pytest.fixture
def switch(pgqrs_dsn: str) -> Iterator[Switch]:
    switch = Switch(pgqrs_dsn)
    yield switch
    switch.set(read_only=False)


@pytest.fixture
def harness(open_harness: Callable[..., Harness], pgqrs_dsn: str, switch: Switch) -> Harness:
    """An engine whose idle sessions were opened while they could only read."""
    before = open_harness()
    before.transact(schema.install, "pgqrs")
    before.create("jobs")
    switch.set(read_only=True)
    harness = open_harness()
    links = [harness.do(harness.engine.connections.get, relaxed=relaxed) for relaxed in (True, False, False)]
    for link in links:
        harness.do(harness.engine.connections.put, link)
    assert len(harness.run(queues.list_queues)) == 1
    return harness


def test_while_nothing_can_be_written_an_enqueue_says_so_and_keeps_no_session(harness: Harness) -> None:
    with pytest.raises(ReadOnly, match=r"read-only transaction.*Nothing was changed.*target_session_attrs") as caught:
        harness.send()

    assert not isinstance(caught.value, EnqueueUnknown)
    assert not caught.value.in_flight
    assert harness.engine.connections.total == 0


@pytest.mark.parametrize("verb", ["enqueue", "claim", "transact"])
def test_sessions_that_could_only_read_are_replaced_once_writing_is_possible(
    harness: Harness, switch: Switch, verb: str
) -> None:
    switch.set(read_only=False)

    if verb == "enqueue":
        harness.send(b"a")
    elif verb == "claim":
        assert harness.bodies() == []
    else:
        harness.create("more")

    assert not harness.backends("query ilike '%read_only%'")
    assert harness.send(b"b")


def test_in_a_lent_transaction_it_is_said_and_the_next_one_writes(harness: Harness, switch: Switch) -> None:
    if harness.kind == "async":
        pytest.skip("only blocking engines lend transactions")
    with pytest.raises(ReadOnly), harness.engine.transaction() as connection:
        harness.run_in(connection, queues.pause_queue, "jobs")
    assert harness.engine.connections.total == 0
    switch.set(read_only=False)

    with harness.engine.transaction() as connection:
        harness.run_in(connection, queues.pause_queue, "jobs")


def test_a_consumer_that_sleeps_is_woken_after_its_session_could_only_read(harness: Harness, switch: Switch) -> None:
    with pytest.raises(ReadOnly):
        harness.take(patience=0.2)
    switch.set(read_only=False)

    assert harness.take(patience=0.3) == []
    harness.send(b"a")
    assert harness.bodies() == [b"a"]
