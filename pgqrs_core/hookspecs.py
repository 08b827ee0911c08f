"""Every hook of pgqrs and its contract.

A plugin is a module (or an object) that an entry point of the group ``pgqrs`` names. It marks its functions
with ``hookimpl`` and takes the arguments of the specification, or fewer. All hooks are plain functions: an
``async def``, a generator or a pluggy wrapper is refused when the plugin is loaded. ``docs/hooks.md`` holds
the same contracts as tables, with an example.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pluggy

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from pgqrs_core.codecs import Codec
    from pgqrs_core.events import Claimed, ConsumeBatch, Consumed, EnqueueBatch, Enqueued, Handling
    from pgqrs_core.plugin_settings import PluginSettings
    from pgqrs_core.serializers import Serializer

__all__ = [
    "API_VERSION",
    "OLDEST_API_VERSION",
    "AdapterInfo",
    "MigrationSource",
    "hookimpl",
    "hookspec",
    "pgqrs_adapters",
    "pgqrs_after_claim",
    "pgqrs_after_consume",
    "pgqrs_after_enqueue",
    "pgqrs_around_enqueue",
    "pgqrs_around_handler",
    "pgqrs_before_consume",
    "pgqrs_before_enqueue",
    "pgqrs_cli",
    "pgqrs_codecs",
    "pgqrs_configure",
    "pgqrs_migrations",
    "pgqrs_serializers",
]

#: The version of what is described here. A plugin may say which one it was made for, ``pgqrs_api = 1``. It rises when a
#: change would break plugins; adding hooks, fields and optional arguments does not.
API_VERSION = 1
#: The oldest that still works.
OLDEST_API_VERSION = 1

hookspec = pluggy.HookspecMarker("pgqrs")
hookimpl = pluggy.HookimplMarker("pgqrs")


class AdapterInfo(msgspec.Struct, frozen=True):
    """What an adapter says about itself to ``pgqrs doctor``.

    Attributes:
        name: What people call it, for example ``celery``; unique among the loaded plugins.
        version: Its own version.
        summary: One line: which programs it lets use the queues.
        check: Called by ``pgqrs doctor``; returns None when the adapter can work, else one sentence saying
            what is missing. It may import the framework; it must not connect anywhere.
    """

    name: str
    version: str
    summary: str
    check: Callable[[], str | None]


class MigrationSource(msgspec.Struct, frozen=True):
    """Where a plugin keeps the numbered scripts of its own tables.

    Attributes:
        component: The name under which the applied numbers are recorded; unique among the loaded plugins, and
            never changed once released.
        package: The import package that holds ``NNNN_title.sql`` files, and perhaps ``grants.sql``: what roles may do
            with the tables, whose names begin with the component and an underscore.
    """

    component: str
    package: str


# Registration: called once for each plugin while it is loaded. They describe; they do not act.


@hookspec
def pgqrs_configure(settings: PluginSettings) -> object:
    """Take the plugin's settings, and return what implements its other hooks with them.

    When: once for each set of settings in a process, before all other hooks of the plugin.
    Order: that of loading.
    Args: ``settings`` is a :class:`~pgqrs_core.plugin_settings.PluginSettings`; call its ``read`` with what the plugin
        declares. It is empty where nothing is configured.
    Returns: an object with hooks that takes the place of this one, so that two engines of one process may differ; or
        None to go on with this one.
    Errors: a ``ConfigurationError`` is raised by every engine with these settings: what is configured must work, or a
        queue would go on without its encryption. Anything else makes the plugin broken – and where it has settings,
        engines refuse to start as well.
    """


@hookspec
def pgqrs_serializers() -> list[Serializer]:  # type: ignore[empty-body]  # pluggy calls implementations only
    """Add serializers.

    When: once, while the plugin is loaded, in the loading thread; nothing is connected yet.
    Order: no matter. For encoding, plugins are asked in the order of loading and the core's serializers last.
    Returns: a list of :class:`~pgqrs_core.serializers.Serializer`. Two for one content type are an error that
        names both plugins, raised when the serializers are first needed.
    Errors: an exception, or another return value, makes the plugin broken: named, reported and skipped.
    """


@hookspec
def pgqrs_codecs() -> list[Codec]:  # type: ignore[empty-body]
    """Add codecs: compression, signatures, encryption.

    When: once, while the plugin is loaded, in the loading thread; nothing is connected yet.
    Order: no matter. Codecs are applied after all ``pgqrs_before_enqueue``, in the order of their stages, and undone
        before all ``pgqrs_before_consume``, as the header of each message says.
    Returns: a list of :class:`~pgqrs_core.codecs.Codec`, each with a name that no other plugin uses.
    Errors: an exception, or another return value, makes the plugin broken: named, reported and skipped.
    """


@hookspec
def pgqrs_adapters() -> AdapterInfo:  # type: ignore[empty-body]
    """Describe an adapter.

    When: once, while the plugin is loaded, in the loading thread. Leave heavy imports to ``check``.
    Order: no matter; adapters are listed in the order of loading.
    Returns: an :class:`AdapterInfo` whose name no other plugin uses.
    Errors: an exception, or another return value, makes the plugin broken: named, reported and skipped.
    """


@hookspec
def pgqrs_migrations() -> MigrationSource:  # type: ignore[empty-body]
    """Name the scripts of the plugin's own tables.

    When: once, while the plugin is loaded. The scripts run in ``pgqrs install``, after the core's, under the
        same advisory lock. A block ``drop`` in a script is not run there but in ``pgqrs uninstall``.
    Order: that of loading; a script must not need the tables of another plugin.
    Returns: a :class:`MigrationSource` whose component no other plugin uses.
    Errors: an exception, or another return value, makes the plugin broken: named, reported and skipped.
    """


@hookspec
def pgqrs_cli(app: Any) -> None:
    """Add commands to ``pgqrs``.

    When: at the start of the command, in its main thread; never in a program that uses the library.
    Order: pluggy's: the last loaded first, ``tryfirst`` and ``trylast`` are honoured.
    Args: ``app`` is the ``typer.Typer`` of the command; add commands or groups under a name of your own.
    Returns: nothing; a return value is ignored.
    Errors: an exception is reported with the plugin's name and the command goes on without its commands.
    """


# Transforming: on the way of every batch. They may change it, and they may fail it.


@hookspec
def pgqrs_before_enqueue(batch: EnqueueBatch) -> None:
    """Change or veto messages that are about to be written.

    When: once a batch, after encoding and before the first statement, in the thread or on the event loop that
        enqueues. It runs inside the caller's latency, so it must not block.
    Order: pluggy's: the last loaded first, ``tryfirst`` and ``trylast`` are honoured. Each plugin sees what
        the one before it left.
    Args: ``batch`` is an :class:`~pgqrs_core.events.EnqueueBatch`. All of a draft but its ``queue`` may be
        set; drafts are neither added nor removed.
    Returns: nothing; a return value is ignored.
    Errors: the enqueue fails and nothing is written. A ``PgqrsError`` reaches the caller unchanged, anything
        else as a ``PluginError`` that names the plugin, with the exception as its cause. So does a batch that
        breaks the rules above.
    """


@hookspec
def pgqrs_before_consume(batch: ConsumeBatch) -> None:
    """Decrypt, decompress, drop or dead-letter messages that were just claimed.

    When: once a batch, after the claim was committed and before decoding, in the thread or on the event loop
        that claims. The leases are running, so it must not block.
    Order: that of ``pgqrs_before_enqueue`` backwards, so what was wrapped last is unwrapped first: the first
        loaded first. A plugin that is ``tryfirst`` there is ``trylast`` here, and the other way round.
    Args: ``batch`` is a :class:`~pgqrs_core.events.ConsumeBatch`. Each delivery's ``headers``, ``body`` and
        ``content_type`` may be set; ``batch.drop(delivery, reason)`` deletes it unhandled, and
        ``batch.bury(delivery, reason)`` dead-letters it. Nothing else takes a delivery out of the batch.
    Returns: nothing; a return value is ignored.
    Errors: the whole batch fails: no handler sees it. A ``PgqrsError`` is passed on unchanged, anything else
        as a ``PluginError`` that names the plugin. To refuse one message, call ``bury`` instead.
    """


# Observing: after the fact, with frozen events. They change nothing and their errors stop nothing.


@hookspec
def pgqrs_after_enqueue(event: Enqueued) -> None:
    """Observe messages that were written.

    When: once a batch, after the commit, in the thread or on the event loop that enqueued. Not for what is
        enqueued within a transaction of the caller's: it may yet be rolled back.
    Order: pluggy's: the last loaded first, ``tryfirst`` and ``trylast`` are honoured.
    Args: ``event`` is an :class:`~pgqrs_core.events.Enqueued`, frozen.
    Returns: nothing; a return value is ignored.
    Errors: contained: logged once for each plugin, hook and kind of exception. One that takes over a second
        is warned about once.
    """


@hookspec
def pgqrs_after_claim(event: Claimed) -> None:
    """Observe messages that were claimed.

    When: once for each claim that found something, after its commit and before ``pgqrs_before_consume``, in the thread
        or on the event loop that claims.
    Order: pluggy's: the last loaded first, ``tryfirst`` and ``trylast`` are honoured.
    Args: ``event`` is a :class:`~pgqrs_core.events.Claimed`, frozen.
    Returns: nothing; a return value is ignored.
    Errors: contained: logged once for each plugin, hook and kind of exception. One that takes over a second
        is warned about once.
    """


@hookspec
def pgqrs_after_consume(event: Consumed) -> None:
    """Observe what became of messages that were claimed.

    When: once for each group of messages that were settled together, after their commit, in the thread or on
        the event loop that settled them.
    Order: pluggy's: the last loaded first, ``tryfirst`` and ``trylast`` are honoured.
    Args: ``event`` is a :class:`~pgqrs_core.events.Consumed`, frozen.
    Returns: nothing; a return value is ignored.
    Errors: contained: logged once for each plugin, hook and kind of exception. One that takes over a second
        is warned about once.
    """


# Surrounding: a context manager around a piece of work. It sees how the work ends, and changes nothing of it.


@hookspec
def pgqrs_around_enqueue(batch: EnqueueBatch) -> AbstractContextManager[object] | None:
    """Surround the writing of a batch, to make something current meanwhile and to see how it ends.

    When: once a batch, around ``pgqrs_before_enqueue`` and the statement that writes; within a transaction of the
        caller's too, and then it ends before the commit. In the thread or the task that enqueues.
    Order: pluggy's: the last loaded is the outermost, ``tryfirst`` and ``trylast`` are honoured.
    Args: ``batch`` is an :class:`~pgqrs_core.events.EnqueueBatch`. A draft's ``headers`` may be replaced by another
        dict, never changed in place: drafts share them. All else is for ``pgqrs_before_enqueue``. Its ``ids`` are there
        when the context manager is left, unless the write failed.
    Returns: a context manager, entered and left in the same context, or None.
    Errors: contained, those of entering and leaving included: logged once for each plugin, hook and kind of exception.
        It is told of the exception that ends the work, and cannot swallow it.
    """


@hookspec
def pgqrs_around_handler(handling: Handling) -> AbstractContextManager[object] | None:
    """Surround a call of a handler, to make something current meanwhile and to see how it ends.

    When: once for each call, in the thread, the task or the process that runs the handler: around the functions of a
        ``Worker``, around the block of ``consumer.lease()``, and around Celery's tasks.
    Order: pluggy's: the last loaded is the outermost, ``tryfirst`` and ``trylast`` are honoured.
    Args: ``handling`` is a :class:`~pgqrs_core.events.Handling`, frozen.
    Returns: a context manager, entered and left in the same context, or None.
    Errors: contained, those of entering and leaving included: logged once for each plugin, hook and kind of exception.
        It is told of the exception that ends the handler, and cannot swallow it.
    """
