"""``queue``: creating, changing, watching and removing queues."""

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from pgqrs_core.errors import ServerError
from pgqrs_core.messages import Metrics, Queue
from pgqrs_native.command.consent import Yes, ask
from pgqrs_native.command.inputs import InvalidInput
from pgqrs_native.command.output import count, plural
from pgqrs_native.command.queue_options import (
    Archive,
    ArchiveFor,
    Attempts,
    Base,
    Bytes,
    Cap,
    DeadFor,
    Factor,
    Jitter,
    KeysFor,
    Lease,
    read_options,
)
from pgqrs_native.command.queue_view import (
    FIGURES,
    OPTIONS,
    figures,
    figures_document,
    options_row,
    queue_document,
    summary,
    that_fit,
)
from pgqrs_native.command.session import Session, command

__all__ = ["Name", "app"]

app = typer.Typer(help="Create, change, watch and remove queues.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="QUEUE", help="The queue's name.")]


@command(app, "create")
def create(
    session: Session,
    name: Name,
    *,
    lease_seconds: Lease = None,
    max_attempts: Attempts = None,
    backoff_base: Base = None,
    backoff_factor: Factor = None,
    backoff_cap: Cap = None,
    backoff_jitter: Jitter = None,
    archive: Archive = None,
    archive_retention_seconds: ArchiveFor = None,
    dead_retention_seconds: DeadFor = None,
    idempotency_seconds: KeysFor = None,
    max_body_bytes: Bytes = None,
) -> None:
    """Create a queue. Harmless to repeat with the same options. Times: 30, 5m, 2h, 7d."""
    options = read_options(
        lease_seconds=lease_seconds,
        max_attempts=max_attempts,
        backoff_base=backoff_base,
        backoff_factor=backoff_factor,
        backoff_cap=backoff_cap,
        backoff_jitter=backoff_jitter,
        archive=archive,
        archive_retention_seconds=archive_retention_seconds,
        dead_retention_seconds=dead_retention_seconds,
        idempotency_seconds=idempotency_seconds,
        max_body_bytes=max_body_bytes,
    )
    _show_queue(session, session.client.admin.create_queue(name, **options), "is ready")


@command(app, "alter")
def alter(
    session: Session,
    name: Name,
    *,
    lease_seconds: Lease = None,
    max_attempts: Attempts = None,
    backoff_base: Base = None,
    backoff_factor: Factor = None,
    backoff_cap: Cap = None,
    backoff_jitter: Jitter = None,
    archive_retention_seconds: ArchiveFor = None,
    dead_retention_seconds: DeadFor = None,
    idempotency_seconds: KeysFor = None,
    max_body_bytes: Bytes = None,
) -> None:
    """Change some options of a queue. Running clients follow within seconds."""
    changes = read_options(
        lease_seconds=lease_seconds,
        max_attempts=max_attempts,
        backoff_base=backoff_base,
        backoff_factor=backoff_factor,
        backoff_cap=backoff_cap,
        backoff_jitter=backoff_jitter,
        archive_retention_seconds=archive_retention_seconds,
        dead_retention_seconds=dead_retention_seconds,
        idempotency_seconds=idempotency_seconds,
        max_body_bytes=max_body_bytes,
    )
    if not changes:
        raise InvalidInput("nothing to change: give at least one option")
    _show_queue(session, session.client.admin.alter_queue(name, **changes), "is changed")


@command(app, "list")
def list_(session: Session) -> None:
    """Show all queues and their options."""
    queues = session.client.admin.list_queues()
    if session.out.json:
        session.out.document([queue_document(queue) for queue in queues])
        return
    session.out.table(
        OPTIONS, [options_row(queue) for queue in queues], empty="no queues; make one: pgqrs queue create NAME"
    )


@command(app, "metrics")
def metrics(
    session: Session, name: Annotated[str | None, typer.Argument(metavar="[QUEUE]", help="One queue; else all.")] = None
) -> None:
    """Show the figures of one queue, or of all. ~ marks estimates."""
    if name is None:
        every = session.client.admin.all_queues_metrics()
        if session.out.json:
            session.out.document([figures_document(one) for one in every])
        else:
            session.out.table(*that_fit([figures(one) for one in every]), empty="no queues")
        _report(session, every)
        return
    one = session.client.admin.queue_metrics(name)
    if session.out.json:
        session.out.document(figures_document(one))
        return
    session.out.facts((column.title, shown) for column, shown in zip(FIGURES, figures(one), strict=True))


@command(app, "pause")
def pause(session: Session, name: Name) -> None:
    """Let nothing be claimed until `resume`. Sending and settling go on."""
    session.client.admin.pause_queue(name)
    _done(session, {"queue": name, "paused": True}, f"queue {name!r} is paused")


@command(app, "resume")
def resume(session: Session, name: Name) -> None:
    """End a pause."""
    session.client.admin.resume_queue(name)
    _done(session, {"queue": name, "paused": False}, f"queue {name!r} is open")


@command(app, "purge")
def purge(session: Session, name: Name, *, yes: Yes = False) -> None:
    """Remove all messages but those in flight and the dead."""
    if not yes:
        one = session.client.admin.queue_metrics(name)
        ask(
            f"This removes {count(one, 'ready')} ready, {count(one, 'delayed')} delayed and {count(one, 'expired')} "
            f"expired messages of queue {name!r}.",
            yes=yes,
        )
    removed = session.client.admin.purge_queue(name)
    _done(session, {"queue": name, "removed": removed}, f"{plural(removed, 'message')} removed from queue {name!r}")


@command(app, "delete")
def delete(session: Session, name: Name, *, yes: Yes = False) -> None:
    """Drop a queue with everything in it. Archive and dead letters go, too."""
    if not yes:
        ask(f"This drops queue {name!r} with its messages: {_held(session, name)}.", yes=yes)
    session.client.admin.delete_queue(name)
    _done(session, {"queue": name, "deleted": True}, f"queue {name!r} is deleted")


def _held(session: Session, name: str) -> str:
    """Say what a queue holds, or that it cannot be read: such a one may be what is to go."""
    try:
        one = session.client.admin.queue_metrics(name)
    except ServerError as error:
        return f"how many cannot be told ({error})"
    kinds = ("ready", "delayed", "in_flight", "expired", "dead", "archived")
    return ", ".join(f"{count(one, kind)} {kind.replace('_', ' ')}" for kind in kinds)


def _report(session: Session, every: Sequence[Metrics]) -> None:
    """Say on standard error which queues could not be read, and fail if there are some."""
    unreadable = [one for one in every if one.error is not None]
    for one in unreadable:
        session.out.note(f"queue {one.queue!r} cannot be read: {one.error}")
    if unreadable:
        raise typer.Exit(1)


def _show_queue(session: Session, queue: Queue, what: str) -> None:
    if session.out.json:
        session.out.document(queue_document(queue))
        return
    session.out.say(f"queue {queue.name!r} {what}: " + ", ".join(summary(queue)))


def _done(session: Session, document: dict[str, Any], sentence: str) -> None:
    if session.out.json:
        session.out.document(document)
    else:
        session.out.say(sentence)
