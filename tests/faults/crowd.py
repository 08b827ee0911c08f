"""Producers and consumers as processes on one server, and the judgement of what they did."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
from pgqrs_native import Client

from .actors.options import QUEUES
from .bodies import key_of
from .history import check, read

HERE = Path(__file__).parent

#: Seconds that anything may take before a test gives up.
LIMIT = 60.0

#: How many claims a process may have made that it did not live to note: the most that it takes at once.
UNNOTED = {"native": 8, "kombu": 16, "celery": 16, "dramatiq": 16}

#: Crowds of one adapter, by what is special about them. What a killed one held is behind the low-water marks of the others,
#: and found when they look back, at times after seconds.
KINDS: dict[str, dict[str, Any]] = {
    "native": {"adapter": "native"},
    "kombu": {"adapter": "kombu", "lease": 1.0},
    "celery": {"adapter": "celery", "lease": 1.0, "idle": 4.0},
    "celery with prefork": {"adapter": "celery", "lease": 1.0, "idle": 4.0, "pool": "prefork", "concurrency": 2},
    "dramatiq": {"adapter": "dramatiq", "lease": 1.0, "idle": 4.0},
}


def until(condition: Callable[[], Any], what: str, *, limit: float = LIMIT) -> Any:
    """Wait for a condition, and return what it found; a server that is away is no answer."""
    deadline = time.monotonic() + limit
    found: Any = None
    while True:
        try:
            found = condition()
        except psycopg.OperationalError as error:
            found, why = None, f": {error}"
        else:
            why = ""
        if found:
            return found
        assert time.monotonic() < deadline, f"waited in vain until {what}{why}"
        time.sleep(0.02)


def ask(dsn: str, query: str, *params: Any) -> list[tuple[Any, ...]]:
    """Run a statement on a connection of its own."""
    with psycopg.connect(dsn, autocommit=True, connect_timeout=5) as connection:
        cursor = connection.execute(query.encode(), params or None)
        return cursor.fetchall() if cursor.description else []


class Actor:
    """One process, with the children that some workers have."""

    def __init__(self, role: str, adapter: str, name: str, process: subprocess.Popen[str], notes: Path) -> None:
        self.role = role
        self.adapter = adapter
        self.name = name
        self.process = process
        self.notes = notes
        self.victim = False

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    def noted(self, op: str) -> int:
        """How many events of a kind it has noted."""
        return self.notes.read_text().count(f'"op": "{op}"') if self.notes.exists() else 0

    def kill(self) -> None:
        """End it without a last word."""
        self.victim = True
        self._signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        # It leads a group of its own, and its children may have outlived it.
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def close(self) -> None:
        self._signal(signal.SIGKILL)
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream:
                stream.close()


class Crowd:
    """Actors, and the queues on which they meet, which are made here: see `actors.options.QUEUES`.

    Args:
        dsn: the server as the actors reach it.
        folder: where histories go.
        direct: the server as the test reaches it, if something stands between it and the actors.
        options: of all actors, see `actors.options.Options`.
    """

    def __init__(self, dsn: str, folder: Path, *, direct: str | None = None, **options: Any) -> None:
        self.dsn = dsn
        self.direct = direct or dsn
        self.folder = folder
        self.halt, self.done = folder / "halt", folder / "done"
        self.options = {"halt": str(self.halt), "done": str(self.done), **options}
        self.actors: list[Actor] = []
        self.crashes: list[dict[str, Any]] = []
        with Client(self.direct) as client:
            client.admin.install()
            for name in self.queues:
                client.admin.create_queue(name, max_attempts=1_000_000, archive=True, lease_seconds=1.0)

    @property
    def queues(self) -> list[str]:
        return sorted(set(QUEUES.values()))

    def start(self, role: str, **options: Any) -> Actor:
        """Start a producer or a consumer; it begins with `release`."""
        given = {**self.options, **options}
        name = f"{role}{len(self.actors) + 1}"
        notes = self.folder / f"{name}.jsonl"
        command = [sys.executable, "-m", "actors", role, notes, given.pop("dsn", self.dsn), json.dumps(given)]
        process = subprocess.Popen(
            list(map(str, command)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=HERE,
            start_new_session=True,
        )
        self.actors.append(Actor(role, given.get("adapter", "native"), name, process, notes))
        return self.actors[-1]

    def release(self) -> None:
        """Let all go at once, as soon as each has said that it is ready."""
        fresh = [one.process for one in self.actors if one.process.stdin and not one.process.stdin.closed]
        for process in fresh:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in fresh:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.close()

    def begin(self, *, producers: int = 1, consumers: int = 2, **options: Any) -> None:
        """Start some of each kind, and wait until messages flow."""
        for role, count in (("producer", producers), ("consumer", consumers)):
            for _ in range(count):
                self.start(role, **options)
        self.release()
        self.flow()

    def of(self, role: str) -> list[Actor]:
        return [one for one in self.actors if one.role == role and one.is_running]

    def settled(self) -> int:
        return sum(one.noted("settled") for one in self.actors)

    def flow(self, count: int = 30) -> None:
        """Wait until that many more messages are settled."""
        goal = self.settled() + count
        until(lambda: self.settled() >= goal, f"{count} more messages are settled")

    @contextmanager
    def crash(self) -> Iterator[None]:
        """Note that the server crashes in this block, and with it what it had not flushed."""
        event = {"op": "crashed", "began": time.monotonic(), "ended": float("inf")}
        self.crashes.append(event)
        yield
        event["ended"] = time.monotonic()

    def finish(self, *, alone: bool = False, limit: float = LIMIT) -> list[str]:
        """End producers, let consumers find all that is left, and return what is wrong."""
        self.halt.touch()
        until(lambda: not self.of("producer"), "the producers are done", limit=limit)
        self.done.touch()
        until(lambda: not self.of("consumer"), "the consumers find nothing any more", limit=limit)
        return self.judge(alone=alone)

    def finish_within(self, seconds: float, *, alone: bool = False) -> list[str]:
        """Return what is wrong once the consumers find nothing any more, or when their time is over."""
        until(lambda: not self.of("producer"), "the producers are done")
        self.done.touch()
        deadline = time.monotonic() + seconds
        until(lambda: not self.of("consumer") or time.monotonic() > deadline, "the consumers are done")
        for one in self.of("consumer"):
            one.kill()
        return self.judge(alone=alone)

    def judge(self, *, drained: bool = True, alone: bool = False) -> list[str]:
        """Return what is wrong, wherever messages are now."""
        found = [
            f"FAILED {one.name}: {one.process.returncode}"
            for one in self.actors
            if not one.victim and one.process.returncode not in (None, 0, 9)
        ]
        left, dead = [], []
        for name in self.queues:
            waiting, buried = self._remains(name)
            found += self._counters(name, waiting, buried)
            left += waiting
            dead += buried
        # Nobody buries anything here, and no attempts are used up.
        found += [f"DEAD {key}" for key in dead]
        return found + check(self.history(), left, dead, drained=drained, alone=alone)

    def _remains(self, queue: str) -> tuple[list[str], list[str]]:
        """Return the keys that a queue still holds, and those of its dead letters."""
        rows = [(key_of(body), lane) for body, lane in ask(self.direct, f"select body, lane from pgqrs.q_{queue}")]
        return [key for key, lane in rows if lane != -100], [key for key, lane in rows if lane == -100]

    def history(self) -> list[dict[str, Any]]:
        died = [one for one in self.actors if one.victim or one.process.returncode == 9]
        return [*read(self.folder), *self.crashes, *({"op": "unnoted", "claims": UNNOTED[one.adapter]} for one in died)]

    def count(self, op: str) -> int:
        """How many events of a kind were noted."""
        return sum(1 for event in self.history() if event["op"] == op)

    def _counters(self, queue: str, left: list[str], dead: list[str]) -> list[str]:
        with Client(self.direct) as client:
            figures = client.admin.queue_metrics(queue)
        told = figures.ready + figures.in_flight + figures.delayed
        if (told, figures.dead) == (len(left), len(dead)):
            return []
        return [f"COUNTERS: {told} waiting and {figures.dead} dead, where {len(left)} and {len(dead)} are"]

    def close(self) -> None:
        for one in self.actors:
            one.close()
