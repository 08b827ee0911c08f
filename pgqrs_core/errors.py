"""Every error that pgqrs raises, split by what the caller can do about it.

::

    PgqrsError
    ├── ConfigurationError          a setting is unknown, mistyped or contradictory: fix it and start again
    ├── InvalidArgument             an argument is out of range (also a ValueError); nothing was changed
    │   ├── InvalidQueueName
    │   └── BodyTooLarge
    ├── QueueNotFound
    ├── QueueExists                 it exists with other options
    ├── ArchiveDisabled             the queue keeps no archive
    ├── SchemaError                 run `pgqrs install`, or upgrade the package
    │   ├── SchemaMissing
    │   ├── SchemaTooOld
    │   ├── SchemaTooNew
    │   └── SchemaUnrecorded        tables without their version, as in a copy without data: `pgqrs install --repair`
    ├── PayloadError                about one payload; others are unaffected
    │   ├── EncodeError             it cannot be serialised
    │   ├── DecodeError             these bytes are not what their content type says
    │   │   └── DecoderMissing      its serializer, codec or key is not loaded here
    │   └── PayloadMismatch         it decodes, but does not fit the requested type
    ├── LeaseLost                   somebody else may hold this message now: do not apply its effects
    ├── Unavailable                 the server could not be reached or broke off: try again later
    │   ├── EnqueueUnknown          the connection broke while the commit was on its way
    │   ├── SchemaUnavailable       the tables that this process has used are gone: a restore, perhaps
    │   ├── ReadOnly                the server accepts no writes: a standby, or read-only by its settings
    │   └── TimedOut                the server did not answer a statement in time
    ├── ServerError                 the server refused a statement; the cause is chained
    │   ├── MessageIdsCollide       the ids of a queue come again: how to set its sequence
    │   ├── NotPermitted            for want of a right: which role to grant
    │   ├── QueuesFailed            some of many queues: which, and that the others are done
    │   └── TableLocked             another session keeps a table: which one, and what to do
    ├── WrongEventLoop              an asynchronous client is used in another event loop than its first
    └── PluginError                 a plugin failed to load or broke its contract

Each carries its facts as attributes and builds its sentence from them; each can be pickled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pgqrs_core.installing import install_command
from pgqrs_core.pasting import command, shell_quoted
from pgqrs_core.wording import show_value

__all__ = [
    "ArchiveDisabled",
    "Blocker",
    "BodyTooLarge",
    "ConfigurationError",
    "DecodeError",
    "DecoderMissing",
    "EncodeError",
    "EnqueueUnknown",
    "InvalidArgument",
    "InvalidQueueName",
    "LeaseLost",
    "MessageIdsCollide",
    "NotPermitted",
    "PayloadError",
    "PayloadMismatch",
    "PgqrsError",
    "PluginError",
    "QueueExists",
    "QueueNotFound",
    "QueuesFailed",
    "ReadOnly",
    "RoleMissing",
    "SchemaError",
    "SchemaMissing",
    "SchemaTooNew",
    "SchemaTooOld",
    "SchemaUnavailable",
    "SchemaUnrecorded",
    "ServerError",
    "TableLocked",
    "TimedOut",
    "Unavailable",
    "WrongEventLoop",
]


#: What the server refuses today and grants tomorrow, as SQLSTATEs or their first two characters (classes): a lost
#: connection, a conflict between transactions, want of memory, disk or connections, an administrator's action, trouble
#: of the operating system; a read-only session, an object in use, a lock that was not free in time.
_PASSING_CLASSES = frozenset({"08", "40", "53", "57", "58"})
_PASSING = frozenset({"25006", "55000", "55006", "55P03", "72000"})


class PgqrsError(Exception):
    """The root of all errors of pgqrs."""

    @property
    def retryable(self) -> bool:
        """Whether the same call may succeed later although nothing is changed in it; nothing was done."""
        return False

    def __init__(self, message: str, **fields: object) -> None:
        super().__init__(message)
        self.__dict__.update(fields)

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.args, self.__dict__))


def _rebuild(cls: type[PgqrsError], args: tuple[object, ...], fields: Mapping[str, object]) -> PgqrsError:
    """Unpickle an error without calling the subclass's own signature."""
    error = cls.__new__(cls)
    error.args = args
    error.__dict__.update(fields)
    return error


