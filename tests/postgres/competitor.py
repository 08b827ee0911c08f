"""A producer or consumer of `test_competing.py`, as a process of its own that notes what it does."""

from __future__ import annotations

import json
import os
import random
import sys
import time
from typing import Any

import psycopg

from pgqrs_core.engine import Engine
from pgqrs_core.events import Draft
from pgqrs_core.marks import Marks
from pgqrs_core.operations import claim, enqueue, settle

LEASE = 0.6
BATCH = 8

now = time.monotonic


class Notes:
    """A file to which each event goes at once, so that a death loses at most the one being written."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def __call__(self, op: str, **fields: Any) -> None:
        os.write(self._file, (json.dumps({"op": op, **fields}) + "\n").encode())


def produce(engine: Engine, notes: Notes, name: str, chance: random.Random, count: int) -> None:
    queue = engine.queue("jobs")
    number = 0
    with psycopg.connect(engine.config.conninfo()) as connection:
        while number < count:
            keys = [f"{name}-{number + place}" for place in range(chance.choice([1, 1, 3, 20]))]
            number += len(keys)
            drafts = [Draft("jobs", key.encode(), "text/plain", priority=chance.choice([0, 0, 5])) for key in keys]
            for key in keys:
                notes("sending", key=key)
            if chance.random() < 0.3:
                # In a transaction of the caller's that takes its time, so that ids are committed out of order.
                ids = engine.run_in(connection, enqueue.enqueue, queue, drafts)
                time.sleep(chance.random() * 0.05)
                if chance.random() < 0.3:
                    connection.rollback()
                    for key in keys:
                        notes("aborted", key=key)
                    continue
                connection.commit()
            else:
                ids = engine.on("jobs", enqueue.enqueue, drafts, engine.doorbell)
            for key, number_given in zip(keys, ids, strict=True):
                notes("sent", key=key, id=number_given)


def consume(engine: Engine, notes: Notes, chance: random.Random, done: str, *, mortal: bool) -> None:
    marks, kept, busy_at = Marks(), [], now()
    while True:
        began = now()
        found = engine.on("jobs", claim.receive, marks, limit=chance.choice([1, BATCH]), lease=LEASE, patience=0.0)
        ended = now()
        for item in found:
            notes(
                "claimed",
                key=item.body.decode(),
                id=item.id,
                token=item.token,
                attempt=item.attempt,
                lease=LEASE,
                began=began,
                ended=ended,
            )
        if not found:
            if os.path.exists(done) and now() - busy_at > 2 * LEASE:
                return
            time.sleep(0.01)
            continue
        busy_at = now()
        if mortal and chance.random() < 0.02:
            os._exit(9)
        if chance.random() < 0.02:
            # Slower than its lease.
            time.sleep(1.2 * LEASE)
        kept += found
        # Some are kept beyond their leases, and asked about all the same.
        chosen = [item for item in kept if chance.random() < 0.8]
        kept = [item for item in kept if item not in chosen]
        what = chance.choice(["ack", "ack", "ack", "archive", "nack", "release"])
        began = now()
        for item in chosen:
            notes("settling", what=what, id=item.id, token=item.token, began=began)
        leases = [item.lease for item in chosen]
        if what == "nack":
            delay = chance.choice([0.0, 0.1])
            fates = engine.on("jobs", settle.nack, [settle.Failure(lease, delay) for lease in leases], engine.doorbell)
            answers = [fate != "lost" for fate in fates]
        elif what == "release":
            answers = engine.on("jobs", settle.release, leases, engine.doorbell)
        else:
            answers = engine.on("jobs", getattr(settle, what), leases)
        ended = now()
        for item, answer in zip(chosen, answers, strict=True):
            notes("settled", what=what, id=item.id, token=item.token, ok=answer, began=began, ended=ended)


def main() -> None:
    role, dsn, notes, name, done = sys.argv[1:6]
    chance = random.Random(name)
    with Engine(dsn) as engine:
        engine.queue("jobs")
        print("ready", flush=True)
        sys.stdin.readline()
        if role == "producer":
            produce(engine, Notes(notes), name, chance, int(sys.argv[6]))
        else:
            consume(engine, Notes(notes), chance, done, mortal=role == "mortal")


if __name__ == "__main__":
    main()
