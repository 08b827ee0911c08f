"""``message``: sending, reading and looking at messages by hand."""

import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any

import typer

from pgqrs_core.errors import LeaseLost
from pgqrs_core.marks import Marks
from pgqrs_core.messages import Snapshot, check_number
from pgqrs_core.operations.findings import span
from pgqrs_core.operations.traffic import incoming
from pgqrs_native.command import message_by_id
from pgqrs_native.command.bodies import describe, preview
from pgqrs_native.command.inputs import InvalidInput, date, duration, headers, json_payload, raw_input
from pgqrs_native.command.output import Column, ago, plural
from pgqrs_native.command.queue import Name
from pgqrs_native.command.session import Session, command
from pgqrs_native.message import Message
from pgqrs_native.shared import check_read

__all__ = ["app"]

app = typer.Typer(help="Send, read and look at messages.", no_args_is_help=True)
message_by_id.register(app)

_TIME = "TIME"


@command(app, "send")
def send(
    session: Session,
    name: Name,
    message: Annotated[
        str | None, typer.Argument(metavar="JSON|-", help="The payload; - reads standard input.")
    ] = None,
    *,
    file: Annotated[Path | None, typer.Option("--file", metavar="FILE", help="Read the payload from a file.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Send the bytes as they are, not JSON.")] = False,
    priority: Annotated[int, typer.Option("--priority", help="0 to 9; 9 is delivered first.")] = 0,
    delay: Annotated[
        str | None, typer.Option("--delay", metavar=_TIME, help="Deliver it not before this time.")
    ] = None,
    at: Annotated[str | None, typer.Option("--at", metavar="DATE", help="Deliver it from this date on.")] = None,
    ttl: Annotated[
        str | None, typer.Option("--ttl", metavar=_TIME, help="Deliver it no longer after this time.")
    ] = None,
    header: Annotated[list[str] | None, typer.Option("--header", metavar="KEY=VALUE", help="Repeatable.")] = None,
    idempotency_key: Annotated[
        str | None,
        typer.Option("--idempotency-key", metavar="KEY", help="Send it once, however often this is repeated."),
    ] = None,
) -> None:
    """Send one message. Times: 30, 5m, 2h, 7d."""
    if delay is not None and at is not None:
        raise InvalidInput("--delay and --at are both given; leave one of them out")
    options: dict[str, Any] = {
        "priority": priority,
        "delay": None if delay is None else duration("--delay", delay),
        "at": None if at is None else date("--at", at),
        "ttl": None if ttl is None else duration("--ttl", ttl),
        "headers": headers(header or []),
        "idempotency_key": idempotency_key,
    }
    body, source = raw_input(message, file)
    payload = body if raw else json_payload(body, source)
    number = session.client.producer.enqueue(name, payload, **options)
    if session.out.json:
        session.out.document({"queue": name, "id": number})
    else:
        session.out.say(f"message {number} sent to queue {name!r}")


@command(app, "read")
def read(
    session: Session,
    name: Name,
    *,
    count: Annotated[int, typer.Option("--count", help="At most so many.")] = 1,
    lock_time: Annotated[
        str | None, typer.Option("--lock-time", metavar=_TIME, help="How long to hide them; by default the queue's.")
    ] = None,
    wait: Annotated[str, typer.Option("--wait", metavar=_TIME, help="How long to wait if there is none.")] = "0",
    ack: Annotated[bool, typer.Option("--ack", help="Remove them once they are shown.")] = False,
    archive: Annotated[bool, typer.Option("--archive", help="Archive them once they are shown.")] = False,
) -> None:
    """Claim messages and show them. Without --ack or --archive they come back when their lease ends."""
    if ack and archive:
        raise InvalidInput("--ack and --archive are both given; leave one of them out")
    lease = None if lock_time is None else duration("--lock-time", lock_time)
    found = _claim(session, name, count, lease, duration("--wait", wait))
    until = datetime.fromtimestamp(found[0].claimed_at + found[0].lease_seconds, timezone.utc) if found else None
    if session.out.json:
        leased_until = None if ack or archive else until
        session.out.document([{**_document(one), "leased_until": leased_until} for one in found])
    else:
        session.out.table(_COLUMNS, [_row(one) for one in found], empty=f"nothing to read in queue {name!r}")
    if not found:
        return
    if ack or archive:
        _settle(session, found, archive=archive)
    elif not session.out.json:
        assert until is not None
        session.out.note(
            f"{plural(len(found), 'message')} leased for {span(found[0].lease_seconds)}, until "
            f"{until.astimezone():%H:%M:%S}; then they come back. --ack removes them, --archive keeps them."
        )


