"""What is settled while its lease is being renewed."""

from __future__ import annotations

import logging
import time
from contextlib import nullcontext
from datetime import datetime, timezone
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

from pgqrs_core.leases import LeaseKeeper, Renewal
from pgqrs_core.messages import Delivery, Queue, QueueOptions
from pgqrs_core.settling import Settler, Verdict

QUEUE = Queue(1, "q", "q", QueueOptions())


class Server:
    """Acks; a renewal that comes right after the ack is answered before it."""

    doorbell = None
    plugins = SimpleNamespace(hooks=SimpleNamespace(observes_consume=False))

    def __init__(self, *, acks: bool) -> None:
        self.acks = acks
        self.keeper = LeaseKeeper(self)  # type: ignore[arg-type]

    def run(self, make: Any, group: list[Verdict], doorbell: object) -> list[bool]:
        leases = [verdict.delivery.lease for verdict in group]
        self.keeper._ledger.renewed(Renewal(QUEUE, 60.0, leases), [False for _ in leases])
        return [self.acks for _ in leases]


@pytest.mark.parametrize(("acks", "said"), [(True, []), (False, ["its lease had passed to another consumer"])])
def test_a_renewal_that_meets_an_ack_says_nothing_of_a_lost_lease(
    acks: bool, said: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    server = Server(acks=acks)
    delivery = Delivery(0, 7, 1, 0, datetime.now(timezone.utc), "", None, b"", 42)
    server.keeper.hold(QUEUE, [delivery.lease], 60.0)
    settler = Settler(server, server.keeper, "test")  # type: ignore[arg-type]

    settler.give(Verdict("ack", QUEUE, delivery, time.time()))
    settler.close()
    server.keeper.close()

    assert len(caplog.messages) == len(said)
    assert all(text in message for text, message in zip(said, caplog.messages))


@pytest.mark.parametrize("text", ["can't create new thread at interpreter shutdown", "can't start new thread"])
def test_where_the_interpreter_starts_no_threads_any_more_closing_settles(text: str) -> None:
    """From Python 3.12 on; a system without room for a thread is an error as before."""
    server = Server(acks=True)
    delivery = Delivery(0, 7, 1, 0, datetime.now(timezone.utc), "", None, b"", 42)
    settler = Settler(server, server.keeper, "test")  # type: ignore[arg-type]
    ends = "shutdown" in text

    with (
        mock.patch("pgqrs_core.settling.start_thread", side_effect=RuntimeError(text)),
        nullcontext() if ends else pytest.raises(RuntimeError),
    ):
        settler.give(Verdict("ack", QUEUE, delivery, time.time()))
    assert settler.pending == 1
    settler.close()

    assert settler.pending == 0
