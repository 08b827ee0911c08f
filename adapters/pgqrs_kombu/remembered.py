"""What this process has declared, so that a queue which is deleted under it can be declared again.

RabbitMQ tells a consumer that its queue was deleted, whereupon Kombu's users connect and declare anew; and a producer
declares once for each connection. Here a queue that is missing when it is needed is made as it was declared, with its
bindings. One that this process itself deletes is forgotten.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from amqp.exceptions import ChannelError

from pgqrs_core.errors import PgqrsError
from pgqrs_core.logs import get_logger
from pgqrs_kombu import topology
from pgqrs_kombu.errors import translated

if TYPE_CHECKING:
    from pgqrs_kombu.broker import Broker

__all__ = ["Remembered"]

_log = get_logger("pgqrs.kombu")

#: Queues that are remembered; with more than that, it begins anew.
_MOST: Final = 10_000

Arguments = Mapping[str, Any] | None


class Remembered:
    """Declarations of durable queues by this process. Threads may race here: the worst is to declare twice."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._exchanges: dict[str, dict[str, Any]] = {}
        self._queues: dict[str, Arguments] = {}
        self._bindings: dict[str, dict[tuple[str, str], Arguments]] = {}

    def exchange(self, name: str, **declaration: Any) -> None:
        """Remember how an exchange was declared."""
        if len(self._exchanges) > _MOST:
            self._exchanges.clear()
        self._exchanges[name] = declaration

    def queue(self, name: str, arguments: Arguments) -> None:
        """Remember how a queue was declared."""
        if len(self._queues) > _MOST:
            self._queues.clear()
            self._bindings.clear()
        self._queues[name] = arguments

    def binding(self, queue: str, exchange: str, routing_key: str, arguments: Arguments) -> None:
        """Remember a binding of a queue that is remembered."""
        if queue in self._queues:
            self._bindings.setdefault(queue, {})[exchange, routing_key] = arguments

    def forget_exchange(self, name: str) -> None:
        """An exchange was deleted here."""
        self._exchanges.pop(name, None)
        for bindings in list(self._bindings.values()):
            for key in [key for key in list(bindings) if key[0] == name]:
                bindings.pop(key, None)

    def forget_queue(self, name: str) -> None:
        """A queue was deleted here."""
        self._queues.pop(name, None)
        self._bindings.pop(name, None)

    def forget_binding(self, queue: str, exchange: str, routing_key: str) -> None:
        """A binding was removed here."""
        self._bindings.get(queue, {}).pop((exchange, routing_key), None)

    def restore(self, name: str) -> bool:
        """Declare a queue again that is missing, with its bindings; False where it was not declared here, or may not be."""
        if name not in self._queues:
            return False
        broker = self._broker
        bindings = dict(self._bindings.get(name, {}))
        try:
            with translated():
                broker.engine.transact(
                    topology.declare_queue,
                    name,
                    exclusive=False,
                    auto_delete=False,
                    arguments=self._queues[name],
                    owner=0,
                    options=broker.queue_options,
                )
                for (exchange, routing_key), arguments in bindings.items():
                    if exchange in self._exchanges:
                        broker.engine.run(topology.declare_exchange, exchange, **self._exchanges[exchange])
                    broker.engine.transact(topology.bind, name, exchange, routing_key, arguments, broker.channel)
        except (PgqrsError, ChannelError) as error:
            _log.warning("queue %r was deleted, and could not be declared again: %s", name, error)
            return False
        _log.warning("queue %r was deleted, and is declared again, with %d bindings", name, len(bindings))
        broker.engine.forget(name)
        broker.directory.forget(name)
        return True

    def restore_bound(self, exchange: str, routing_key: str) -> bool:
        """Declare those queues again that are missing of those bound here to an exchange; tell whether there are any.

        Any that are bound: another process may have declared a queue again since it was missing.
        """
        if exchange:
            bound = [
                name for name, keys in list(self._bindings.items()) if any(key[0] == exchange for key in list(keys))
            ]
        else:
            bound = [routing_key] if routing_key in self._queues else []
        for name in bound:
            if not self._is_missing(name) or not self.restore(name):
                self._broker.engine.forget(name)
                self._broker.directory.forget(name)
        return bool(bound)

    def _is_missing(self, name: str) -> bool:
        return name in self._queues and self._broker.engine.run(topology.find_declared, name) is None