def _claim(session: Session, name: str, count: int, lease: float | None, wait: float) -> list[Message[bytes]]:
    """Claim messages with bodies that no serializer has touched: to look at a message must not run its contents."""
    engine = session.client.engine
    check_read(engine.config, engine.plugins, bytes, count=count, lock_time=lease, wait=wait, mismatch="return")
    queue = engine.queue(name)
    seconds = queue.options.lease_seconds if lease is None else lease
    found = engine.on(
        name, incoming, Marks(), limit=count, lease=seconds, patience=wait, plugins=engine.plugins, adapter="native"
    )
    now = time.time()
    return [Message(queue, one, one.body, claimed_at=now, lease_seconds=seconds) for one in found]


def _settle(session: Session, found: list[Message[bytes]], *, archive: bool) -> None:
    consumer = session.client.consumer
    kept = (consumer.archive_batch if archive else consumer.dequeue_batch)(found)
    lost = [message for message, held in zip(found, kept, strict=True) if not held]
    if lost:
        raise LeaseLost(lost[0].queue, lost[0].id)
    if not session.out.json:
        session.out.note(f"{plural(len(found), 'message')} {'archived' if archive else 'removed'}")


_COLUMNS = [
    Column("id", "number"),
    Column("prio", "number"),
    Column("attempt", "number"),
    Column("enqueued"),
    Column("type"),
    Column("body", "body"),
]


def _row(message: Message[bytes]) -> list[str]:
    return [
        str(message.id),
        str(message.priority),
        str(message.attempt),
        ago(message.enqueued_at),
        short_type(message.content_type),
        preview(message.body),
    ]


def _document(message: Message[bytes]) -> dict[str, Any]:
    return {
        "id": message.id,
        "queue": message.queue,
        "priority": message.priority,
        "attempt": message.attempt,
        "enqueued_at": message.enqueued_at,
        "headers": message.headers,
        **describe(message.content_type, message.body),
    }


@command(app, "peek")
def peek(
    session: Session,
    name: Name,
    *,
    count: Annotated[int, typer.Option("--count", help="At most so many.")] = 10,
) -> None:
    """Show the next messages without claiming them. Those in flight are shown, too."""
    check_number("count", count, 1, 100_000, whole=True)
    found = session.client.admin.peek(name, count)
    if session.out.json:
        session.out.document([_snapshot(name, one) for one in found])
        return
    columns = [*_COLUMNS[:1], Column("state"), *_COLUMNS[1:]]
    rows = [
        [
            str(one.id),
            _state(one),
            str(one.priority),
            str(one.attempt),
            ago(one.enqueued_at),
            short_type(one.content_type),
            preview(one.body),
        ]
        for one in found
    ]
    session.out.table(columns, rows, empty=f"queue {name!r} holds no messages but dead ones, if any")


def _state(one: Snapshot) -> str:
    if one.state != "delayed" or one.due_at is None:
        return one.state
    left = (one.due_at - datetime.now(timezone.utc)).total_seconds()
    return f"due in {span(max(left, 0.0))}"


def _snapshot(name: str, one: Snapshot) -> dict[str, Any]:
    return {
        "id": one.id,
        "queue": name,
        "state": one.state.replace(" ", "_"),
        "priority": one.priority,
        "attempt": one.attempt,
        "enqueued_at": one.enqueued_at,
        "due_at": one.due_at,
        "expires_at": one.expires_at,
        "headers": one.headers,
        **describe(one.content_type, one.body),
    }


def short_type(content_type: str) -> str:
    """Shorten the two content types that nearly all messages have."""
    return {"application/json": "json", "application/octet-stream": "bytes"}.get(content_type, content_type)
