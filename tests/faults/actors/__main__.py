"""Be one actor: see `actors`."""

from __future__ import annotations

import json
import logging
import os
import sys
from importlib import import_module
from pathlib import Path

import broken
import psycopg

from actors import producing, pulling
from actors.handling import end_when_idle
from actors.options import Notes, Options
from actors.overhearing import overhear
from pgqrs_core.drivers import patience

#: Adapters whose consumers ask for messages, and those whose consumers are commands that call handlers.
PULLING = ("native", "kombu")
WORKING = ("celery", "dramatiq")


class Hostile(logging.Handler):
    """A handler of the log that ends whoever logs."""

    def handle(self, record: logging.LogRecord) -> bool:
        raise SystemExit("a handler of the log")


def main() -> None:
    role, path, dsn, given = sys.argv[1:5]
    options = Options(**json.loads(given))
    patience._GRACE = options.grace
    notes, name = Notes(path), Path(path).stem
    dsn = psycopg.conninfo.make_conninfo(dsn, connect_timeout=2)
    adapter = import_module(f"actors.{options.adapter}")
    broken.BUGS[options.bug]()
    if options.hostile and role == "consumer":
        logging.getLogger("pgqrs").addHandler(Hostile())
    if options.adapter != "native":
        overhear(notes, handled=options.adapter in WORKING)
    print("ready", flush=True)
    sys.stdin.readline()
    # Nobody reads any more what a command says of itself.
    os.dup2(2, 1)
    if role == "consumer" and options.adapter in WORKING:
        end_when_idle(options, Path(path))
        adapter.work(name, dsn, options, notes)
        return
    made = getattr(adapter, options.adapter.capitalize())(dsn, options)
    if role == "producer":
        producing.produce(made, dsn, notes, name, options)
    else:
        pulling.consume(made, notes, name, options)
    made.close()


if __name__ == "__main__":
    main()