class ConfigurationError(PgqrsError):
    """A setting is unknown, has the wrong type, or contradicts another."""

    key: str | None
    source: str | None

    def __init__(self, message: str, *, key: str | None = None, source: str | None = None) -> None:
        where = f"{source}: " if source else ""
        super().__init__(f"{where}{message}", key=key, source=source)


class InvalidArgument(PgqrsError, ValueError):
    """An argument is out of range. Nothing was changed."""

    parameter: str
    value: object
    expected: str

    def __init__(self, parameter: str, value: object, expected: str) -> None:
        super().__init__(
            f"{parameter} must be {expected}, not {show_value(value)}",
            parameter=parameter,
            value=value,
            expected=expected,
        )


class InvalidQueueName(InvalidArgument):
    """A queue name is empty, too long, or holds what PostgreSQL's text cannot."""

    def __init__(self, name: object, expected: str) -> None:
        super().__init__("queue name", name, expected)


class BodyTooLarge(InvalidArgument):
    """A serialised body is over the queue's ``max_body_bytes``."""

    queue: str
    size: int
    limit: int

    def __init__(self, queue: str, size: int, limit: int) -> None:
        super().__init__("body", f"{size:,} bytes", f"at most {limit:,} bytes in queue {queue!r}")
        self.queue, self.size, self.limit = queue, size, limit


class QueueNotFound(PgqrsError, LookupError):
    """No queue of this name exists."""

    name: str
    similar: Sequence[str]

    def __init__(self, name: str, similar: Sequence[str] = ()) -> None:
        hint = f"; did you mean {' or '.join(map(repr, similar))}?" if similar else ""
        create = command("queue", "create", names=(name,))
        super().__init__(
            f"queue {name!r} does not exist{hint or '.'} Create it with `{create}` or admin.create_queue().",
            name=name,
            similar=tuple(similar),
        )


class QueueExists(PgqrsError):
    """A queue of this name exists with other options."""

    name: str
    differences: Mapping[str, tuple[object, object]]

    def __init__(self, name: str, differences: Mapping[str, tuple[object, object]]) -> None:
        shown = ", ".join(f"{key} is {old!r}, not {new!r}" for key, (old, new) in differences.items())
        changes = [
            word
            for key, (_, new) in differences.items()
            if key != "archive"
            for word in (f"--{key.replace('_', '-')}", "never" if new is None else str(new))
        ]
        super().__init__(
            f"queue {name!r} exists with other options: {shown}. "
            f"Change them with admin.alter_queue() or `{command('queue', 'alter', *changes, names=(name,))}`.",
            name=name,
            differences=dict(differences),
        )


class ArchiveDisabled(PgqrsError):
    """The queue was created with ``archive=False``; there is no archive to write or read."""

    name: str

    def __init__(self, name: str) -> None:
        super().__init__(
            f"queue {name!r} keeps no archive. Create queues with archive=True, or use dequeue().", name=name
        )


class SchemaError(PgqrsError):
    """The tables in the database do not fit this version of the code."""

    schema: str
    installed: int
    supported: int

    def __init__(self, message: str, *, schema: str, installed: int, supported: int) -> None:
        super().__init__(message, schema=schema, installed=installed, supported=supported)


class SchemaMissing(SchemaError):
    """Nothing is installed in this schema."""

    #: Whether it holds tables of something else, so that nothing is installed there unless a person says so.
    others: bool

    def __init__(self, schema: str, supported: int, *, others: bool = False) -> None:
        self.others = others
        found = "tables of something else" if others else f"found version 0, need {supported}"
        which = " if it is the right one, or name another schema" if others else ""
        super().__init__(
            f"schema {schema!r} holds no pgqrs tables ({found}). Run `{_install(schema)}`{which}.",
            schema=schema,
            installed=0,
            supported=supported,
        )


class SchemaTooOld(SchemaError):
    """The tables are older than the code."""

    #: A queue whose tables are not up to date, where an installation was interrupted; None where the schema is not.
    queue: str | None

    def __init__(self, schema: str, installed: int, supported: int, *, queue: str | None = None) -> None:
        what = f"has version {installed}, this code needs {supported}"
        if queue is not None:
            what = f"was not upgraded to the end: the tables of queue {queue!r} are older than version {supported}"
        self.queue = queue
        super().__init__(
            f"schema {schema!r} {what}. Run `{_install(schema)}`.",
            schema=schema,
            installed=installed,
            supported=supported,
        )


