"""Surrounds actors with what plugins have for a handler, traces for instance, and times them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dramatiq.middleware import Middleware

from pgqrs_core.events import Handled, Handling
from pgqrs_dramatiq.delivery import Leased
from pgqrs_dramatiq.plugin import ADAPTER

if TYPE_CHECKING:
    from dramatiq.broker import Broker, MessageProxy

    from pgqrs_core.dispatch import Hooks

__all__ = ["Surround"]


class Surround(Middleware):
    """Stands at the end of the middleware, which is next to the actor.

    Args:
        hooks: returns the hooks of the plugins.
    """

    def __init__(self, hooks: Callable[[], Hooks]) -> None:
        self._hooks = hooks

    def before_process_message(self, broker: Broker, message: MessageProxy) -> None:
        """The actor is about to run."""
        if not isinstance(message, Leased):
            return
        message.began_at = time.monotonic()
        hooks = self._hooks()
        if hooks.surrounds_handler:
            delivery = message.delivery
            handled = Handled(delivery.id, delivery.attempt, delivery.raw_headers)
            surrounding = hooks.around_handler(Handling(message.queue_name, ADAPTER, [handled]))
            surrounding.__enter__()
            message.surrounding = surrounding

    def after_process_message(
        self, broker: Broker, message: MessageProxy, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        """The actor has run."""
        if not isinstance(message, Leased):
            return
        message.ended_at = time.monotonic()
        surrounding, message.surrounding = message.surrounding, None
        if surrounding is None:
            return
        try:
            surrounding.__exit__(
                type(exception) if exception else None, exception, getattr(exception, "__traceback__", None)
            )
        except BaseException as raised:
            # The actor's error is Dramatiq's to deal with.
            if raised is not exception:
                raise

    def after_skip_message(self, broker: Broker, message: MessageProxy) -> None:
        """Another middleware decided that the actor is not to run."""
        self.after_process_message(broker, message)
