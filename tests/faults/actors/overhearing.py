"""Notes what the engine of this process is asked to do with messages, and what it answers.

Kombu's transport and Dramatiq's broker claim ahead of their consumers, renew leases from a thread and settle in batches,
and tell nobody. All of it goes through `Engine.run`, with an operation that is known by its name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final

from bodies import key_of

from actors.options import Notes, now
from pgqrs_core.engine import Engine
from pgqrs_core.errors import PgqrsError

__all__ = ["overhear"]

#: Gets what the operation gets, and is given its answer.
Listener = Callable[..., AbstractContextManager[list[Any]]]

#: What a verdict is called in a history: one who rejects or requeues has tried.
_CALLED: Final = {"requeue": "nack", "reject": "nack"}


def overhear(notes: Notes, *, handled: bool) -> None:
    """Begin to note. ``handled`` says that whatever is acked was run by a handler, which notes that itself."""
    run = Engine.run
    listeners = _Listeners(notes, handled=handled).by_operation

    def overheard(engine: Engine, make: Any, *args: Any, **kwargs: Any) -> Any:
        listener = listeners.get(getattr(make, "__name__", ""))
        if listener is None:
            return run(engine, make, *args, **kwargs)
        with listener(*args, **kwargs) as answers:
            answers.append(run(engine, make, *args, **kwargs))
        return answers[0]

    Engine.run = overheard  # type: ignore[method-assign]


class _Listeners:
    def __init__(self, notes: Notes, *, handled: bool) -> None:
        self._notes = notes
        self._handled = handled
        #: Leases about which an answer was lost. A second try's refusal does not tell what the first one did.
        self._unsure: set[Any] = set()
        self.by_operation: dict[str, Listener] = {
            "incoming": self._claim,
            "_settle": self._settle,
            "extend": self._extend,
            "replace": self._replace,
        }

    @contextmanager
    def _claim(self, queue: Any, marks: Any, *, limit: int, lease: float, **_: Any) -> Iterator[list[Any]]:
        answers: list[Any] = []
        began = now()
        try:
            yield answers
        except (PgqrsError, OSError) as error:
            self._notes("unnoted", claims=limit, error=f"{type(error).__name__}: {error}")
            raise
        ended = now()
        for delivery in answers[0]:
            named = _named(delivery.lease)
            key, attempt = key_of(delivery.body), delivery.attempt
            self._notes(
                "claimed",
                key=key,
                attempt=attempt,
                lease=lease,
                handled=self._handled,
                **named,
                began=began,
                ended=ended,
            )

    @contextmanager
    def _settle(self, verdicts: list[Any], *_: Any) -> Iterator[list[Any]]:
        what = _CALLED.get(verdicts[0].kind, verdicts[0].kind)
        with self._settled(what, [verdict.delivery.lease for verdict in verdicts]) as answers:
            yield answers

    @contextmanager
    def _settled(self, what: str, leases: list[Any]) -> Iterator[list[Any]]:
        answers: list[Any] = []
        began = now()
        for lease in leases:
            self._notes("settling", what=what, **_named(lease), began=began)
        try:
            yield answers
        except Exception:
            self._unsure.update(leases)
            raise
        ended = now()
        for lease, fate in zip(leases, answers[0], strict=True):
            ok = fate not in (False, "lost")
            if ok or lease not in self._unsure:
                self._notes("settled", what=what, **_named(lease), ok=ok, began=began, ended=ended)

    @contextmanager
    def _extend(self, queue: Any, leases: list[Any], seconds: float) -> Iterator[list[Any]]:
        answers: list[Any] = []
        began = now()
        yield answers
        for lease, ok in zip(leases, answers[0], strict=True):
            self._notes("extended", **_named(lease), ok=ok, lease=seconds, began=began, ended=now())

    @contextmanager
    def _replace(self, queue: Any, lease: Any, draft: Any, *_: Any, **__: Any) -> Iterator[list[Any]]:
        """One message is settled and another enqueued, both or neither.

        A refusal says nothing of the other one: whoever has the lease now may have enqueued it.
        """
        key = key_of(draft.body)
        answers: list[Any] = []
        self._notes("sending", key=key, at=now())
        with self._settled("replace", [lease]) as settled:
            yield answers
            settled.append(answers)
        if answers[0]:
            self._notes("sent", key=key, id=0, at=now())


def _named(lease: Any) -> dict[str, int]:
    return {"lane": lease.lane, "id": lease.message_id, "token": lease.token}
