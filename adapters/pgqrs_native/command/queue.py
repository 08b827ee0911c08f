"""``queue``: creating, changing, watching and removing queues."""

from collections.abc import Iterator
from typing import Annotated, Any

import msgspec
import typer

from pgqrs_core.messages import Metrics, Queue
from pgqrs_core.operations.findings import span
from pgqrs_native.command.bodies import size
from pgqrs_native.command.consent import Yes, ask
from pgqrs_native.command.inputs import InvalidInput, duration, number_or_never
from pgqrs_native.command.output import Column, count, moment, plural
from pgqrs_native.command.session import Session, command

__all__ = ["app", "document_of", "metrics_document"]

app = typer.Typer(help="Create, change, watch and remove queues.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="QUEUE", help="The queue's name.")]
_TIME = "TIME"
_KEPT = "TIME|never"

Lease = Annotated[
    str | None, typer.Option("--lease-seconds", metavar=_TIME, help="How long a claim hides a message.")
]
Attempts = Annotated[int | None, typer.Option("--max-attempts", help="Deliveries before a message is dead.")]
Base = Annotated[str | None, typer.Option("--backoff-base", metavar=_TIME, help="Delay before the second attempt.")]
Factor = Annotated[float | None, typer.Option("--backoff-factor", help="What multiplies each further delay.")]
Cap = Annotated[str | None, typer.Option("--backoff-cap", metavar=_TIME, help="The longest delay.")]
Jitter = Annotated[float | None, typer.Option("--backoff-jitter", help="The random part of a delay, 0 to 1.")]
Archive = Annotated[bool | None, typer.Option("--archive/--no-archive", help="Whether it keeps an archive.")]
ArchiveFor = Annotated[
    str | None,
    typer.Option("--archive-retention-seconds", metavar=_KEPT, help="How long archived messages are kept."),
]
DeadFor = Annotated[
    str | None, typer.Option("--dead-retention-seconds", metavar=_KEPT, help="How long dead messages are kept.")
]
Bytes = Annotated[int | None, typer.Option("--max-body-bytes", help="The largest body.")]


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
    max_body_bytes: Bytes = None,
) -> None:
    """Create a queue. Harmless to repeat with the same options. Times: 30, 5m, 2h, 7d."""
    options = dict(
        _options(
            lease_seconds=lease_seconds,
            max_attempts=max_attempts,
            backoff_base=backoff_base,
            backoff_factor=backoff_factor,
            backoff_cap=backoff_cap,
            backoff_jitter=backoff_jitter,
            archive=archive,
            archive_retention_seconds=archive_retention_seconds,
            dead_retention_seconds=dead_retention_seconds,
            max_body_bytes=max_body_bytes,
        )
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
    max_body_bytes: Bytes = None,
) -> None:
    """Change some options of a queue; running clients follow within seconds."""
    changes = dict(
        _options(
            lease_seconds=lease_seconds,
            max_attempts=max_attempts,
            backoff_base=backoff_base,
            backoff_factor=backoff_factor,
            backoff_cap=backoff_cap,
            backoff_jitter=backoff_jitter,
            archive_retention_seconds=archive_retention_seconds,
            dead_retention_seconds=dead_retention_seconds,
            max_body_bytes=max_body_bytes,
        )
    )
    if not changes:
        raise InvalidInput("nothing to change: give at least one option")
    _show_queue(session, session.client.admin.alter_queue(name, **changes), "is changed")


def _options(**given: Any) -> Iterator[tuple[str, Any]]:
    """Keep what was given, times read."""
    for name, value in given.items():
        if value is None:
            continue
        option = f"--{name.replace('_', '-')}"
        if name.endswith("retention_seconds"):
            yield name, number_or_never(option, value)
        else:
            yield name, duration(option, value) if isinstance(value, str) else value


@command(app, "list")
def list_(session: Session) -> None:
    """Show all queues and their options."""
    queues = session.client.admin.list_queues()
    if session.out.json:
        session.out.document([document_of(queue) for queue in queues])
        return
    columns = [
        Column("queue", "name"),
        Column("state"),
        Column("lease", "number"),
        Column("attempts", "number"),
        Column("back-off", "fold"),
        Column("archive"),
        Column("max. body", "number"),
    ]
    session.out.table(columns, [_row(queue) for queue in queues], empty="no queues; make one: pgqrs queue create NAME")


def _row(queue: Queue) -> list[str]:
    options = queue.options
    kept = options.archive_retention_seconds
    return [
        queue.name,
        "paused" if queue.paused_at else "open",
        span(options.lease_seconds),
        f"{options.max_attempts:,}",
        f"{span(options.backoff_base)} ×{options.backoff_factor:g} to {span(options.backoff_cap)}",
        ("for ever" if kept is None else span(kept)) if options.archive else "none",
        size(options.max_body_bytes),
    ]


