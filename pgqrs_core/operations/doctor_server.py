"""The part of the examination that looks at the server: see `doctor`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from pgqrs_core.effects import Execute, Op
from pgqrs_core.operations import vitals
from pgqrs_core.operations.findings import Finding, span
from pgqrs_core.pasting import identifier, literal
from pgqrs_core.sql import queries

__all__ = ["checks"]

#: The major versions that pgqrs is tested with.
_OLDEST, _NEWEST = 14, 18
#: Seconds after which a transaction that pins the horizon is worth a word, and after which it is harmful.
_PIN_NOTED, _PIN_HARMS = 60.0, 600.0
#: Transactions since which a slot or a standby, which say no time, has kept old rows.
_PIN_TRANSACTIONS: Final = 1_000_000
#: Transaction ids in use: PostgreSQL itself warns at 2,107 million and stops at 2,144.
_IDS_WARN, _IDS_FAIL = 1_000_000_000, 1_800_000_000
#: The part of the notification queue in use.
_NOTIFY_WARN, _NOTIFY_FAIL = 0.2, 0.8
_IDLE: Final = (
    "SELECT pid, usename, application_name, xact_start FROM pg_stat_activity"
    " WHERE state LIKE 'idle in transaction%' ORDER BY xact_start;"
)


def checks(max_connections: int) -> Iterator[tuple[str, Op[list[Finding]]]]:
    """Yield the checks by name, each to be run before the next is asked for.

    Args:
        max_connections: how many connections one process may open.
    """
    yield "server", _server()
    yield "durability", _settings()
    yield "connections", _connections(max_connections)
    yield "transaction_ids", _transaction_ids()
    yield "old_snapshots", _old_snapshots()
    yield "notify_queue", _notify_queue()


def _server() -> Op[list[Finding]]:
    number, text, read_only, zone, sees_all, role, _ = (yield Execute(queries["server_facts"]))[0]
    major = number // 10_000
    release = text.split()[0]
    if major < _OLDEST:
        found = [
            Finding(
                "server", "fail", f"PostgreSQL {release} is too old", f"Upgrade to PostgreSQL {_OLDEST} to {_NEWEST}."
            )
        ]
    elif major > _NEWEST:
        found = [Finding("server", "warn", f"PostgreSQL {release} is newer than what pgqrs is tested with ({_NEWEST})")]
    else:
        found = [Finding("server", "ok", f"PostgreSQL {release}")]
    if read_only:
        found.append(
            Finding(
                "server",
                "fail",
                "the server accepts no writes: it is a standby, or sessions are read-only by default",
                "Let the URL lead to the primary: name several hosts in it, and target_session_attrs=read-write.",
            )
        )
    found.append(Finding("time_zone", "ok", f"the server's time zone is {zone}; any will do, pgqrs works in UTC"))
    if not sees_all:
        found.append(
            Finding(
                "rights",
                "info",
                "this role does not see what sessions of other roles do; some findings are incomplete",
                "Let it, or run doctor as a role that does.",
                (f"GRANT pg_read_all_stats TO {identifier(role)};",),
            )
        )
    return found


def _settings() -> Op[list[Finding]]:
    settings = dict((yield Execute(queries["server_settings"])))
    role, database = (yield Execute(queries["server_facts"]))[0][-2:]
    found = [*_durability(settings, role, database), *_autovacuum(settings)]
    waits = settings.get("synchronous_commit") not in ("off", "local")
    names = settings.get("synchronous_standby_names", "").strip()
    if waits and names:
        found += yield from _standbys(names)
    return found


def _standbys(names: str) -> Op[list[Finding]]:
    """Commits wait for synchronous standbys even if there are none, or too few, and no time-out ends that."""
    wanted = _number_of_standbys(names)
    connected: int = (yield Execute(queries["synchronous_standbys"]))[0][0]
    whom = "a synchronous standby" if wanted == 1 else f"{wanted} synchronous standbys"
    summary = f"commits wait for {whom}, and {connected or 'none'} can be seen to be connected"
    if connected >= wanted:
        return [Finding("synchronous_standbys", "ok", summary)]
    return [
        Finding(
            "synchronous_standbys",
            "warn",
            f"{summary}: they hang until enough are",
            "Start the standbys, or let commits wait for none. A role that is no member of pg_monitor sees no standbys: "
            "run doctor as one that is, if there are any.",
            _configure("synchronous_standby_names", ""),
        )
    ]


def _number_of_standbys(names: str) -> int:
    """Read ``synchronous_standby_names``: ``FIRST 2 (a, b, c)``, ``ANY 2 (a, b, c)``, ``2 (a, b, c)``, or names for one."""
    found = re.match(r"\s*(?:(?:first|any)\s+)?(\d+)\s*\(", names, re.IGNORECASE)
    return int(found[1]) if found else 1


def _configure(name: str, value: str) -> tuple[str, ...]:
    """Return what changes a setting of the server, for a superuser to paste."""
    return f"ALTER SYSTEM SET {name} = {literal(value)};", "SELECT pg_reload_conf();"


def _durability(settings: dict[str, str], role: str, database: str) -> Iterator[Finding]:
    sound = True
    for name, loss in (
        ("fsync", "a crash of the machine can destroy the database"),
        ("full_page_writes", "a crash of the machine can corrupt pages"),
    ):
        if settings.get(name) == "off":
            sound = False
            summary = f"{name} is off: {loss}"
            yield Finding("durability", "warn", summary, "Switch it on, except in tests.", _configure(name, "on"))
    if settings.get("synchronous_commit") == "off":
        sound = False
        yield Finding(
            "durability",
            "warn",
            "synchronous_commit is off: a crash of the server can lose messages that were just enqueued",
            "Switch it on for this role and database; pgqrs itself relaxes it where nothing can be lost.",
            (f"ALTER ROLE {identifier(role)} IN DATABASE {identifier(database)} SET synchronous_commit = on;",),
        )
    if sound:
        level = settings.get("synchronous_commit", "on")
        yield Finding("durability", "ok", f"fsync and full_page_writes are on, synchronous_commit is {level}")


def _autovacuum(settings: dict[str, str]) -> Iterator[Finding]:
    off = [name for name in ("autovacuum", "track_counts") if settings.get(name) == "off"]
    if off:
        summary = f"{' and '.join(off)} is off: dead rows pile up"
        commands = [line for name in off for line in _configure(name, "on")[:1]]
        remedy = "Switch it on, or run the last of these every minute."
        yield Finding("autovacuum", "warn", summary, remedy, (*commands, "SELECT pg_reload_conf();", "pgqrs maintain"))
    else:
        yield Finding("autovacuum", "ok", "autovacuum is on")


def _connections(wanted: int) -> Op[list[Finding]]:
    settings = dict((yield Execute(queries["server_settings"])))
    used, ours = (yield Execute(queries["connection_counts"]))[0]
    most = int(settings["max_connections"])
    kept = int(settings.get("superuser_reserved_connections", 0)) + int(settings.get("reserved_connections", 0))
    free = max(most - kept - used, 0)
    summary = f"{used} of {most} connections in use, {ours} by pgqrs; {free} free"
    if free >= wanted:
        return [Finding("connections", "ok", summary)]
    return [
        Finding(
            "connections",
            "warn",
            f"{summary}, fewer than the {wanted} that one more process may open",
            "Let each process open fewer, raise the server's max_connections, or use a pooler for producers.",
            (f"export PGQRS_MAX_CONNECTIONS={max(free // 2, 3)}",) if free else (),
        )
    ]


def _transaction_ids() -> Op[list[Finding]]:
    name, used = (yield Execute(queries["transaction_age"]))[0]
    summary = f"database {name!r} has used {used:,} of 2,147,483,648 transaction ids since it was last frozen"
    if used < _IDS_WARN:
        return [Finding("transaction_ids", "ok", summary)]
    remedy = "End what the check old_snapshots names, if anything; then connect to that database and freeze it."
    return [Finding("transaction_ids", "fail" if used >= _IDS_FAIL else "warn", summary, remedy, ("VACUUM (FREEZE);",))]


def _old_snapshots() -> Op[list[Finding]]:
    pins = yield from vitals.find_pins()
    found = [finding for pin in pins if (finding := _judge(pin)) is not None]
    return found or [Finding("old_snapshots", "ok", "nothing keeps vacuum from removing dead rows")]


def _judge(pin: vitals.Pin) -> Finding | None:
    inactive = pin.kind == "replication slot" and pin.state == "inactive"
    if not inactive and (pin.seconds or 0) < _PIN_NOTED and pin.transactions < _PIN_TRANSACTIONS:
        return None
    age = f" for {span(pin.seconds)}" if pin.seconds is not None else ""
    summary = f"{pin.describe()}, keeps dead rows{age} ({pin.transactions:,} transactions)"
    harms = inactive or (pin.seconds or 0) >= _PIN_HARMS or pin.transactions >= _PIN_TRANSACTIONS
    return Finding("old_snapshots", "warn" if harms else "info", summary, *_remedy(pin))


def _remedy(pin: vitals.Pin) -> tuple[str, tuple[str, ...]]:
    if pin.kind == "session":
        return "End its transaction, or the session.", (f"SELECT pg_terminate_backend({pin.pid});",)
    if pin.kind == "prepared transaction":
        return "Commit it (COMMIT PREPARED), or roll it back.", (f"ROLLBACK PREPARED {literal(pin.name)};",)
    if pin.kind == "replication slot":
        drop = f"SELECT pg_drop_replication_slot({literal(pin.name)});"
        return "Bring its standby back, or drop the slot.", (drop,)
    return "End the long queries on that standby, or let it not report them, there:", _configure(
        "hot_standby_feedback", "off"
    )


def _notify_queue() -> Op[list[Finding]]:
    usage = float((yield Execute(queries["notify_usage"]))[0][0])
    summary = f"the notification queue is {usage:.1%} full"
    if usage < _NOTIFY_WARN:
        return [Finding("notify_queue", "ok", summary)]
    remedy = "A listening session does not read: find one that is idle in a transaction, and end it."
    return [Finding("notify_queue", "fail" if usage >= _NOTIFY_FAIL else "warn", summary, remedy, (_IDLE,))]
