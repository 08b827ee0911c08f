"""``dead``: messages that used up their attempts, were rejected, or could not be read."""

from datetime import datetime
from typing import Annotated, Any

import typer

from pgqrs_core.errors import InvalidQueueName, PgqrsError, QueueNotFound, ServerError
from pgqrs_core.messages import DeadMessage, check_number
from pgqrs_native.command.bodies import describe, preview
from pgqrs_native.command.consent import Yes, ask
from pgqrs_native.command.inputs import InvalidInput, date
from pgqrs_native.command.message_by_id import show_facts
from pgqrs_native.command.output import Column, ago, count, moment, plural
from pgqrs_native.command.queue import Name
from pgqrs_native.command.session import Session, command

__all__ = ["Ids", "app", "choose", "report"]

app = typer.Typer(help="Look at dead messages, send them again, remove them.", no_args_is_help=True)

Ids = Annotated[list[int] | None, typer.Argument(metavar="[ID]...", help="Which messages.")]
Every = Annotated[bool, typer.Option("--all", help="All of them.")]


@command(app, "list")
def list_(
    session: Session,
    name: Annotated[str | None, typer.Argument(metavar="[QUEUE]", help="One queue; else all.")] = None,
    *,
    limit: Annotated[int, typer.Option("--limit", help="At most so many.")] = 50,
    before: Annotated[str | None, typer.Option("--before", metavar="DATE", help="Only what died before.")] = None,
) -> None:
    """Show dead messages and why they died, the latest first."""
    when = None if before is None else date("--before", before)
    if name is None:
        found = _of_all(session, limit, when)
    else:
        found = [(name, one) for one in session.client.admin.list_dead(name, limit, when)]
    if session.out.json:
        session.out.document([_document(queue, one) for queue, one in found])
        return
    columns = [
        *([Column("queue", "name")] if name is None else []),
        Column("id", "number"),
        Column("died"),
        Column("attempts", "number"),
        Column("error", "fold"),
        Column("body", "body"),
    ]
    rows = [[*([queue] if name is None else []), *_row(one)] for queue, one in found]
    empty = "no queue holds dead messages" if name is None else f"queue {name!r} holds no dead messages"
    session.out.table(columns, rows, empty=empty)


def _of_all(session: Session, limit: int, before: datetime | None) -> list[tuple[str, DeadMessage]]:
    """Return the latest of all queues. One that cannot be read is told, and keeps none of the others from being shown."""
    check_number("limit", limit, 1, 100_000, whole=True)
    found: list[tuple[str, DeadMessage]] = []
    for queue in session.client.admin.list_queues():
        try:
            more = session.client.admin.list_dead(queue.name, limit, before)
        except (ServerError, QueueNotFound, InvalidQueueName) as error:
            session.out.note(f"queue {queue.name!r} cannot be read: {error}")
            continue
        found += [(queue.name, one) for one in more]
        if len(found) > 2 * limit:
            found = _latest(found, limit)
    return _latest(found, limit)


def _latest(found: list[tuple[str, DeadMessage]], limit: int) -> list[tuple[str, DeadMessage]]:
    return sorted(found, key=lambda pair: pair[1].died_at, reverse=True)[:limit]


def _row(one: DeadMessage) -> list[str]:
    return [str(one.id), ago(one.died_at), str(one.attempt), " ".join(_reason(one).split()), preview(one.body)]


@command(app, "show")
def show(session: Session, name: Name, number: Annotated[int, typer.Argument(metavar="ID")]) -> None:
    """Show one dead message in full."""
    one = session.client.admin.show_dead(name, number)
    if one is None:
        raise PgqrsError(f"queue {name!r} holds no dead message {number}")
    if session.out.json:
        session.out.document(_document(name, one))
        return
    show_facts(
        session,
        [
            ("id", str(one.id)),
            ("priority", str(one.priority)),
            ("attempts", str(one.attempt)),
            ("enqueued", f"{moment(one.enqueued_at)} ({ago(one.enqueued_at)})"),
            ("died", f"{moment(one.died_at)} ({ago(one.died_at)})"),
        ],
        one,
    )


@command(app, "replay")
def replay(session: Session, name: Name, ids: Ids = None, *, every: Every = False) -> None:
    """Put dead messages back into the queue, as if new."""
    chosen = choose(ids, every)
    report(session, name, "replayed", session.client.admin.replay_dead(name, chosen), chosen)


@command(app, "purge")
def purge(session: Session, name: Name, ids: Ids = None, *, every: Every = False, yes: Yes = False) -> None:
    """Remove dead messages for good."""
    chosen = choose(ids, every)
    if not yes:
        one = session.client.admin.queue_metrics(name)
        which = f"{len(chosen):,} of the " if chosen is not None else "all "
        ask(f"This removes {which}{count(one, 'dead')} dead messages of queue {name!r}.", yes=yes)
    report(session, name, "removed", session.client.admin.purge_dead(name, chosen), chosen)


def choose(ids: list[int] | None, every: bool) -> list[int] | None:
    """Return the ids, or None for all."""
    if ids and every:
        raise InvalidInput("ids and --all are both given; leave one of them out")
    if not ids and not every:
        raise InvalidInput("which messages? Give their ids, or --all")
    return list(dict.fromkeys(ids)) if ids else None


def report(session: Session, name: str, what: str, done: int, chosen: list[int] | None) -> None:
    """Say how many were done; fewer than were named is a failure."""
    if session.out.json:
        session.out.document({"queue": name, what: done})
    else:
        session.out.say(f"{plural(done, 'message')} {what}")
    if chosen is not None and done < len(chosen):
        raise PgqrsError(f"{len(chosen) - done:,} of {plural(len(chosen), 'message')} were not there")


def _reason(one: DeadMessage) -> str:
    kind, text = one.error.get("type"), one.error.get("message")
    return ": ".join(str(part) for part in (kind, text) if part) or "unknown"


def _document(name: str, one: DeadMessage) -> dict[str, Any]:
    return {
        "id": one.id,
        "queue": name,
        "priority": one.priority,
        "attempt": one.attempt,
        "enqueued_at": one.enqueued_at,
        "died_at": one.died_at,
        "error": one.error,
        "headers": one.headers,
        **describe(one.content_type, one.body),
    }
