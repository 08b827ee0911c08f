"""Call the hooks of a batch: know whether anybody listens, name the plugin that failed, contain observers.

The engine asks an attribute before it builds a batch, so a hook without implementations costs one look-up.
pluggy's own call is not used here: it stops at the first exception and does not say whose it was.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from datetime import datetime
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from pgqrs_core.codecs import CodecStack
from pgqrs_core.errors import InvalidArgument, PgqrsError, PluginError
from pgqrs_core.forks import Lock
from pgqrs_core.interrupts import is_interrupt
from pgqrs_core.logs import error_text, get_logger
from pgqrs_core.messages import MAX_PRIORITY, MAX_SECONDS, check_number

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import pluggy

    from pgqrs_core.events import Claimed, ConsumeBatch, Consumed, Draft, EnqueueBatch, Enqueued, Handling
    from pgqrs_core.messages import Delivery

__all__ = ["SLOW_SECONDS", "Hooks"]

#: The hooks of a batch; the others are asked while a plugin is loaded.
_CALLED: Final = (
    "pgqrs_before_enqueue",
    "pgqrs_after_enqueue",
    "pgqrs_after_claim",
    "pgqrs_before_consume",
    "pgqrs_after_consume",
    "pgqrs_around_enqueue",
    "pgqrs_around_handler",
)

#: An observing hook that takes longer than this many seconds is warned about, once.
SLOW_SECONDS = 1.0

_logger = get_logger("pgqrs.plugins")


class _Call(NamedTuple):
    """One plugin's implementation of a hook."""

    plugin: str
    distribution: str | None
    function: Callable[[Any], object]

    @classmethod
    def of(cls, found: pluggy.HookImpl, distribution: str | None) -> _Call:
        function = found.function
        # An implementation may leave the argument out.
        return cls(found.plugin_name, distribution, function if found.argnames else lambda _: function())

    def transform(self, hook: str, batch: object) -> None:
        try:
            self.function(batch)
        except PgqrsError:
            raise
        except Exception as error:
            if is_interrupt(error):
                raise
            raise self.failed(hook, f"{type(error).__name__}: {error_text(error)}") from error

    def failed(self, hook: str, reason: str) -> PluginError:
        return PluginError(self.plugin, f"{hook}: {reason}", distribution=self.distribution)


