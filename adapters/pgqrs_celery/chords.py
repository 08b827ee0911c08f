"""Chords: the result of a header task, its count and the publication of the body belong together.

What a header task returned and that it returned are committed in one transaction. The transaction that completes the
count publishes the body too where the broker is in the same database: then it is published exactly once, whoever is
killed when. With another broker the claim to publish it is committed, the body is published, and the chord is marked as
finished; a claimer that was killed in between is replaced when its claim has run out, so there the body may be published
twice, if it was killed just after publishing.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

from celery import maybe_signature, states
from celery.exceptions import BackendStoreError, ChordError
from celery.result import GroupResult, allow_join_result, result_from_tuple
from celery.utils import abstract
from celery.utils.functional import _regen
from celery.utils.log import get_logger
from kombu.exceptions import EncodeError
from kombu.utils.encoding import ensure_bytes

from pgqrs_celery import chord_operations as operations
from pgqrs_celery.chord_operations import Claimed, Part
from pgqrs_celery.compat import publish_callback
from pgqrs_celery.encoding import decode, id_of, small
from pgqrs_celery.operations import store_result
from pgqrs_celery.publishing import publishing_in, shares_database
from pgqrs_core.errors import DecodeError, DecoderMissing, PgqrsError, Unavailable
from pgqrs_core.logs import error_text

__all__ = ["ChordsMixin"]

logger = get_logger(__name__)

#: As what the parts of a chord are kept, see `pgqrs_core.kept`.
_BODY: Final = "chord body"
_HEADER: Final = "chord header"
_PART: Final = "chord part"
#: Where a header task without a place in its group goes: behind all that have one.
_LAST = 2**31 - 1


class _Held:
    """The result of a header task, kept back until it can be stored together with its count."""

    def __init__(self, task_id: str) -> None:
        self.task_id = task_id
        self.row: dict[str, object] | None = None


class ChordsMixin:
    """The part of the backend that has to do with chords."""

    # From the backend.
    app: Any
    config: Any
    options: Any
    store: Any
    accept: Any
    content_type: str
    chord_expires: float | None

    _holding = threading.local()

    def mark_as_done(self, task_id: Any, result: Any, request: Any = None, *args: Any, **kwargs: Any) -> None:
        """Store a result; a header task's together with its count."""
        with self._held(task_id, request):
            super().mark_as_done(task_id, result, request, *args, **kwargs)  # type: ignore[misc]

    def mark_as_failure(
        self, task_id: Any, exc: Any, traceback: Any = None, request: Any = None, *args: Any, **kwargs: Any
    ) -> None:
        """Store a failure; a header task's together with its count."""
        with self._held(task_id, request):
            super().mark_as_failure(task_id, exc, traceback, request, *args, **kwargs)  # type: ignore[misc]

    def mark_as_revoked(self, task_id: Any, reason: str = "", request: Any = None, *args: Any, **kwargs: Any) -> None:
        """Store that a task was revoked; a header task's together with its count."""
        with self._held(task_id, request):
            super().mark_as_revoked(task_id, reason, request, *args, **kwargs)  # type: ignore[misc]

    def apply_chord(self, header_result_args: Any, body: Any, **kwargs: Any) -> None:
        """Note a chord that is about to be sent."""
        group_id, members = header_result_args[:2]
        header = None
        # The structure is needed to join nested groups; the parts are enough for everything else. It is taken from the
        # members: a GroupResult made here would stay among the pending results.
        if not isinstance(members, _regen) and any(isinstance(member, GroupResult) for member in members):
            structure = ((id_of(group_id), None), [member.as_tuple() for member in members])
            header = self.store.seal(self._encoded(structure), self.content_type, _HEADER, group=id_of(group_id))
        self._retried(operations.start_chord, id_of(group_id), header, self.content_type, self.chord_expires)

    def set_chord_size(self, group_id: Any, chord_size: int) -> None:
        """Note how many header tasks there are."""
        self._retried(operations.size_chord, id_of(group_id), chord_size, self.chord_expires)

    def add_to_chord(self, chord_id: Any, result: Any) -> None:
        """Let a chord wait for one task more."""
        self._retried(operations.add_to_chord, id_of(chord_id), self.chord_expires)

    def on_chord_part_return(self, request: Any, state: str, result: Any, **kwargs: Any) -> None:
        """Count a header task that returned, and publish the body after the last one."""
        if not request.group or not request.id:
            return
        place = small(request.group_index)
        place = _LAST if place is None else place
        group_id, task_id = id_of(request.group), id_of(request.id)
        value = self._encoded(self.encode_result(result, state))  # type: ignore[attr-defined]
        value = self.store.seal(value, self.content_type, _PART, group=group_id, place=place, task=task_id, state=state)
        part = Part(group_id, place, task_id, state, value, self.content_type)
        claimed = self._ensure_retryable(  # type: ignore[attr-defined]
            self._count,
            part,
            request.chord,
            fallback_exc=partial(BackendStoreError, task_id=request.id, state=state),
            fallback_msg="failed to store what a task of a chord returned",
        )
        if claimed is not None:
            chord, error = claimed
            self._conclude(chord, maybe_signature(request.chord, app=self.app), error)

    def take_over_chords(self) -> int:
        """Publish the bodies of chords whose claimers did not come to it; return how many chords that were.

        One that cannot be taken over does not keep the others from it.
        """
        taken = 0
        for group_id in self.store.run(operations.abandoned):
            chord = self.store.run(operations.claim_chord, group_id, claim=_number(), seconds=self._claim_seconds)
            if chord is None:
                continue
            try:
                taken += self._take_over(chord)
            except Exception as error:
                if isinstance(error, PgqrsError) and error.retryable:
                    raise
                # Its claim runs out, and it is tried again.
                logger.warning("chord %r cannot be taken over now: %s", group_id, error_text(error))
        return taken

    def _take_over(self, chord: Claimed) -> bool:
        """Conclude a chord with its kept body; give it up where that is not what a worker of ours has kept."""
        try:
            assert chord.body is not None
            opened = self.store.open(chord.body, chord.body_type or "", _BODY, group=chord.group_id)
            body = maybe_signature(
                decode(opened, chord.body_type or "", self.accept, self.options.max_result_bytes), app=self.app
            )
            if not isinstance(body, abstract.CallableSignature):
                raise DecodeError(chord.body_type or "", "it is no signature of a task")
        except DecoderMissing as error:
            # Another worker may have the key.
            logger.warning("chord %r is left to a worker that can read its body: %s", chord.group_id, error)
            return False
        except Exception as error:
            # Not the errbacks of a body that cannot be trusted, nor a result under its id.
            text = "Chord %r failed: its kept body is refused, and nothing of it is published: %s"
            logger.error(text, chord.group_id, error_text(error))  # noqa: TRY400 - the text says it all
            self.store.run(operations.finish_chord, chord)
            return False
        logger.warning("taking over chord %s, whose body was not published in time", chord.group_id)
        self._conclude(chord, body)
        return True

    @contextmanager
    def _held(self, task_id: Any, request: Any) -> Iterator[None]:
        """Keep the result of a header task back until it is counted."""
        if not (request and request.chord and request.group):
            yield
            return
        before = getattr(self._holding, "held", None)
        held = self._holding.held = _Held(id_of(task_id))
        try:
            yield
        finally:
            self._holding.held = before
        if held.row is not None:
            # It was not counted after all.
            self._retried(store_result, held.row)

    def _keep(self, row: dict[str, object]) -> None:
        """Store a row, or keep it back."""
        held: _Held | None = getattr(self._holding, "held", None)
        if held is not None and held.task_id == row["task_id"]:
            held.row = row
        else:
            self.store.run(store_result, row)

    def _count(self, part: Part, body: Any) -> tuple[Claimed, Exception | None] | None:
        """Store and count what a header task returned, in one transaction.

        Returns:
            The complete chord, for the caller to conclude, and what went wrong with it so far; None if there is nothing
            left to do.
        """
        held: _Held | None = getattr(self._holding, "held", None)
        error: Exception | None = None
        with self.store.transaction() as connection:
            if held is not None and held.row is not None:
                self.store.run(store_result, held.row)
            chord = self.store.run(
                operations.return_part,
                part,
                claim=_number(),
                seconds=self._claim_seconds,
                expires=self.chord_expires,
            )
            if chord is not None and shares_database(self.app, self.config):
                error = self._publish_in(connection, chord, body)
                if error is None:
                    self.store.run(operations.finish_chord, chord)
                    chord = None
            if chord is not None:
                self._keep_body(chord, body)
        if held is not None:
            held.row = None
        return (chord, error) if chord is not None else None

    def _publish_in(self, connection: Any, chord: Claimed, body: Any) -> Exception | None:
        """Publish the body in the transaction; return what prevented it, with the transaction as it was before."""
        try:
            values = self._values(chord)
            with connection.transaction(), publishing_in(connection):
                self._publish(maybe_signature(body, app=self.app), values)
        except Exception as error:
            if connection.closed:
                # Nothing of the transaction is left: all of it is to be tried again.
                target = self.config.target
                raise Unavailable(f"lost the connection to {target}: {error}", target=target, in_flight=True) from error
            return error
        return None

    def _keep_body(self, chord: Claimed, body: Any) -> None:
        try:
            encoded = self.store.seal(self._encoded(body), self.content_type, _BODY, group=chord.group_id)
        except EncodeError:
            # Then only another run of a header task can take over.
            logger.debug("the body of chord %s cannot be kept", chord.group_id, exc_info=True)
        else:
            self.store.run(operations.keep_body, chord, encoded, self.content_type)

    def _conclude(self, chord: Claimed, body: Any, error: Exception | None = None) -> None:
        """Publish the body of a claimed chord, or let it fail."""
        try:
            if error is not None:
                raise _chord_error(error)
            try:
                values = self._values(chord)
                if not self._retried(operations.extend_claim, chord, self._claim_seconds):
                    logger.warning("chord %s was taken over by another worker", chord.group_id)
                    return
                self._publish(body, values)
            except Exception as problem:
                raise _chord_error(problem) from problem
        except ChordError as problem:
            logger.exception("Chord %r failed", chord.group_id)
            self.chord_error_from_stack(body, problem)  # type: ignore[attr-defined]
        self._retried(operations.finish_chord, chord)

    def _publish(self, body: Any, values: list[Any]) -> None:
        publish_callback(self.app, body.delay, values)

    def _values(self, chord: Claimed) -> list[Any]:
        """Return what the header's tasks returned, in order.

        Raises:
            ChordError: one of them failed.
        """
        if chord.header is None:
            return [self._value(chord.group_id, *part) for part in chord.parts]
        assert chord.content_type is not None
        opened = self.store.open(chord.header, chord.content_type, _HEADER, group=chord.group_id)
        header = result_from_tuple(
            decode(opened, chord.content_type, self.accept, self.options.max_result_bytes), self.app
        )
        # All have returned; joining a group that is not known to be ready would wait.
        header.on_ready()
        with allow_join_result():
            values: list[Any] = header.join_native(timeout=self.app.conf.result_chord_join_timeout, propagate=True)
        return values

    def _value(self, group_id: str, place: int, task_id: str, status: str, result: bytes, content_type: str) -> Any:
        opened = self.store.open(result, content_type, _PART, group=group_id, place=place, task=task_id, state=status)
        value = decode(opened, content_type, self.accept, self.options.max_result_bytes)
        if status in states.EXCEPTION_STATES:
            value = self.exception_to_python(value)  # type: ignore[attr-defined]
        if status in states.PROPAGATE_STATES:
            raise ChordError(f"Dependency {task_id} raised {value!r}") from value
        return value

    @property
    def _claim_seconds(self) -> float:
        return float(self.options.chord_claim_seconds)

    def _encoded(self, value: Any) -> bytes:
        return bytes(ensure_bytes(self.encode(value)))  # type: ignore[attr-defined]

    def _retried(self, make: Any, *args: Any) -> Any:
        return self._ensure_retryable(self.store.run, make, *args)  # type: ignore[attr-defined]


def _chord_error(error: Exception) -> ChordError:
    if isinstance(error, ChordError):
        return error
    chord_error = ChordError(f"Callback error: {error!r}")
    chord_error.__cause__ = error
    return chord_error


def _number() -> int:
    return secrets.randbits(62)
