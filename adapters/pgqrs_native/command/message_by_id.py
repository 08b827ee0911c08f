"""``message show`` and ``message delete``: single messages, whatever their state."""

from typing import Annotated, Any

import typer

from pgqrs_core.errors import PgqrsError
from pgqrs_core.messages import InspectedMessage
from pgqrs_native.command.bodies import describe, readable, size
from pgqrs_native.command.consent import Yes, ask
from pgqrs_native.command.output import ago, due, moment, plural
from pgqrs_native.command.queue import Name
from pgqrs_native.command.session import Session, command

__all__ = ["register", "show_facts"]

Id = Annotated[int, typer.Argument(metavar="ID", help="The message's id.")]
Ids = Annotated[list[int], typer.Argument(metavar="ID...", help="Which messages.")]
Held = Annotated[bool, typer.Option("--in-flight", help="Also those that a consumer holds; it loses its lease.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    command(app, "show")(show)
    command(app, "delete")(delete)


def show(session: Session, name: Name, number: Id) -> None:
    """Show one message in full, whatever its state, without claiming it."""
    one = session.client.admin.show_message(name, number)
    if one is None:
        raise PgqrsError(f"queue {name!r} holds no message {number}: it was settled, or has another id")
    if session.out.json:
        session.out.document(_document(name, one))
        return
    show_facts(
        session,
        [
            ("id", str(one.id)),
            ("state", one.state),
            ("priority", str(one.priority)),
            ("attempts", str(one.attempt)),
            ("enqueued", f"{moment(one.enqueued_at)} ({ago(one.enqueued_at)})"),
            *_times(one),
        ],
        one,
    )


def _times(one: InspectedMessage) -> list[tuple[str, str]]:
    found = []
    if one.due_at is not None:
        found.append(("died" if one.state == "dead" else "due", f"{moment(one.due_at)} ({due(one.due_at)})"))
    if one.expires_at is not None:
        found.append(("expires", f"{moment(one.expires_at)} ({due(one.expires_at)})"))
    if one.leased_until is not None:
        found.append(("leased until", f"{moment(one.leased_until)} ({due(one.leased_until)})"))
    return found


def show_facts(session: Session, facts: list[tuple[str, str]], one: Any) -> None:
    """Write what is known of a message: these facts, and its error, headers and body."""
    error = {key: value for key, value in one.error.items() if key not in ("type", "message", "traceback")}
    reason = ": ".join(str(part) for part in (one.error.get("type"), one.error.get("message")) if part)
    session.out.facts(
        [
            *facts,
            *([("error", reason or "unknown")] if one.error else []),
            *((f"error.{key}", str(value)) for key, value in error.items()),
            *((f"header.{key}", str(value)) for key, value in one.headers.items()),
            ("type", one.content_type),
            ("size", size(len(one.body))),
            ("body", readable(one.content_type, one.body)),
        ]
    )
    if "traceback" in one.error:
        session.out.facts([("traceback", str(one.error["traceback"]).rstrip())])


def delete(session: Session, name: Name, ids: Ids, *, in_flight: Held = False, yes: Yes = False) -> None:
    """Remove messages for good, whatever their state. Those in flight only if told to."""
    chosen = list(dict.fromkeys(ids))
    if not yes:
        which = f"message {chosen[0]}" if len(chosen) == 1 else plural(len(chosen), "message")
        ask(f"This removes {which} of queue {name!r} for good.", yes=yes)
    done = session.client.admin.delete_messages(name, chosen, in_flight=in_flight)
    if session.out.json:
        session.out.document({"queue": name, "deleted": done.deleted, "in_flight": done.in_flight})
    else:
        session.out.say(f"{plural(len(done.deleted), 'message')} removed")
    if done.in_flight:
        shown = ", ".join(map(str, done.in_flight[:10]))
        raise PgqrsError(f"a consumer holds {shown}: nothing was done to them; --in-flight removes them all the same")
    if len(done.deleted) < len(chosen):
        raise PgqrsError(f"{len(chosen) - len(done.deleted):,} of {plural(len(chosen), 'message')} were not there")


def _document(name: str, one: InspectedMessage) -> dict[str, Any]:
    return {
        "id": one.id,
        "queue": name,
        "state": one.state.replace(" ", "_"),
        "priority": one.priority,
        "attempt": one.attempt,
        "enqueued_at": one.enqueued_at,
        "due_at": one.due_at,
        "expires_at": one.expires_at,
        "leased_until": one.leased_until,
        "error": one.error,
        "headers": one.headers,
        **describe(one.content_type, one.body),
    }
