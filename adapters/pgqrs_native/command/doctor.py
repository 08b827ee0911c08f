"""``doctor``: is everything fit for the queues, and is anything in their way?"""

import os
import time
from collections.abc import Iterator

import msgspec
import typer
from rich.text import Text

from pgqrs_core.config import SETTINGS
from pgqrs_core.config_strays import strays
from pgqrs_core.errors import PluginError, Unavailable
from pgqrs_core.operations.doctor import Circumstances, examine
from pgqrs_core.operations.findings import Finding
from pgqrs_core.plugins import Plugins
from pgqrs_native.client import Client
from pgqrs_native.command.output import Column, make_table, plural, safe, show
from pgqrs_native.command.session import Session, command

__all__ = ["register"]

_STYLES = {"ok": "green", "info": "cyan", "warn": "bold yellow", "fail": "bold red"}


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(app, "doctor", panel="Watching")(doctor)


def doctor(session: Session) -> None:
    """Examine the server, the schema, the queues and the plugins. Exit code 1 if a check fails."""
    client = session.client
    lost = False
    findings: list[Finding] = []
    try:
        findings += _connect(client)
        findings += client.engine.run(examine, _circumstances(client))
    except Unavailable as error:
        lost = True
        remedy = "`pgqrs config show` shows which server is meant."
        findings.append(Finding("connection", "fail", str(error), remedy))
    findings += _environment()
    findings += _plugins(client.engine.plugins)
    if session.out.json:
        session.out.document(
            {
                "target": client.config.target,
                "schema": client.engine.schema,
                "status": _worst(findings),
                "findings": [msgspec.to_builtins(finding) for finding in findings],
            }
        )
    else:
        _show(session, findings)
    if lost:
        raise typer.Exit(3)
    if _worst(findings) == "fail":
        raise typer.Exit(1)


def _connect(client: Client) -> list[Finding]:
    began = time.perf_counter()
    link = client.engine.connections.get(relaxed=False)
    took = (time.perf_counter() - began) * 1000
    info = link.connection.info
    finding = encryption(
        info.hostaddr or info.host,
        encrypted=link.connection.pgconn.ssl_in_use,
        mode=info.get_parameters().get("sslmode", "prefer"),
    )
    client.engine.connections.put(link)
    return [Finding("connection", "ok", f"connected to {client.config.target} in {took:.0f} ms"), finding]


def encryption(host: str, *, encrypted: bool, mode: str) -> Finding:
    """Judge how a connection is protected: to which address it goes, whether by TLS, and libpq's ``sslmode``."""
    remedy = "Add sslmode=verify-full, and sslrootcert where the authority is a private one: see docs/security.md."
    if host.startswith(("/", "@", "127.")) or host in ("", "::1", "localhost"):
        return Finding("encryption", "ok", "the connection does not leave this machine")
    if not encrypted:
        summary = "the connection is not encrypted: whoever is in between reads passwords and messages"
        return Finding("encryption", "warn", summary, remedy)
    if mode != "verify-full":
        return Finding("encryption", "info", f"sslmode={mode} encrypts, but does not ask with whom it speaks", remedy)
    return Finding("encryption", "ok", "the connection is encrypted, and the server is who it says")


def _circumstances(client: Client) -> Circumstances:
    link = client.engine.connections.get(relaxed=False)
    client.engine.connections.put(link)
    return Circumstances(
        client.engine.schema,
        time.time,
        pooled=link.pooled,
        max_connections=client.config.database.max_connections,
    )


def _environment() -> Iterator[Finding]:
    """Yield what looks like a setting and is none."""
    for name, near in strays(os.environ, SETTINGS).items():
        summary = f"environment variable {name} is no setting and is ignored"
        yield Finding("environment", "warn", summary, f"Did you mean {near}? If it is another program's, all is well.")


def _plugins(plugins: Plugins) -> Iterator[Finding]:
    """Yield what there is to say about what is installed here."""
    names = ", ".join(one.name for one in plugins.loaded) or "none"
    yield Finding("plugins", "ok", f"{plural(len(plugins.loaded), 'plugin')} loaded: {names}")
    for broken in plugins.broken:
        origin = f" of {broken.distribution} {broken.version}" if broken.distribution else ""
        remedy = f"Repair or uninstall it, or block it: PGQRS_PLUGINS_BLOCKED={broken.name}"
        yield Finding("plugins", "warn", f"plugin {broken.name!r}{origin} is broken: {broken.error}", remedy)
    for blocked in plugins.blocked:
        yield Finding("plugins", "info", f"plugin {blocked.name!r} is blocked by the configuration")
    try:
        kinds = ", ".join(plugins.serializers.content_types) or "none"
        yield Finding("serializers", "ok", f"content types that can be read: {kinds}")
    except PluginError as error:
        yield Finding("serializers", "fail", str(error))
    yield Finding("codecs", "ok", f"codecs that can be undone: {', '.join(plugins.hooks.codecs.names) or 'none'}")
    for adapter in plugins.adapters:
        try:
            problem = adapter.check()
        except Exception as error:
            problem = f"its check failed: {type(error).__name__}: {error}"
        summary = f"adapter {adapter.name} {adapter.version}"
        if problem:
            yield Finding("adapters", "info", f"{summary} cannot be used: {problem}")
        else:
            yield Finding("adapters", "ok", f"{summary}: {adapter.summary}")


def _worst(findings: list[Finding]) -> str:
    statuses = {finding.status for finding in findings}
    return next((status for status in ("fail", "warn") if status in statuses), "ok")


def _show(session: Session, findings: list[Finding]) -> None:
    rows = []
    for finding in findings:
        text = Text(safe(finding.summary))
        if finding.remedy and finding.status != "ok":
            text.append(f"\n→ {safe(finding.remedy)}", style="dim")
        mark = finding.status.upper() if finding.status == "fail" else finding.status
        rows.append([Text(mark, style=_STYLES[finding.status]), Text(finding.check.replace("_", " ")), text])
    columns = [Column(""), Column("check"), Column("finding", "fold")]
    show(make_table(columns, rows))
    counted = [
        (sum(finding.status == status for finding in findings), word)
        for status, word in (("ok", "fine"), ("info", "to know"), ("warn", "to look at"), ("fail", "failed"))
    ]
    session.out.say("")
    session.out.say(", ".join(f"{number} {word}" for number, word in counted if number))