class Hooks:
    """The hooks of a batch, ready to be called from any thread.

    Attributes:
        codecs: What encodes bodies; their own ``pgqrs_codecs`` hook was called while plugins were loaded.
        transforms_enqueue: Whether any plugin implements ``pgqrs_before_enqueue``; so for the others.
        transforms_consume: ``pgqrs_before_consume``.
        observes_enqueue: ``pgqrs_after_enqueue``.
        observes_claim: ``pgqrs_after_claim``.
        observes_consume: ``pgqrs_after_consume``.
        surrounds_enqueue: ``pgqrs_around_enqueue``.
        surrounds_handler: ``pgqrs_around_handler``.
        after_enqueue: Tells each plugin what was written. Raises nothing of theirs; so for the others.
        after_claim: What was claimed.
        after_consume: What became of claimed messages.
    """

    __slots__ = (
        "_calls",
        "_lock",
        "_reported",
        "after_claim",
        "after_consume",
        "after_enqueue",
        "codecs",
        "observes_claim",
        "observes_consume",
        "observes_enqueue",
        "surrounds_enqueue",
        "surrounds_handler",
        "transforms_consume",
        "transforms_enqueue",
    )

    def __init__(self) -> None:
        self._lock = Lock()
        self._reported: set[tuple[str, ...]] = set()
        self.codecs = CodecStack()
        self._set(dict.fromkeys(_CALLED, ()))

    def refresh(
        self,
        manager: pluggy.PluginManager,
        distributions: Mapping[str, str | None],
        codecs: CodecStack,
    ) -> None:
        """Take over what is registered now. Calls under way finish with what they began with.

        Args:
            manager: Where the plugins are registered.
            distributions: The distribution of each plugin, for errors.
            codecs: The codecs of all plugins.
        """
        self.codecs = codecs

        def calls(hook: str, *, mirrored: bool = False) -> tuple[_Call, ...]:
            found = list(reversed(getattr(manager.hook, hook).get_hookimpls()))
            if mirrored:
                # pluggy puts the last of those marked first, and the first of those marked last, outermost on
                # either way; only what is between them must be turned round to undo the other way.
                first = [one for one in found if one.tryfirst]
                last = [one for one in found if one.trylast and not one.tryfirst]
                between = [one for one in found if not one.tryfirst and not one.trylast]
                found = [*first, *reversed(between), *last]
            return tuple(_Call.of(one, distributions.get(one.plugin_name)) for one in found)

        self._set({hook: calls(hook, mirrored=hook == "pgqrs_before_consume") for hook in _CALLED})

    def _set(self, calls: dict[str, tuple[_Call, ...]]) -> None:
        self._calls = calls
        self.transforms_enqueue = bool(calls["pgqrs_before_enqueue"])
        self.transforms_consume = bool(calls["pgqrs_before_consume"])
        self.observes_enqueue = bool(calls["pgqrs_after_enqueue"])
        self.observes_claim = bool(calls["pgqrs_after_claim"])
        self.observes_consume = bool(calls["pgqrs_after_consume"])
        self.surrounds_enqueue = bool(calls["pgqrs_around_enqueue"])
        self.surrounds_handler = bool(calls["pgqrs_around_handler"])

        def observer(hook: str) -> Callable[[Any], None]:
            return partial(self._observe, hook, calls[hook])

        self.after_enqueue: Callable[[Enqueued], None] = observer("pgqrs_after_enqueue")
        self.after_claim: Callable[[Claimed], None] = observer("pgqrs_after_claim")
        self.after_consume: Callable[[Consumed], None] = observer("pgqrs_after_consume")

    def concern_enqueue(self, queue: str, drafts: Sequence[Draft]) -> bool:
        """Return whether `before_enqueue` has anything to do; without plugins this is all that a batch costs."""
        return self.transforms_enqueue or self.codecs.concerns_drafts(queue, drafts)

    def concern_consume(self, queue: str, deliveries: Sequence[Delivery], names: Sequence[str] = ()) -> bool:
        """Return whether `before_consume` has anything to do; ``names`` are those by whose rules it decodes, too."""
        return self.transforms_consume or self.codecs.concerns(queue, deliveries, names)

    def before_enqueue(self, batch: EnqueueBatch, *, encode: bool = True) -> None:
        """Let each plugin change or veto a batch that is about to be written, then encode it.

        Without ``encode`` the caller does that, once it knows where each message goes.

        Raises:
            InvalidArgument: The batch could not be written as it came; no plugin was called.
            PgqrsError: What a plugin raised, if it is of pgqrs.
            PluginError: A plugin raised something else, or left a batch that cannot be written.
        """
        hook, count = "pgqrs_before_enqueue", len(batch.drafts)
        for draft in batch.drafts:
            _check_draft(draft, batch.queue)
        for call in self._calls[hook]:
            call.transform(hook, batch)
            if len(batch.drafts) != count:
                raise call.failed(hook, "it added or removed drafts")
            try:
                for draft in batch.drafts:
                    _check_draft(draft, batch.queue)
            except InvalidArgument as error:
                raise call.failed(hook, f"it left a draft that cannot be written: {error}") from error
        if encode:
            self.codecs.encode(batch.drafts)

    def before_consume(self, batch: ConsumeBatch) -> None:
        """Decode messages that were just claimed, and let each plugin change, drop, dead-letter or postpone them.

        Raises:
            PgqrsError: What a plugin raised, if it is of pgqrs.
            PluginError: A plugin raised something else, or lost a delivery.
        """
        hook, count = "pgqrs_before_consume", batch.count
        self.codecs.decode(batch)
        for call in self._calls[hook]:
            call.transform(hook, batch)
            # A delivery that is simply missing would stay leased until its lease runs out.
            if batch.count != count:
                raise call.failed(hook, "it took deliveries out without drop(), bury() or postpone()")
            try:
                for delivery in batch.deliveries:
                    _check_body(delivery.body, delivery.content_type)
            except InvalidArgument as error:
                raise call.failed(hook, f"it left a message that cannot be read: {error}") from error

    def around_enqueue(self, batch: EnqueueBatch) -> AbstractContextManager[None]:
        """Return what plugins put around the writing of a batch. It raises nothing of theirs, and swallows nothing."""
        return _Around(self, "pgqrs_around_enqueue", batch)

    def around_handler(self, handling: Handling) -> AbstractContextManager[None]:
        """Return what plugins put around a handler. It raises nothing of theirs, and swallows nothing."""
        return _Around(self, "pgqrs_around_handler", handling)

    def _observe(self, hook: str, calls: Sequence[_Call], event: object) -> None:
        # In one frame, as in `_Around`: this runs between two waits for the server, where each costs a microsecond or two.
        for call in calls:
            began = perf_counter()
            try:
                call.function(event)
            except Exception as error:
                if is_interrupt(error):
                    raise
                self._failed(call, hook, error)
            if (seconds := perf_counter() - began) > SLOW_SECONDS:
                self._slow(call, hook, seconds)

    def _failed(self, call: _Call, hook: str, error: Exception) -> None:
        if self._first_time(call.plugin, hook, type(error).__qualname__):
            _logger.exception(
                "plugin %r: %s failed and was ignored; further %ss of it are not logged",
                call.plugin,
                hook,
                type(error).__name__,
            )

    def _slow(self, call: _Call, hook: str, seconds: float) -> None:
        if self._first_time(call.plugin, hook):
            _logger.warning(
                "plugin %r: %s took %.1f s and delays every batch; further delays are not logged",
                call.plugin,
                hook,
                seconds,
            )

    def _first_time(self, *kind: str) -> bool:
        with self._lock:
            if kind in self._reported:
                return False
            self._reported.add(kind)
            return True