class SchemaTooNew(SchemaError):
    """The tables are newer than the code, by a step that old code does not survive."""

    def __init__(self, schema: str, installed: int, supported: int) -> None:
        super().__init__(
            f"schema {schema!r} has version {installed}, this code knows {supported}. "
            f"Upgrade with `{install_command(upgrade=True)}`.",
            schema=schema,
            installed=installed,
            supported=supported,
        )


class SchemaUnrecorded(SchemaError):
    """The tables are there, but not the record of their version: a copy without its data, or a restore that failed."""

    component: str

    def __init__(self, schema: str, supported: int, component: str) -> None:
        repair = _install(schema) + " --repair"
        super().__init__(
            f"schema {schema!r} holds tables of {component}, but not the record of their version: it is a copy without its "
            f"data, or a restore failed. Run `{repair}`, or restore all of it.",
            schema=schema,
            installed=0,
            supported=supported,
        )
        self.component = component


class PayloadError(PgqrsError):
    """One payload cannot be written or read. Other messages are unaffected."""


class EncodeError(PayloadError, ValueError):
    """A payload cannot be serialised. Nothing was written."""

    content_type: str
    reason: str

    def __init__(self, content_type: str, reason: str) -> None:
        super().__init__(
            f"the payload cannot be encoded as {content_type}: {reason}", content_type=content_type, reason=reason
        )


class DecodeError(PayloadError, ValueError):
    """A stored body is not what its content type says, or nothing here can read that type."""

    content_type: str
    reason: str

    def __init__(self, content_type: str, reason: str) -> None:
        # Whoever wrote it may have put anything there, and this goes to logs and into dead letters.
        harmless = content_type.isprintable() and len(content_type) <= 100
        shown = content_type if harmless else f"{content_type[:100]!a}"
        super().__init__(f"the body cannot be decoded as {shown}: {reason}", content_type=content_type, reason=reason)


class DecoderMissing(DecodeError):
    """What reads a body is not loaded in this process: its serializer, codec or key. In another process it may be."""


class PayloadMismatch(PayloadError, TypeError):
    """A payload was decoded but does not fit the type that the reader asked for."""

    type_name: str
    field: str
    reason: str

    def __init__(self, type_name: str, field: str, reason: str) -> None:
        super().__init__(
            f"the payload does not fit {type_name}: field {field!r}: {reason}",
            type_name=type_name,
            field=field,
            reason=reason,
        )


class LeaseLost(PgqrsError):
    """The lease on a message has passed to somebody else, or the message is gone."""

    queue: str
    message_id: int

    def __init__(self, queue: str, message_id: int) -> None:
        super().__init__(
            f"the lease on message {message_id} of queue {queue!r} was lost: another consumer may hold it, or it "
            "was already settled. Raise the lock time, or let the lease renew itself.",
            queue=queue,
            message_id=message_id,
        )


class Unavailable(PgqrsError, ConnectionError):
    """The server could not be reached, or the connection broke. Nothing was acknowledged; try again later."""

    target: str
    #: Whether a statement was on its way, so that its outcome is not known.
    in_flight: bool

    @property
    def retryable(self) -> bool:
        """True: the server may be back soon. With ``in_flight`` the call may have been carried out all the same."""
        return True

    def __init__(self, message: str, *, target: str = "", in_flight: bool = False) -> None:
        super().__init__(message, target=target, in_flight=in_flight)


class EnqueueUnknown(Unavailable):
    """The connection broke while an enqueue was being committed: it may or may not be stored.

    Enqueue again under the same idempotency key: then it is stored once, whatever became of the first try.
    """

    queue: str
    #: How the connection broke.
    reason: str
    #: Whether all messages had idempotency keys, so that enqueuing them again stores none twice.
    keyed: bool

    def __init__(self, queue: str, message: str, *, target: str = "", keyed: bool = False) -> None:
        remedy = (
            "Enqueue again with the same idempotency_key: nothing is stored twice."
            if keyed
            else "To enqueue again may store it twice; with an idempotency_key from the first try on, it does not."
        )
        super().__init__(
            f"it is unknown whether the enqueue to {queue!r} was committed: {message.rstrip('.')}. {remedy}",
            target=target,
            in_flight=True,
        )
        self.queue, self.reason, self.keyed = queue, message, keyed


