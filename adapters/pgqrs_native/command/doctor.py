"""``doctor``: is everything fit for the queues, and is anything in their way?"""

import os
import textwrap
import time
from collections.abc import Iterator, Sequence
from typing import Annotated, Final

import msgspec
import typer
from rich.text import Text

from pgqrs_core import config_address
from pgqrs_core.config import SETTINGS
from pgqrs_core.config_strays import strays
from pgqrs_core.errors import ConfigurationError, PgqrsError, Unavailable
from pgqrs_core.operations.doctor import Circumstances, examine
from pgqrs_core.operations.findings import Finding
from pgqrs_core.pasting import command as command_to_paste
from pgqrs_core.pasting import shell_quoted
from pgqrs_core.plugins import Plugins, default_plugins
from pgqrs_native.client import Client
from pgqrs_native.command import doctor_plugins
from pgqrs_native.command.inputs import InvalidInput
from pgqrs_native.command.output import make_console, safe
from pgqrs_native.command.session import Session, command

__all__ = ["encryption", "register", "show_findings"]

_STYLES: Final = {"ok": "green", "info": "cyan", "warn": "bold yellow", "fail": "bold red"}
#: What comes first, and what `--problems` shows.
_ORDER: Final = ("fail", "warn", "info", "ok")
_PROBLEMS: Final = ("fail", "warn")


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(app, "doctor", panel="Watching")(doctor)


Problems = Annotated[bool, typer.Option("--problems", help="Show only what failed or should be looked at.")]


def doctor(session: Session, *, problems: Problems = False) -> None:
    """Examine server, schema, queues and plugins; problems first. Exit code 1 if a check fails."""
    examined = _examine(session)
    findings = sorted(examined.findings, key=lambda finding: _ORDER.index(finding.status))
    shown = [finding for finding in findings if finding.status in _PROBLEMS] if problems else findings
    shown = [msgspec.structs.replace(one, commands=_addressed(session, one.commands)) for one in shown]
    if session.out.json:
        session.out.document(
            {
                "target": examined.target,
                "schema": examined.schema,
                "status": _worst(findings),
                "findings": [msgspec.to_builtins(finding) for finding in shown],
            }
        )
    else:
        show_findings(shown)
        session.out.say(_counted(findings))
    if examined.code:
        raise typer.Exit(examined.code)
    if _worst(findings) == "fail":
        raise typer.Exit(1)


class _Examined(msgspec.Struct):
    """What was found, where, and the exit code if nothing could be examined."""

    findings: list[Finding]
    target: str | None = None
    schema: str | None = None
    code: int = 0


def _examine(session: Session) -> _Examined:
    """Look at everything; what cannot be looked at becomes a finding and keeps nothing else from being looked at."""
    examined = _Examined([])
    plugins: Plugins | None = None
    try:
        config = session.config
        chosen = config.plugins
        plugins = default_plugins(frozenset(chosen.blocked), chosen.settings, chosen.content_types)
        examined.target, examined.schema = config.target, config.database.schema
        # What is looked at needs no plugin, and a plugin that is set up wrongly must not keep it from being looked at.
        with Client(config, plugins=Plugins.core()) as client:
            examined.findings += _connect(client)
            examined.findings += client.engine.run(examine, _circumstances(client, plugins))
    except ConfigurationError as error:
        examined.code = 2
        remedy = "Correct it: without a configuration the server cannot be examined."
        examined.findings.append(Finding("configuration", "fail", str(error), remedy))
    except Unavailable as error:
        examined.code = 3
        examined.findings.append(Finding("connection", "fail", str(error), *_LOOK))
    except InvalidInput:
        raise
    except PgqrsError as error:
        examined.findings.append(Finding("connection", "fail", str(error), *_LOOK))
    examined.findings += _environment()
    examined.findings += doctor_plugins.findings(plugins or default_plugins())
    return examined


_LOOK: Final = ("See which server is meant, and from where that is known.", (command_to_paste("config", "show"),))


def _addressed(session: Session, commands: tuple[str, ...]) -> tuple[str, ...]:
    """Let commands that are to be pasted go where this one went."""
    given = session.given
    words = ["--embedded"] if given.embedded else []
    if given.url is not None and config_address.masked(given.url, "***") == given.url:
        words += ["--url", shell_quoted(given.url)]
    if given.schema is not None:
        words += ["--schema", shell_quoted(given.schema)]
    if given.config is not None:
        words += ["--config", shell_quoted(str(given.config))]
    front = " ".join(["pgqrs", *words])
    return tuple(front + one.removeprefix("pgqrs") if one.startswith("pgqrs ") else one for one in commands)


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


def _circumstances(client: Client, plugins: Plugins) -> Circumstances:
    link = client.engine.connections.get(relaxed=False)
    client.engine.connections.put(link)
    return Circumstances(
        client.engine.schema,
        time.time,
        pooled=link.pooled,
        max_connections=client.config.database.max_connections,
        sources=plugins.migrations,
    )


def _environment() -> Iterator[Finding]:
    """Yield what looks like a setting and is none."""
    for name, near in strays(os.environ, SETTINGS).items():
        summary = f"environment variable {name} is no setting and is ignored"
        remedy = f"Did you mean {near}? If it is another program's, all is well."
        rename = (f'export {near}="${name}"; unset {name}',) if name.isidentifier() and name.isascii() else ()
        yield Finding("environment", "warn", summary, remedy, rename)


def _worst(findings: list[Finding]) -> str:
    statuses = {finding.status for finding in findings}
    return next((status for status in ("fail", "warn") if status in statuses), "ok")


def show_findings(findings: Sequence[Finding]) -> None:
    """Draw findings. What is to be pasted stands in lines of its own, and is never broken."""
    console = make_console()
    names = max((len(_name(one)) for one in findings), default=0)
    indent = 6 + names + 2
    room = max(console.width - indent, 30)
    lines: list[Text] = []
    for finding in findings:
        mark = finding.status.upper() if finding.status == "fail" else finding.status
        first, *rest = _wrapped(finding.summary, room)
        lines.append(Text.assemble((f"{mark:<6}", _STYLES[finding.status]), f"{_name(finding):<{names}}  {first}"))
        lines += [Text(" " * indent + line) for line in rest]
        if finding.status == "ok":
            continue
        for number, line in enumerate(_wrapped(finding.remedy or "", room - 2)):
            lines.append(Text(" " * indent + ("→ " if number == 0 else "  ") + line, style="dim"))
        lines += [Text("  " + pasted) for pasted in finding.commands]
    for one in lines:
        console.print(one, soft_wrap=True)


def _name(finding: Finding) -> str:
    return finding.check.replace("_", " ")


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(safe(text), width, break_on_hyphens=False) if text else []


def _counted(findings: Sequence[Finding]) -> str:
    counted = [
        (sum(finding.status == status for finding in findings), word)
        for status, word in (("fail", "failed"), ("warn", "to look at"), ("info", "to know"), ("ok", "fine"))
    ]
    return ", ".join(f"{number} {word}" for number, word in counted if number)
