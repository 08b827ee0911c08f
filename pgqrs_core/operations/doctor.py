"""Examining a database: is it fit for the queues, and is anything in the way of them?

`examine` asks one thing after the other and returns what it found. A check that the server refuses to answer, for want
of a right or because a table is missing, becomes a finding itself and stops nothing; only a lost connection does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from pgqrs_core.effects import Execute, Op
from pgqrs_core.errors import (
    NotPermitted,
    ReadOnly,
    SchemaError,
    SchemaMissing,
    SchemaTooNew,
    SchemaTooOld,
    SchemaUnavailable,
    SchemaUnrecorded,
    ServerError,
)
from pgqrs_core.hookspecs import MigrationSource
from pgqrs_core.installing import install_command
from pgqrs_core.operations import doctor_queues, doctor_server
from pgqrs_core.operations.damage import CORE, components_of, find_damage, read_schema
from pgqrs_core.operations.findings import Finding, span
from pgqrs_core.operations.schema import SUPPORTED, check_schema, version
from pgqrs_core.pasting import command
from pgqrs_core.sql import queries

__all__ = ["Circumstances", "examine"]

#: Seconds by which the clocks may differ.
_CLOCK: Final = 2.0


class Circumstances(msgspec.Struct, frozen=True):
    """What the server cannot tell: how the caller is connected, and his clock (seconds since the epoch)."""

    schema: str
    clock: Callable[[], float]
    #: Whether a transaction pooler stands in between.
    pooled: bool = False
    #: How many connections one process may open.
    max_connections: int = 16
    #: Where the scripts of plugins are, whose tables are looked at, too.
    sources: tuple[MigrationSource, ...] = ()


def examine(given: Circumstances) -> Op[list[Finding]]:
    """Run all checks.

    Raises:
        Unavailable: the server broke off.
    """
    found: list[Finding] = []
    found += _pooler(given.pooled)
    found += yield from _contained("clock", _clock(given.clock))
    for name, check in doctor_server.checks(given.max_connections):
        found += yield from _contained(name, check)
    schema = yield from _contained("schema", _schema(given.schema))
    found += schema
    found += yield from _contained("consistency", _consistency(given))
    if not any(finding.status == "fail" for finding in schema):
        for name, check in doctor_queues.checks(given.schema):
            found += yield from _contained(name, check)
    return found


def _contained(name: str, check: Op[list[Finding]]) -> Op[list[Finding]]:
    try:
        return (yield from check)
    except NotPermitted as error:
        return [Finding(name, "warn", f"could not be checked: {error}", "Check as a role with more rights.")]
    except ReadOnly as error:
        remedy = "Let the URL of doctor lead to the primary."
        return [Finding(name, "info", f"cannot be seen on a standby: {error.reason}", remedy)]
    except SchemaUnavailable as error:
        return [Finding(name, "fail", f"could not be checked: {error}")]
    except ServerError as error:
        return [Finding(name, "warn", f"could not be checked: {error}")]


def _pooler(pooled: bool) -> list[Finding]:
    if not pooled:
        return [Finding("pooler", "ok", "no pooler in between: consumers can be woken")]
    return [
        Finding(
            "pooler",
            "warn",
            "a connection pooler in transaction mode is in between: consumers poll instead of being woken, and "
            "statements are not prepared",
            "Producers need nothing. Let the URL of consumers lead to the server itself.",
        )
    ]


def _clock(clock: Callable[[], float]) -> Op[list[Finding]]:
    before = clock()
    server = (yield Execute(queries["server_time"]))[0][0]
    after = clock()
    # Half the round trip is all that can be known about when the server looked at its clock.
    ahead, doubt = server - (before + after) / 2, (after - before) / 2
    if abs(ahead) - doubt <= _CLOCK:
        return [Finding("clock", "ok", f"clocks agree within {span(max(abs(ahead), doubt, 0.001))}")]
    way = "ahead of" if ahead > 0 else "behind"
    return [
        Finding(
            "clock",
            "warn",
            f"the server's clock is {span(abs(ahead))} {way} this machine's; pgqrs goes by the server's, only times "
            "given as a date (`--at`) are affected",
            "Synchronise both with NTP.",
        )
    ]


def _consistency(given: Circumstances) -> Op[list[Finding]]:
    """Look for tables without rows, and rows without tables. Whether anything is installed is said elsewhere."""
    held = yield from read_schema(given.schema)
    if not held.relations:
        return []
    remedy = "Restore it from a backup, or stop all programs that use it and mend it."
    commands = (command("install", "--repair", "--dry-run"), command("install", "--repair"))
    return [
        Finding("consistency", "fail", damage.describe(), remedy, commands)
        for damage in find_damage(held, components_of(given.sources))
        # What the schema and the tables of queues lack has findings of its own.
        if not (damage.kind == "unrecorded" and damage.component == CORE)
        and not (damage.queue is not None and f"q_{damage.queue.suffix}" in damage.tables)
    ] or [Finding("consistency", "ok", "tables and the rows that name them fit together")]


def _schema(schema: str) -> Op[list[Finding]]:
    try:
        yield from check_schema(schema)
    except SchemaMissing as error:
        summary = f"nothing is installed in schema {error.schema!r}"
        return [Finding("schema", "fail", summary, "Install it.", (command("install"),))]
    except SchemaUnrecorded as error:
        commands = (command("install", "--repair", "--dry-run"), command("install", "--repair"))
        return [Finding("schema", "fail", str(error), "Restore all of it, or mend it.", commands)]
    except SchemaTooOld as error:
        return [Finding("schema", "fail", str(error), "Upgrade the tables.", (command("install"),))]
    except SchemaTooNew as error:
        upgrade = install_command(upgrade=True)
        return [Finding("schema", "fail", str(error), "Upgrade pgqrs where this runs.", (upgrade,))]
    except SchemaError as error:
        return [Finding("schema", "fail", str(error))]
    except ServerError as error:
        remedy = "Connect as the owner of the schema, or as a role that the owner gave rights on it: docs/security.md."
        return [Finding("schema", "fail", f"schema {schema!r} cannot be used: {error}", remedy)]
    installed = yield from version(schema)
    return [Finding("schema", "ok", f"schema {schema!r} has version {installed}; this code brings {SUPPORTED}")]