class _Around(msgspec.Struct):
    """What plugins put around something. Written out: contextlib's generators take longer than all of this."""

    hooks: Hooks
    hook: str
    event: object
    entered: list[tuple[_Call, AbstractContextManager[object]]] = []

    def __enter__(self) -> None:
        for call in self.hooks._calls[self.hook]:
            began = perf_counter()
            try:
                manager: Any = call.function(self.event)
                if manager is not None:
                    manager.__enter__()
                    self.entered.append((call, manager))
            except BaseException as error:
                if is_interrupt(error):
                    # What was entered is left, for no one else will.
                    self.__exit__(type(error), error, error.__traceback__)
                    raise
                self.hooks._failed(call, self.hook, error)  # type: ignore[arg-type]
            if (seconds := perf_counter() - began) > SLOW_SECONDS:
                self.hooks._slow(call, self.hook, seconds)

    def __exit__(self, *ended: Any) -> None:
        interrupt: BaseException | None = None
        while self.entered:
            call, manager = self.entered.pop()
            began = perf_counter()
            try:
                manager.__exit__(*ended)
            except BaseException as error:
                if not is_interrupt(error):
                    self.hooks._failed(call, self.hook, error)  # type: ignore[arg-type]
                elif error is not ended[1]:
                    # Once all others have been left.
                    interrupt = error
            if (seconds := perf_counter() - began) > SLOW_SECONDS:
                self.hooks._slow(call, self.hook, seconds)
        if interrupt is not None:
            raise interrupt


def _check_draft(draft: Draft, queue: str) -> None:
    """Raise `InvalidArgument` if a draft cannot be written."""
    if draft.queue != queue:
        raise InvalidArgument("a draft's queue", draft.queue, f"that of the batch, {queue!r}")
    _check_body(draft.body, draft.content_type)
    if draft.headers is not None and not isinstance(draft.headers, dict):
        raise InvalidArgument("headers", type(draft.headers), "a dict or None")
    check_number("priority", draft.priority, 0, MAX_PRIORITY, whole=True)
    if draft.delay is not None:
        check_number("delay", draft.delay, 0, MAX_SECONDS)
    if draft.at is not None and not isinstance(draft.at, datetime):
        raise InvalidArgument("at", draft.at, "a datetime or None")
    if draft.ttl is not None:
        check_number("ttl", draft.ttl, 0, MAX_SECONDS, above=True)


def _check_body(body: object, content_type: object) -> None:
    if type(body) is not bytes:
        raise InvalidArgument("body", body, "bytes")
    if not isinstance(content_type, str) or not content_type:
        raise InvalidArgument("content type", content_type, "a text that is not empty")