@command(app, "metrics")
def metrics(
    session: Session, name: Annotated[str | None, typer.Argument(metavar="[QUEUE]", help="One queue; else all.")] = None
) -> None:
    """Show the figures of one queue, or of all. ~ marks estimates."""
    if name is None:
        every = session.client.admin.all_queues_metrics()
        if session.out.json:
            session.out.document([metrics_document(one) for one in every])
        else:
            session.out.table(_COLUMNS, [figures(one) for one in every], empty="no queues")
        return
    one = session.client.admin.queue_metrics(name)
    if session.out.json:
        session.out.document(metrics_document(one))
        return
    titles = [column.title for column in _COLUMNS]
    session.out.facts(zip(titles, figures(one)))


_COLUMNS = [
    Column("queue", "name"),
    Column("ready", "number"),
    Column("delayed", "number"),
    Column("in flight", "number"),
    Column("dead", "number"),
    Column("archived", "number"),
    Column("oldest", "number"),
    Column("next due", "number"),
    Column("state"),
]


def figures(one: Metrics) -> list[str]:
    """Return the figures of a queue as texts."""
    return [
        one.queue,
        count(one, "ready"),
        count(one, "delayed"),
        count(one, "in_flight"),
        count(one, "dead"),
        count(one, "archived"),
        "–" if one.oldest_ready_seconds is None else span(one.oldest_ready_seconds),
        "–" if one.next_due_seconds is None else f"in {span(one.next_due_seconds)}",
        "paused" if one.paused else "open",
    ]


@command(app, "pause")
def pause(session: Session, name: Name) -> None:
    """Let nothing be claimed until `resume`; sending and settling go on."""
    session.client.admin.pause_queue(name)
    _done(session, {"queue": name, "paused": True}, f"queue {name!r} is paused")


@command(app, "resume")
def resume(session: Session, name: Name) -> None:
    """End a pause."""
    session.client.admin.resume_queue(name)
    _done(session, {"queue": name, "paused": False}, f"queue {name!r} is open")


@command(app, "purge")
def purge(session: Session, name: Name, *, yes: Yes = False) -> None:
    """Remove the ready and delayed messages; those in flight and the dead stay."""
    if not yes:
        one = session.client.admin.queue_metrics(name)
        ask(
            f"This removes {count(one, 'ready')} ready and {count(one, 'delayed')} delayed messages of queue {name!r}.",
            yes=yes,
        )
    removed = session.client.admin.purge_queue(name)
    _done(session, {"queue": name, "removed": removed}, f"{plural(removed, 'message')} removed from queue {name!r}")


@command(app, "delete")
def delete(session: Session, name: Name, *, yes: Yes = False) -> None:
    """Drop a queue with everything in it, archive and dead letters included."""
    if not yes:
        one = session.client.admin.queue_metrics(name)
        kinds = ("ready", "delayed", "in_flight", "dead", "archived")
        held = ", ".join(f"{count(one, kind)} {kind.replace('_', ' ')}" for kind in kinds)
        ask(f"This drops queue {name!r} with its messages: {held}.", yes=yes)
    session.client.admin.delete_queue(name)
    _done(session, {"queue": name, "deleted": True}, f"queue {name!r} is deleted")


def document_of(queue: Queue) -> dict[str, Any]:
    """Return how a document shows a queue."""
    return {
        "queue": queue.name,
        "table": f"q_{queue.suffix}",
        "paused": queue.paused_at is not None,
        "created_at": queue.created_at,
        "options": msgspec.structs.asdict(queue.options),
    }


def metrics_document(one: Metrics) -> dict[str, Any]:
    """Return how a document shows a queue's figures."""
    return {**msgspec.structs.asdict(one), "estimated": list(one.estimated)}


def _show_queue(session: Session, queue: Queue, what: str) -> None:
    if session.out.json:
        session.out.document(document_of(queue))
        return
    session.out.say(f"queue {queue.name!r} {what}: " + ", ".join(_summary(queue)))


def _summary(queue: Queue) -> Iterator[str]:
    options = queue.options
    yield f"lease {span(options.lease_seconds)}"
    yield plural(options.max_attempts, "attempt")
    yield "with an archive" if options.archive else "without an archive"
    if queue.paused_at:
        yield f"paused since {moment(queue.paused_at)}"


def _done(session: Session, document: dict[str, Any], sentence: str) -> None:
    if session.out.json:
        session.out.document(document)
    else:
        session.out.say(sentence)
