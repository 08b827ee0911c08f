"""``top``: all queues, live."""

import contextlib
import os
import select
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live

from pgqrs_core.errors import Unavailable
from pgqrs_native.command.frame import Frame, observe
from pgqrs_native.command.inputs import InvalidInput, duration
from pgqrs_native.command.output import make_console, show
from pgqrs_native.command.rates import Rates
from pgqrs_native.command.session import Session, command

__all__ = ["register"]

_SHORTEST = 0.1


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(app, "top", panel="Watching")(top)


def top(
    session: Session,
    *,
    interval: Annotated[str, typer.Option("--interval", metavar="TIME", help="Between two looks.")] = "1",
    once: Annotated[bool, typer.Option("--once", help="Look once and end; so too when not on a terminal.")] = False,
) -> None:
    """Watch all queues: counts, rates, ages. q or Ctrl-C ends it."""
    pause = duration("--interval", interval)
    if not _SHORTEST <= pause <= 3600:
        raise InvalidInput(f"--interval must be from {_SHORTEST} to 3,600 seconds, not {interval!r}")
    console = make_console()
    if once or session.out.json or not sys.stdout.isatty():
        _once(session, console, pause)
    else:
        with contextlib.suppress(KeyboardInterrupt):
            _live(session, console, pause)


def _looker(session: Session) -> Callable[[], Frame]:
    engine, rates = session.client.engine, Rates()
    return lambda: engine.run(engine.checked, observe, engine.schema, rates)


def _once(session: Session, console: Console, pause: float) -> None:
    look = _looker(session)
    look()
    # A rate needs two looks.
    time.sleep(pause)
    frame = look()
    if session.out.json:
        session.out.document(frame.document())
    else:
        show(frame.draw(session.client.config.target, width=console.width, height=None))


def _live(session: Session, console: Console, pause: float) -> None:
    look = _looker(session)
    target = session.client.config.target
    # Whoever cannot connect at all should learn it in the ordinary way.
    frame = look()
    with _keys() as pressed, Live(console=console, screen=True, auto_refresh=False) as live:
        hint = "q ends"
        while True:
            live.update(frame.draw(target, width=console.width, height=console.height, hint=hint), refresh=True)
            if pressed(pause):
                return
            try:
                frame, hint = look(), "q ends"
            except Unavailable as error:
                hint = f"these figures are old: {error}"


@contextlib.contextmanager
def _keys() -> Iterator[Callable[[float], bool]]:
    """Yield a function that sleeps, and tells whether somebody pressed q meanwhile."""
    if not sys.stdin.isatty():

        def sleep(seconds: float) -> bool:
            time.sleep(seconds)
            return False

        yield sleep
        return
    keyboard = sys.stdin.fileno()
    before = termios.tcgetattr(keyboard)

    def listen(seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if select.select([keyboard], [], [], left)[0]:
                key = os.read(keyboard, 1)
                # Nothing to read means that the terminal has gone.
                if key in (b"q", b"Q", b"\x1b", b""):
                    return True
        return False

    tty.setcbreak(keyboard)
    try:
        yield listen
    finally:
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)
