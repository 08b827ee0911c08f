"""``archive``: messages that were handled and kept."""

from typing import Annotated, Any

import typer

from pgqrs_core.messages import ArchivedMessage
from pgqrs_core.operations.findings import span
from pgqrs_native.command.bodies import describe, preview
from pgqrs_native.command.consent import Yes, ask
from pgqrs_native.command.dead import report
from pgqrs_native.command.inputs import duration
from pgqrs_native.command.message import short_type
from pgqrs_native.command.output import Column, ago, count
from pgqrs_native.command.queue import Name
from pgqrs_native.command.session import Session, command

__all__ = ["app"]

app = typer.Typer(help="Look at archived messages, send them again, remove old ones.", no_args_is_help=True)


@command(app, "list")
def list_(
    session: Session,
    name: Name,
    *,
    limit: Annotated[int, typer.Option("--limit", help="At most so many.")] = 50,
    before: Annotated[int | None, typer.Option("--before", metavar="ID", help="Only lower ids.")] = None,
) -> None:
    """Show archived messages, the newest first."""
    found = session.client.admin.list_archive(name, limit, before)
    if session.out.json:
        session.out.document([_document(name, one) for one in found])
        return
    columns = [
        Column("id", "number"),
        Column("archived"),
        Column("enqueued"),
        Column("attempts", "number"),
        Column("type"),
        Column("body", "body"),
    ]
    rows = [
        [
            str(one.id),
            ago(one.archived_at),
            ago(one.enqueued_at),
            str(one.attempt),
            short_type(one.content_type),
            preview(one.body),
        ]
        for one in found
    ]
    session.out.table(columns, rows, empty=f"the archive of queue {name!r} is empty")


@command(app, "replay")
def replay(session: Session, name: Name, ids: Annotated[list[int], typer.Argument(metavar="ID...")]) -> None:
    """Move archived messages back into the queue. They are new messages with new ids."""
    chosen = list(dict.fromkeys(ids))
    report(session, name, "replayed", session.client.admin.replay_archive(name, chosen), chosen)


@command(app, "prune")
def prune(
    session: Session,
    name: Name,
    *,
    older_than: Annotated[str, typer.Option("--older-than", metavar="TIME", help="Such as 12h or 7d.")],
    yes: Yes = False,
) -> None:
    """Remove what was archived longer ago than a time."""
    seconds = duration("--older-than", older_than)
    if not yes:
        one = session.client.admin.queue_metrics(name)
        ask(
            f"This removes those of {count(one, 'archived')} archived messages of queue {name!r} that were archived "
            f"more than {span(seconds)} ago.",
            yes=yes,
        )
    report(session, name, "removed", session.client.admin.prune_archive(name, seconds), None)


def _document(name: str, one: ArchivedMessage) -> dict[str, Any]:
    return {
        "id": one.id,
        "queue": name,
        "attempt": one.attempt,
        "enqueued_at": one.enqueued_at,
        "archived_at": one.archived_at,
        "headers": one.headers,
        **describe(one.content_type, one.body),
    }
