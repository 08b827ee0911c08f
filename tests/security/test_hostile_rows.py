"""Hostile rows in every table, by every role that may insert there and by the owner, beside honest traffic.

Checked: each honest message is handled, no honest one is dead, the workers stay, and whatever monitors answers.
"""

from __future__ import annotations

import contextlib
import io
import json
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pgqrs_prometheus
import pytest
from celery import chord, group
from pgqrs_native import Client, Message, Worker
from pgqrs_native.command.app import run
from prometheus_client import CollectorRegistry

from pgqrs_core import Plugins
from pgqrs_core.sql import DUTIES
from pgqrs_core.testing import PATIENCE, eventually
from tests.adapters.celery import celery_support
from tests.adapters.dramatiq import dramatiq_support
from tests.support.hostile import HostileRows, without_constraints

from .estate import Estate

pytestmark = pytest.mark.timeout(280)

#: What honest messages say, so that no hostile row is taken for one.
HONEST = "honest-5f1c"


class Traffic:
    """Workers of all kinds on one database, and honest messages for them."""

    def __init__(self, estate: Estate, directory: Path) -> None:
        self.dsn = estate.dsn
        self.client = estate.owner
        self.sent: set[str] = set()
        self.handled: set[str] = set()
        self._rounds = 0
        self.cleanup = contextlib.ExitStack()
        for name in ("celery", "dramatiq"):
            (directory / name).mkdir()
        self.celery = celery_support.Workers(self.dsn, directory / "celery")
        self.cleanup.callback(self.celery.close)
        self.celery.app.conf.update(result_backend=self.celery.url, task_ignore_result=False)
        self.dramatiq = dramatiq_support.Workers(self.dsn, directory / "dramatiq")
        self.cleanup.callback(self.dramatiq.close)
        results = {"result_backend": self.celery.url, "task_ignore_result": False}
        self.processes = [
            self.celery.start("solo", conf={**results, "visibility_timeout": 30}),
            self.dramatiq.start(threads=2),
        ]
        self.worker = Worker(self.client, concurrency=2)
        self.worker.handler("jobs", dict[str, str])(self._handle)
        self.thread = threading.Thread(target=self.worker.run, kwargs={"signals": False})
        self.thread.start()

    def _handle(self, message: Message[dict[str, str]]) -> None:
        self.handled.add(message.payload["word"])

    def send(self, count: int) -> None:
        """Send as many messages of each kind, and a chord and a group beside them."""
        self._rounds += 1
        words = [f"{HONEST}-{self._rounds}-{number}" for number in range(count)]
        self.client.producer.batch_enqueue("jobs", [{"word": f"native {word}"} for word in words])
        self.client.producer.enqueue_delayed("jobs", {"word": f"native {words[0]} late"}, delay=0.2)
        say = self.celery.tasks.say
        self.results = [say.delay(f"celery {word}") for word in words]
        self.results.append(group(say.s(f"celery {word} in a group") for word in words[:2])())
        header = [say.s(f"celery {word} in a chord") for word in words[:2]]
        self.results.append(chord(header)(say.si(f"celery {words[0]} body")))
        for word in words:
            self.dramatiq.send("say", f"dramatiq {word}")
        kinds = [f"{kind} {word}" for kind in ("native", "celery", "dramatiq") for word in words]
        celery = [f"celery {word} in a {what}" for what in ("group", "chord") for word in words[:2]]
        self.sent.update(kinds, celery, [f"celery {words[0]} body", f"native {words[0]} late"])

    def missing(self) -> set[str]:
        """What was sent and not handled yet."""
        celery = {line.removeprefix("say ") for line in self.celery.notes()}
        return self.sent - self.handled - celery - set(self.dramatiq.notes())

    def wait(self) -> None:
        """Wait until all is handled and results are told."""
        try:
            eventually(lambda: not self.missing(), 2 * PATIENCE)
        except AssertionError:
            print(*(f"{process.name}:\n{process.log[-20_000:]}" for process in self.processes), sep="\n")
            pytest.fail(f"not handled: {sorted(self.missing())}")
        for result in self.results:
            result.get(timeout=PATIENCE)

    def check(self) -> None:
        """The workers are there, and no honest message has died."""
        assert [process.log for process in self.processes if process.process.poll() is not None] == []
        assert self.thread.is_alive()
        for queue in ("jobs", "celery", "default"):
            query = f"select body from pgqrs.q_{queue} where lane = -100 and position(%s in body) > 0"
            assert self.celery.sql(query, HONEST.encode()) == []

    def close(self) -> None:
        self.worker.stop()
        self.thread.join(PATIENCE)
        self.cleanup.close()


