"""A consumer that asks for messages and does all that is allowed with them, beyond the ends of its leases too."""

from __future__ import annotations

import os
import random
import time
from typing import Any, NamedTuple, Protocol

from actors.options import Notes, Options, now
from pgqrs_core.errors import PgqrsError, Unavailable
from pgqrs_core.messages import Lease

__all__ = ["Held", "Receiver", "consume"]


class Held(NamedTuple):
    """A delivery, as the adapters show it here. Those that are overheard need not know its lease."""

    key: str
    lease: Lease | None
    attempt: int
    raw: Any


class Receiver(Protocol):
    """What such a consumer needs of an adapter."""

    #: What it does with messages, by chance.
    kinds: tuple[str, ...]
    #: Whether it renews leases by itself.
    renews_itself: bool

    def receive(self, limit: int) -> list[Held]: ...

    def settle(self, what: str, held: list[Held], delay: float) -> list[bool] | None: ...

    def extend(self, held: list[Held], lease: float) -> list[bool]: ...


def consume(receiver: Receiver, notes: Notes, name: str, options: Options) -> None:
    """Consume until there is nothing, and it is allowed to end."""
    _Consumer(receiver, notes, name, options).run()


class _Consumer:
    def __init__(self, receiver: Receiver, notes: Notes, name: str, options: Options) -> None:
        self._receiver = receiver
        self._notes = notes
        self._options = options
        self._chance = random.Random(name)
        self._kept: list[Held] = []

    def run(self) -> None:
        options = self._options
        busy_at = now()
        while True:
            found = self._receive()
            if found is None:
                busy_at = now()
                time.sleep(0.05)
                continue
            if not found:
                if self._kept and self._receiver.renews_itself:
                    # Renewed for as long as this process lives, they would never go to anybody else.
                    kept, self._kept = self._kept, []
                    self._settle("ack", kept, 0.0)
                if os.path.exists(options.done) and now() - busy_at > 2 * options.lease + options.idle:
                    return
                time.sleep(0.01)
                continue
            busy_at = now()
            if options.mortal and self._chance.random() < 0.02:
                os._exit(9)
            self._handle(found)

    def _receive(self) -> list[Held] | None:
        """Return what there is; None if that failed."""
        options = self._options
        limit = options.batch if options.plain else self._chance.choice([1, options.batch])
        began = now()
        try:
            found = self._receiver.receive(limit)
        except (PgqrsError, OSError) as error:
            self._notes("unnoted", claims=options.batch, error=f"{type(error).__name__}: {error}")
            return None
        ended = now()
        for item in found:
            if item.lease is not None:
                fields = {"key": item.key, "attempt": item.attempt, "lease": options.lease}
                self._notes("claimed", **fields, **_named(item.lease), began=began, ended=ended)
        return found

    def _handle(self, found: list[Held]) -> None:
        options, chance = self._options, self._chance
        self._kept += found
        if not options.plain and chance.random() < options.slow:
            # Slower than its lease; half of the time it renews it on the way.
            time.sleep(0.6 * options.lease)
            if chance.random() < 0.5:
                self._extend()
            time.sleep(0.6 * options.lease)
        # Some are kept beyond their leases, and asked about all the same.
        chosen = self._kept if options.plain else [item for item in self._kept if chance.random() < 0.8]
        self._kept = [item for item in self._kept if item not in chosen]
        what = "ack" if options.plain else chance.choice(self._receiver.kinds)
        self._settle(what, chosen, chance.choice([0.0, 0.1]))

    def _settle(self, what: str, chosen: list[Held], delay: float) -> None:
        began = now()
        leases = [item.lease for item in chosen if item.lease is not None]
        for lease in leases:
            self._notes("settling", what=what, **_named(lease), began=began)
        answers, sure = self._ask(what, chosen, delay)
        ended = now()
        for lease, answer in zip(leases, answers):
            # What a lost first try did is not told by the refusal of a second.
            if answer or sure:
                self._notes("settled", what=what, **_named(lease), ok=answer, began=began, ended=ended)

    def _ask(self, what: str, chosen: list[Held], delay: float) -> tuple[list[bool], bool]:
        """Return the answers, if there are any, and whether they are those of the first try."""
        for number in range(3):
            try:
                return self._receiver.settle(what, chosen, delay) or [], not number
            except (PgqrsError, OSError) as error:
                self._notes("unanswered", what=what, error=f"{type(error).__name__}: {error}")
                if isinstance(error, Unavailable):
                    time.sleep(0.05)
        return [], False

    def _extend(self) -> None:
        began = now()
        try:
            answers = self._receiver.extend(self._kept, self._options.lease)
        except (PgqrsError, OSError):
            return
        for item, answer in zip(self._kept, answers):
            if item.lease is not None:
                fields = {**_named(item.lease), "ok": answer, "lease": self._options.lease}
                self._notes("extended", **fields, began=began, ended=now())


def _named(lease: Lease) -> dict[str, int]:
    return {"lane": lease.lane, "id": lease.message_id, "token": lease.token}