class SchemaUnavailable(Unavailable):
    """The tables that this process has used are gone or not complete. Nothing was changed; try again later.

    The database is being replaced or restored, perhaps. A process makes tables only where it has never seen any.
    """

    schema: str
    #: What is missing.
    reason: str

    def __init__(self, schema: str, reason: str, *, target: str = "") -> None:
        super().__init__(
            f"the tables in schema {schema!r} of {target}, which this process has used, are not there any more: "
            f"{reason.rstrip('.')}. They are awaited, and not made anew: restore them, or run `{_install(schema)}`.",
            target=target,
        )
        self.schema, self.reason = schema, reason


class ReadOnly(Unavailable):
    """The session accepts no writes: its server is a standby, or read-only by its settings. Nothing was changed.

    Connections of our own are closed when this happens, so that the next try opens a new one.
    """

    #: What the server said.
    reason: str

    def __init__(self, reason: str, *, target: str = "") -> None:
        super().__init__(
            f"{target} accepts no writes: {reason}. Nothing was changed. If it is a standby, connect to the primary "
            "(with several hosts: target_session_attrs=read-write); else switch default_transaction_read_only off.",
            target=target,
        )
        self.reason = reason


class TimedOut(Unavailable):
    """The server, or a free connection, did not answer within the configured time."""


class ServerError(PgqrsError):
    """The server refused a statement. ``sqlstate`` says why; the original error is the cause."""

    sqlstate: str | None

    @property
    def retryable(self) -> bool:
        """Whether it was refused for a reason that passes: a lock, a conflict, want of memory, disk or connections."""
        state = self.sqlstate or ""
        return state in _PASSING or state[:2] in _PASSING_CLASSES

    @property
    def is_missing_table(self) -> bool:
        """Whether it was refused because a table or a function does not exist: its queue was deleted, for instance."""
        return self.sqlstate in ("42P01", "42883")

    def __init__(self, message: str, *, sqlstate: str | None = None) -> None:
        super().__init__(message, sqlstate=sqlstate)


class MessageIdsCollide(ServerError):
    """A queue holds a message with the id that its sequence gave for another one. Nothing was stored or changed.

    The sequence is behind its table: after a restored backup, a switch-over by logical replication, which copies no
    sequences, an asynchronous failover, or ``TRUNCATE ... RESTART IDENTITY``.
    """

    queue: str
    #: The statement that sets the sequence beyond every id that the queue has given.
    remedy: str

    def __init__(self, queue: str, remedy: str) -> None:
        super().__init__(
            f"queue {queue!r} has a message with the id that its sequence gave for another one: the sequence is behind, as "
            "after a restored backup, a switch-over by logical replication, or TRUNCATE … RESTART IDENTITY. Nothing was "
            f"changed. Set it forward, as the owner of the tables, and try again: `{remedy}`",
            sqlstate="23505",
        )
        self.queue, self.remedy = queue, remedy


class NotPermitted(ServerError):
    """The database role that this program logs in as may not do this. Nothing was changed."""

    user: str
    schema: str
    #: What the server said.
    reason: str
    #: What it takes: ``producer``, ``consumer``, ``observer``, ``admin``, or ``anyone`` of them.
    duty: str

    def __init__(self, reason: str, *, user: str, schema: str, duty: str, remedy: str | None = None) -> None:
        #: Whether the remedy is more than the name of a role.
        self.explained = remedy is not None
        one = "producer" if duty == "anyone" else duty
        several = ", or what else it is for" if duty == "anyone" else ""
        remedy = remedy or (
            f"Grant it the role of {'an' if one[0] in 'ao' else 'a'} {one}{several}; `pgqrs install --roles` makes them."
        )
        super().__init__(f"{user!r} may not do this: {reason}. {remedy}", sqlstate="42501")
        self.user, self.schema, self.duty, self.reason = user, schema, duty, reason


class RoleMissing(ServerError):
    """A group role that `install` made for a schema has another name now, or was dropped. Nothing was changed."""

    schema: str
    #: What the role is for: ``producer``, ``consumer``, ``observer`` or ``admin``.
    duty: str
    #: The name that it had.
    role: str

    def __init__(self, schema: str, duty: str, role: str) -> None:
        note = f"set name = '…' where duty = '{duty}'"
        super().__init__(
            f"role {role!r}, the {duty}s' of schema {schema!r}, does not exist. If it was renamed, rename it back with "
            f'`alter role … rename to "{role}"`, or note its name: `update "{schema}".roles {note}`. If it was dropped, '
            "`pgqrs install --roles` makes it again.",
            sqlstate="42704",
        )
        self.schema, self.duty, self.role = schema, duty, role