def command(*words: str) -> tuple[int, Any]:
    """Run the command with ``--json``; return its exit code and the document, which must be JSON."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(["--json", *words])
    text = out.getvalue()
    assert text, f"{words}: {err.getvalue()}"
    return code, json.loads(text, parse_constant=lambda name: pytest.fail(f"{words}: {name} is no JSON"))


def people(*words: str) -> str:
    """Run the command for people; return what it shows, on which a terminal must not act."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        run(words)
    assert [char for char in out.getvalue() if not char.isprintable() and char not in "\n\t"] == []
    assert "an error of pgqrs itself" not in err.getvalue(), err.getvalue()
    return out.getvalue()


def check_monitoring(client: Client) -> None:
    """Everything that monitors answers, for each honest queue with figures."""
    honest = {"jobs", "celery", "default"}
    _, measured = command("queue", "metrics")
    assert {one["queue"]: one["error"] for one in measured if one["queue"] in honest} == dict.fromkeys(honest)
    _, top = command("top", "--once")
    assert honest <= {one["queue"] for one in top["queues"] if one["error"] is None}
    _, listed = command("queue", "list")
    assert honest <= {one["queue"] for one in listed}
    _, findings = command("doctor")
    checks = findings["findings"] if isinstance(findings, dict) else findings
    assert [one for one in checks if "could not be checked" in one["summary"]] == []
    command("dead", "list")
    for queue in honest:
        command("queue", "metrics", queue)
        command("message", "peek", queue, "--count", "1000")
        _, dead = command("dead", "list", queue, "--limit", "1000")
        for one in dead[:3]:
            command("dead", "show", queue, "--", str(one["id"]))
    command("archive", "list", "jobs")
    for words in (("queue", "metrics"), ("queue", "list"), ("top", "--once"), ("dead", "list"), ("doctor",)):
        assert people(*words)
    registry = CollectorRegistry()
    pgqrs_prometheus.watch_queues(client.engine, registry=registry, seconds=0)
    assert registry.get_sample_value("pgqrs_up") == 1
    for queue in honest:
        assert registry.get_sample_value("pgqrs_queue_up", {"queue": queue}) == 1


@pytest.fixture
def traffic(own_estate: Estate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Traffic]:
    monkeypatch.setenv("DATABASE_URL", own_estate.dsn)
    made = Traffic(own_estate, tmp_path)
    yield made
    made.close()


def harass(traffic: Traffic, writers: list[HostileRows], rounds: int) -> None:
    """Write hostile rows beside honest messages, round by round, and look at everything."""
    for _ in range(rounds):
        for writer in writers:
            writer.write(6)
        traffic.send(3)
    traffic.wait()
    check_monitoring(traffic.client)
    with Client(traffic.dsn, plugins=Plugins.core()) as client:
        cleaned = client.admin.maintain()
        assert not cleaned.failed.keys() & {"jobs", "celery", "default"}, cleaned.failed
    traffic.send(2)
    traffic.wait()
    traffic.check()


def by_roles(estate: Estate, seed: int) -> list[HostileRows]:
    return [HostileRows(estate.dsn, estate.role(duty), seed) for duty in DUTIES]


def by_the_owner(estate: Estate, seed: int) -> list[HostileRows]:
    without_constraints(estate.dsn)
    ((owner,),) = estate.run("select current_user::text")
    return [HostileRows(estate.dsn, owner, seed)]


def check_hostile_rows(traffic: Traffic, estate: Estate, who: Any, seed: int, rounds: int) -> None:
    # All queues are there afterwards.
    traffic.send(2)
    traffic.wait()
    writers: list[HostileRows] = who(estate, seed)
    for writer in writers:
        traffic.cleanup.callback(writer.close)

    harass(traffic, writers, rounds)

    tables = "select relname::text from pg_class where relnamespace = 'pgqrs'::regnamespace and relkind = 'r'"
    every = {name for (name,) in estate.run(tables)}
    taken = Counter[str]()
    for writer in writers:
        taken += writer.written
    assert set().union(*(writer.tables for writer in writers)) == every
    # That the rows reach the tables is what makes them hostile.
    assert sum(taken.values()) > len(every) * rounds
    assert len(taken.keys() & every) >= len(every) - 4, taken


def test_hostile_rows_keep_no_honest_message_from_being_handled_nor_monitoring_from_answering(
    traffic: Traffic, own_estate: Estate
) -> None:
    for who in (by_roles, by_the_owner):
        check_hostile_rows(traffic, own_estate, who, 1, 1)


@pytest.mark.slow
@pytest.mark.parametrize("who", [by_roles, by_the_owner], ids=["roles", "owner"])
@pytest.mark.parametrize("seed", range(2, 10))
def test_many_hostile_rows_do_not_either(traffic: Traffic, own_estate: Estate, who: Any, seed: int) -> None:
    check_hostile_rows(traffic, own_estate, who, seed, 12)
