"""Registers pickle with the classes and queues that are configured; by default with none."""

from __future__ import annotations

import re
from collections.abc import Callable

from pgqrs_core.errors import InvalidArgument
from pgqrs_core.events import ConsumeBatch, EnqueueBatch
from pgqrs_core.hookspecs import hookimpl
from pgqrs_core.plugin_settings import PluginSettings, Setting, matcher
from pgqrs_core.serializers import Serializer
from pgqrs_pickle.serializer import CONTENT_TYPE, PickleSerializer

__all__ = ["pgqrs_configure", "pgqrs_serializers"]

_SETTINGS = {
    "classes": Setting("names", "classes that may be pickled and unpickled, `module:name` each", ()),
    "queues": Setting("names", "queues in which that is allowed; `*` is any text", ("*",)),
}
_CLASS = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*\Z")


class _Limited:
    """Pickles, in some queues."""

    def __init__(self, serializer: PickleSerializer, allows: Callable[[str], bool]) -> None:
        self._serializer = serializer
        self._allows = allows

    @hookimpl
    def pgqrs_serializers(self) -> list[Serializer]:
        return [self._serializer]

    @hookimpl
    def pgqrs_before_enqueue(self, batch: EnqueueBatch) -> None:
        if any(draft.content_type == CONTENT_TYPE for draft in batch.drafts) and not self._allows(batch.queue):
            raise InvalidArgument(
                "content type", CONTENT_TYPE, f"another one in queue {batch.queue!r}; see plugins.pickle"
            )

    @hookimpl
    def pgqrs_before_consume(self, batch: ConsumeBatch) -> None:
        if self._allows(batch.queue):
            return
        for delivery in batch.deliveries:
            if delivery.content_type == CONTENT_TYPE:
                batch.bury(
                    delivery, f"{CONTENT_TYPE} is not allowed in queue {batch.queue!r}; see plugins.pickle.queues"
                )


@hookimpl
def pgqrs_configure(settings: PluginSettings) -> object:
    """Allow what is configured."""
    given = settings.read(_SETTINGS)
    for name in given["classes"]:
        if not _CLASS.match(name):
            raise settings.refused("classes", f"must hold classes as `module:name`, not {name!r}")
    if not given["classes"]:
        return None
    serializer = PickleSerializer(given["classes"])
    limited = given["queues"] != ("*",)
    return _Limited(serializer, matcher(given["queues"])) if limited else _Everywhere(serializer)


class _Everywhere:
    """Pickles in all queues; without a hook for each batch."""

    def __init__(self, serializer: PickleSerializer) -> None:
        self._serializer = serializer

    @hookimpl
    def pgqrs_serializers(self) -> list[Serializer]:
        return [self._serializer]


@hookimpl
def pgqrs_serializers() -> list[Serializer]:
    """Without classes: a serializer that says why it refuses."""
    return [PickleSerializer()]
