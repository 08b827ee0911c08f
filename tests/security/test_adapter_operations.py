"""What each role may do by Celery's, Kombu's and Dramatiq's own calls: every call, by every role."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, Final, NamedTuple

import pytest
from celery import Celery
from celery.result import GroupResult
from kombu import Connection, Exchange, Queue
from pgqrs_celery.chord_operations import Part, return_part
from pgqrs_dramatiq import PgqrsRateLimiterBackend, PgqrsResultBackend
from pgqrs_dramatiq.operations import prune

from pgqrs_core.errors import PgqrsError
from pgqrs_core.sql import DUTIES

from .estate import Estate
from .rights import PAGE
from .test_adapter_roles import app_at, url_of

pytestmark = pytest.mark.timeout(60)

EXCHANGE: Final = Exchange("tried", "direct", durable=True)
QUEUE: Final = Queue("tried", EXCHANGE, routing_key="tried", durable=True)


class Scene:
    """A program with one duty, and another that may do everything."""

    def __init__(self, estate: Estate, duty: str) -> None:
        self.estate = estate
        self.duty = duty
        self.id = str(uuid.uuid4())

    @property
    def owner(self) -> Scene:
        scene = Scene(self.estate, "admin")
        scene.id = self.id
        return scene

    @cached_property
    def app(self) -> Celery:
        return app_at(self.estate.url(self.duty))

    @cached_property
    def connection(self) -> Connection:
        return Connection(url_of(self.estate.url(self.duty)), transport_options={"max_retries": 0})

    @cached_property
    def limits(self) -> PgqrsRateLimiterBackend:
        return PgqrsRateLimiterBackend(self.estate.url(self.duty))

    @cached_property
    def results(self) -> PgqrsResultBackend:
        return PgqrsResultBackend(self.estate.url(self.duty))

    def save_group(self, *members: str) -> None:
        found = [self.app.AsyncResult(member) for member in members]
        self.app.backend.save_group(self.id, GroupResult(self.id, found, app=self.app))

    def start_chord(self, size: int = 2) -> None:
        self.app.backend.apply_chord((self.id, []), None)
        self.app.backend.set_chord_size(self.id, size)

    def finish_chord(self) -> None:
        self.owner.start_chord()
        self.estate.run("update pgqrs.celery_chords set finished_at = now() where group_id = {}", _literal(self.id))

    def return_part(self) -> None:
        part = Part(self.id, 0, "t", "SUCCESS", b"1", "application/json")
        self.app.backend.store.run(return_part, part, claim=1, seconds=1.0, expires=60.0)

    def read_result(self) -> None:
        self.owner.app.backend.store_result(self.id, 42, "SUCCESS")
        assert self.app.AsyncResult(self.id).get(timeout=10) == 42

    def wait_for_result(self) -> None:
        with pytest.raises(Exception, match="time"):
            self.app.AsyncResult(self.id).get(timeout=0.3)

    def publish(self) -> None:
        self.connection.Producer().publish({"a": 1}, exchange=EXCHANGE, routing_key="tried", retry=False)

    def consume(self) -> None:
        self.owner.publish()
        channel = self.connection.default_channel
        message = channel.basic_get("tried")
        assert message is not None
        channel.basic_ack(message.delivery_tag)

    def reject(self) -> None:
        self.owner.publish()
        channel = self.connection.default_channel
        message = channel.basic_get("tried")
        assert message is not None
        channel.basic_reject(message.delivery_tag, requeue=False)

    def declare(self, name: str, **options: Any) -> None:
        Queue(name, Exchange(f"of {name}", "direct", durable=False), routing_key=name, **options)(
            self.connection.default_channel
        ).declare()

    def dramatiq_result(self) -> None:
        self.owner.results._store(self.id, 7, 60_000)
        assert self.results._get(self.id) == 7

    def counted(self, change: Callable[[], bool]) -> None:
        self.owner.limits.add("named", 5, 60_000)
        assert change()

    def close(self) -> None:
        if "connection" in self.__dict__:
            self.connection.release()


def _literal(value: str) -> Any:
    from psycopg import sql

    return sql.Literal(value)


class Act(NamedTuple):
    name: str
    do: Callable[[Scene], object]
    allowed: frozenset[str]


def act(name: str, do: Callable[[Scene], object], *allowed: str) -> Any:
    return pytest.param(Act(name, do, frozenset({*allowed, "admin"})), id=name)


WAITS: Final = ("producer", "consumer")
ACTS: Final = [
    act("Celery: store a result", lambda s: s.app.backend.store_result(s.id, 1, "SUCCESS"), "consumer"),
    act("Celery: read a result", Scene.read_result, *WAITS),
    act("Celery: wait for a result", Scene.wait_for_result, *WAITS),
    act("Celery: forget a result", lambda s: s.app.AsyncResult(s.id).forget(), "consumer"),
    act("Celery: save a group", lambda s: s.save_group("a"), *WAITS),
    act("Celery: save the same group again", lambda s: (s.owner.save_group("a"), s.save_group("a")), *WAITS),
    act("Celery: replace a group", lambda s: (s.owner.save_group("a"), s.save_group("b")), "consumer"),
    act("Celery: read a group", lambda s: (s.owner.save_group("a"), s.app.GroupResult.restore(s.id)), *WAITS),
    act("Celery: delete a group", lambda s: s.app.backend.delete_group(s.id), "consumer"),
    act("Celery: start a chord", Scene.start_chord, *WAITS),
    act("Celery: start the same chord again", lambda s: (s.owner.start_chord(), s.start_chord()), *WAITS),
    act("Celery: resize a chord", lambda s: (s.owner.start_chord(), s.start_chord(3)), "consumer"),
    act("Celery: start a chord anew that is over", lambda s: (s.finish_chord(), s.start_chord()), "consumer"),
    act("Celery: add to a chord", lambda s: s.app.backend.add_to_chord(s.id, None), "consumer"),
    act("Celery: return a part of a chord", Scene.return_part, "consumer"),
    act("Celery: clean up", lambda s: s.app.backend.cleanup(), "consumer"),
    act("Kombu: publish", Scene.publish, "producer"),
    act("Kombu: consume and acknowledge", Scene.consume, "consumer"),
    act("Kombu: consume and reject", Scene.reject, "consumer"),
    act("Kombu: declare what is there", lambda s: QUEUE(s.connection.default_channel).declare(), *DUTIES),
    act("Kombu: declare an ephemeral queue", lambda s: s.declare(s.id, auto_delete=True), "consumer"),
    act("Kombu: declare a durable queue", lambda s: s.declare(s.id, durable=True)),
    act("Kombu: purge a queue", lambda s: s.connection.default_channel.queue_purge("tried"), "consumer"),
    act("Dramatiq: store a result", lambda s: s.results._store(s.id, 1, 60_000), "consumer"),
    act("Dramatiq: read a result", Scene.dramatiq_result, *WAITS),
    act("Dramatiq: set the barrier of a group", lambda s: s.limits.add(s.id, 3, 60_000), *WAITS),
    act("Dramatiq: set another barrier", lambda s: s.limits.add(f"x{s.id}", 3, 60_000), "consumer"),
    act("Dramatiq: acquire a rate limit", lambda s: s.limits.incr(s.id, 1, 5, 60_000), "consumer"),
    act("Dramatiq: release a rate limit", lambda s: s.counted(lambda: s.limits.decr("named", 1, 0, 1)), "consumer"),
    act("Dramatiq: sum a window", lambda s: s.limits.incr_and_sum(s.id, lambda: [s.id], 1, 5, 60_000), "consumer"),
    act("Dramatiq: publish an event", lambda s: s.limits.wait_notify(s.id, 1000), "consumer"),
    act("Dramatiq: wait for an event", lambda s: s.limits.wait(s.id, 100), "consumer"),
    act("Dramatiq: clean up", lambda s: s.results._database.run(prune), "consumer"),
]


@pytest.fixture(scope="module")
def ready(estate: Estate) -> Estate:
    with Connection(url_of(estate.url("admin"))) as connection:
        QUEUE(connection.default_channel).declare()
    return estate


@pytest.fixture
def open_scene(ready: Estate) -> Iterator[Callable[[str], Scene]]:
    opened: list[Scene] = []

    def open_one(duty: str) -> Scene:
        opened.append(Scene(ready, duty))
        return opened[-1]

    yield open_one
    for scene in opened:
        scene.close()


@pytest.mark.parametrize("duty", DUTIES)
@pytest.mark.parametrize("what", ACTS)
def test_each_role_may_do_what_it_is_for_and_nothing_else(
    what: Act, duty: str, open_scene: Callable[[str], Scene]
) -> None:
    scene = open_scene(duty)
    if duty in what.allowed:
        what.do(scene)
        return

    with pytest.raises(Exception, match=r"grant pgqrs_t\w+_\w+ to ") as caught:
        what.do(scene)

    assert isinstance(caught.value, PgqrsError) or "may not do this" in str(caught.value)


def documented() -> str:
    """Return the table of the page that these acts make."""
    lines = [
        f"| {name} | {' | '.join('yes' if duty in allowed else '–' for duty in DUTIES)} |"
        for name, _, allowed in (param.values[0] for param in ACTS)
    ]
    return "\n".join(["| call | producer | consumer | observer | admin |", "|---|---|---|---|---|", *lines])


def test_the_page_says_what_is_tried_here() -> None:
    page = PAGE.read_text(encoding="utf-8")
    found = re.search(r"^\| call \|.*?(?=\n\n)", page, re.MULTILINE | re.DOTALL)

    assert found is not None
    assert found[0] == documented()