class QueuesFailed(ServerError):
    """Something was done for many queues, and failed for some; for the others it is done. The cause is the first error."""

    schema: str
    queues: Sequence[str]

    def __init__(self, done: str, schema: str, queues: Sequence[str], reason: str) -> None:
        names = ", ".join(map(repr, queues[:3])) + (f" and {len(queues) - 3:,} more" if len(queues) > 3 else "")
        super().__init__(
            f"queues of schema {schema!r} could not be {done}, all others are: {names}. The first: {reason.rstrip('.')}. "
            "Mend that and run it again."
        )
        self.schema, self.queues = schema, tuple(queues)


class Blocker(NamedTuple):
    """A session that holds a lock which another statement needs, as far as this role may see.

    Attributes:
        pid: Its server process.
        role: The role that it logged in as.
        application: Its ``application_name``.
        state: As the server puts it, for example ``idle in transaction``; empty where this role may not see it.
        is_autovacuum: Whether it is a worker of autovacuum.
        seconds: For how long its transaction has run; None where this role may not see it.
        query: Its last statement up to the first quoted value, numbers left out; empty where this role may not see it.
    """

    pid: int
    role: str
    application: str
    state: str
    is_autovacuum: bool
    seconds: float | None
    query: str

    def describe(self) -> str:
        """Say who it is, in one phrase."""
        who = "autovacuum" if self.is_autovacuum else f"role {self.role!r}"
        words = [f"pid {self.pid} of {who}"]
        if self.application and not self.is_autovacuum:
            words.append(f"({self.application})")
        facts = [self.state] if self.state not in ("", "active") else []
        if self.seconds is not None:
            facts.append(f"for {self.seconds:,.0f} s")
        return " ".join(words) + (f", {' '.join(facts)}" if facts else "") + (f": {self.query}" if self.query else "")


class TableLocked(ServerError):
    """A table could not be locked in time, because another session uses it. Nothing was changed."""

    #: The tables that were wanted; empty where it may be any of the schema.
    tables: Sequence[str]
    #: The sessions that were in the way, the longest transaction first; empty if they had gone or cannot be seen.
    blockers: Sequence[Blocker]
    #: Whether it is known to have been one row that was locked, and not the table.
    is_row: bool

    def __init__(
        self, schema: str, tables: Sequence[str] = (), blockers: Sequence[Blocker] = (), *, is_row: bool = False
    ) -> None:
        what = f"table {schema}.{tables[0]}" if tables else f"a table of schema {schema!r}"
        if is_row:
            what = f"a row of {what}"
        if blockers:
            held = f"it is in use by {'; '.join(one.describe() for one in blockers)}"
            remedy = (
                f"Wait for that to end, or end it: `select pg_terminate_backend({blockers[0].pid})`; then try again."
            )
        else:
            held = "the session that had it cannot be seen any more"
            remedy = "Try again."
        super().__init__(f"{what} could not be locked in time: {held}. {remedy}", sqlstate="55P03")
        self.schema, self.tables, self.blockers, self.is_row = schema, tuple(tables), tuple(blockers), is_row


class WrongEventLoop(PgqrsError, RuntimeError):
    """An asynchronous client was used in an event loop, and is now used in another one. Nothing was sent."""

    def __init__(self) -> None:
        super().__init__(
            "an asynchronous client belongs to the event loop that used it first, and this is another one. Make a client "
            "in each loop: `async with AsyncClient(...) as client:` inside the coroutine that asyncio.run() gets, or in "
            "the startup of each worker. From threads, use Client."
        )


class PluginError(PgqrsError):
    """A plugin failed to load, or returned something that its hook does not allow."""

    plugin: str
    reason: str
    distribution: str | None

    def __init__(self, plugin: str, reason: str, *, distribution: str | None = None) -> None:
        origin = f" (from {distribution})" if distribution else ""
        super().__init__(
            f"plugin {plugin!r}{origin}: {reason}", plugin=plugin, reason=reason, distribution=distribution
        )


def _install(schema: str) -> str:
    # The default is left out, as people who use it never see its name.
    return command("install") if schema == "pgqrs" else command("install", "--schema", shell_quoted(schema))
