"""Canaries in addresses, settings, the environment and messages, and a look at everything that anybody may read."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import logging
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from celery import Celery
from kombu import Connection
from pgqrs_dramatiq import PgqrsBroker
from pgqrs_native import Client, Worker
from pgqrs_native.command.app import run
from psycopg.conninfo import conninfo_to_dict

from pgqrs_core.config import Config
from pgqrs_core.events import Draft
from pgqrs_core.messages import Delivery
from pgqrs_core.testing import Proxy, find_bindir, throw_away_cluster

pytestmark = pytest.mark.timeout(120)

#: In an address, a setting or the environment; and in what messages say.
PASSWORD = "cAnArYpass8d1f"
BODY = "cAnArYbody77aa"


class Evidence:
    """All that could be read by somebody who should not know."""

    def __init__(self) -> None:
        self.texts: list[tuple[str, str]] = []

    def add(self, where: str, *things: object) -> None:
        for thing in things:
            self.texts.append((where, thing if isinstance(thing, str) else repr(thing)))

    @contextlib.contextmanager
    def failing(self, where: str) -> Iterator[None]:
        """Run what must fail, and keep all that the error shows."""
        try:
            yield
        except Exception as error:
            self.add(where, str(error), error, "".join(traceback.format_exception(error)))
            while error.__cause__ is not None:
                error = error.__cause__  # type: ignore[assignment]
                self.add(f"{where}, its cause", str(error))
        else:
            pytest.fail(f"{where} did not fail")

    def hold(self, *canaries: str) -> list[str]:
        """Return where a canary was found, in its own or in an encoded form."""
        forms = [form for canary in canaries for form in _forms(canary)]
        return [f"{where}: {text[:300]}" for where, text in self.texts if any(form in text for form in forms)]


def _forms(canary: str) -> set[str]:
    return {canary, canary.encode().hex(), base64.b64encode(canary.encode()).decode().rstrip("="), canary[::-1]}


@pytest.fixture
def evidence(caplog: pytest.LogCaptureFixture) -> Iterator[Evidence]:
    """What a test shows; it must not hold a password, whatever else it does."""
    caplog.set_level(logging.DEBUG)
    found = Evidence()
    yield found
    found.add("log", *(logging.Formatter().format(record) for record in caplog.get_records("call")))
    assert found.texts
    assert found.hold(PASSWORD) == []


BAD_ADDRESSES = [
    f"postgresql://u:{PASSWORD}@127.0.0.1:1/db",
    f"postgresql://u:{PASSWORD}@nowhere.invalid/db?connect_timeout=1",
    f"postgresql://u:{PASSWORD}@host:notaport/db",
    f"postgresql://u:p@{PASSWORD}@host/db",
    f"postgresql://u:p/{PASSWORD}@host/db",
    f"postgresql://u:p#{PASSWORD}@host/db",
    f"postgresql://u:%zz{PASSWORD}@host/db",
    f"postgresql://u:p?{PASSWORD}@host/db",
    f"postgresql://host/db?password={PASSWORD}&unknown=1",
    f"postgresql://host/db?sslpassword={PASSWORD}&sslmode=nonsense",
    f"postgres+asyncpg://u:{PASSWORD}@host/db",
    f"mysql://u:{PASSWORD}@host/db",
    f"host=127.0.0.1 port=1 password={PASSWORD}",
    f"host=127.0.0.1 password='{PASSWORD}",
    f"host=127.0.0.1 pasword={PASSWORD} x",
    f"host=a,b,c port=1,2 password={PASSWORD}",
    f"u:{PASSWORD}@host/db",
    f"embedded://{PASSWORD}@/nowhere?x={PASSWORD}",
    f"postgresql://u:{PASSWORD}\0@host/db",
    f"postgresql://[::1:{PASSWORD}@host/db",
]


def by_client(url: str) -> None:
    with Client(url) as client:
        client.admin.list_queues()


def by_kombu(url: str) -> None:
    with Connection(url.replace("postgresql://", "pgqrs://"), transport_options={"max_retries": 1}) as connection:
        connection.connect()


def by_celery(url: str) -> None:
    app = Celery("secrets", set_as_current=False)
    app.conf.update(result_backend=url.replace("postgresql://", "pgqrs://"))
    app.backend.store_result("one", 1, "SUCCESS")


ATTEMPTS = [
    pytest.param(way, url, id=f"{way.__name__}-{number}")
    for number, url in enumerate(BAD_ADDRESSES)
    for way in (by_client, by_kombu, by_celery)
    # The others know addresses of theirs only.
    if way is by_client or url.startswith("postgresql://")
]


@pytest.mark.parametrize(("way", "url"), ATTEMPTS)
def test_no_error_about_an_address_shows_its_password(way: Callable[[str], None], url: str, evidence: Evidence) -> None:
    with evidence.failing(url.replace(PASSWORD, "…")):
        way(url)


FILES = [
    f"database: {{password: [{PASSWORD}]}}",
    f"database: {{url: {{{PASSWORD}: 1}}}}",
    f"database:\n  password: '{PASSWORD}\n",
    f"database:\n  password: *{PASSWORD}\n",
    f"database:\n  password: !{PASSWORD} x\n",
    f"database:\n  url: mysql://u:{PASSWORD}@host/db\n",
    f"database:\n  host: postgresql://u:{PASSWORD}@host/db\n",
    f"database:\n  port: postgresql://u:{PASSWORD}@host/db\n",
    f"database:\n  password={PASSWORD}: 1\n",
    f"postgresql://u:{PASSWORD}@host/db: 1\n",
    f"- {PASSWORD}\n",
    f"database:\n  password: {PASSWORD}\n  password: {PASSWORD}\n",
    f"database:\n  password: {PASSWORD}\n  url: postgresql://host/db\n",
    f"database:\n\tpassword: {PASSWORD}\n",
    f"database:\n  password: {PASSWORD}: x\n",
    f"database:\n  password: \x01{PASSWORD}\n",
]


@pytest.mark.parametrize("text", FILES, ids=range(len(FILES)))
def test_no_error_about_a_file_shows_a_password(text: str, tmp_path: Path, evidence: Evidence) -> None:
    path = tmp_path / "pgqrs.yaml"
    path.write_text(text)
    with evidence.failing("file"):
        Config.load(path, env={})


@pytest.mark.parametrize(
    "name",
    ["DATABASE_URL", "PGQRS_DATABASE_HOST", "PGQRS_DATABASE_PORT", "PGQRS_QUEUE_MAX_BATCH_SIZE", "PGQRS_QUEUE_X"],
)
def test_no_error_about_the_environment_shows_a_password(name: str, evidence: Evidence) -> None:
    with evidence.failing(name):
        Config.load(env={name: f"mysql://u:{PASSWORD}@host/db"})


def test_no_repr_shows_a_password(evidence: Evidence) -> None:
    config = Config.load(url=f"postgresql://u:{PASSWORD}@127.0.0.1:1/db?sslpassword={PASSWORD}", env={})
    client = Client(config)
    evidence.add("repr", config, config.database, client, client.engine, client.admin, client.producer, client.consumer)
    evidence.add(
        "repr", client.engine.connections, client.engine.wakeups, client.keeper, config.describe(), config.target
    )
    evidence.add("dataclass", *(str(field) for field in dataclasses.fields(config)))
    client.close()
    with Connection(f"pgqrs://u:{PASSWORD}@127.0.0.1:1/db?sslpassword={PASSWORD}") as connection:
        evidence.add("kombu", connection, connection.as_uri(), connection.transport, str(connection))
    app = Celery("secrets", set_as_current=False)
    app.conf.update(result_backend=f"pgqrs://u:{PASSWORD}@127.0.0.1:1/db?sslpassword={PASSWORD}")
    evidence.add("celery", app.backend, app.backend.as_uri())
    broker = PgqrsBroker(f"postgresql://u:{PASSWORD}@127.0.0.1:1/db?sslpassword={PASSWORD}", middleware=[])
    evidence.add("dramatiq", broker, str(broker), vars(broker))
    broker.close()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A server that asks for a password, which is a canary, and whose log can be read. Its settings are the defaults."""
    bindir = find_bindir()
    if bindir is None:
        pytest.skip("needs PostgreSQL's programs")
    with throw_away_cluster(bindir) as cluster:
        import psycopg

        with psycopg.connect(cluster.dsn, autocommit=True) as connection:
            connection.execute(f"alter role {cluster.user} password '{PASSWORD}'".encode())
            # That statement is the administrator's own. It is not logged either, at default settings.
        yield cluster


def address(cluster: Any, password: str = PASSWORD) -> str:
    parts = {**conninfo_to_dict(cluster.dsn), "password": password}
    return " ".join(f"{key}='{value}'" for key, value in parts.items())


def test_a_wrong_password_is_not_shown(guarded: Any, evidence: Evidence) -> None:
    with evidence.failing("wrong password"):
        by_client(address(guarded, PASSWORD + "x"))


class Result(NamedTuple):
    """What a command left: its exit code, and what it wrote."""

    code: int
    out: str
    err: str


@pytest.fixture
def shell(guarded: Any, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs the command on the server with a canary for a password."""
    monkeypatch.setenv("DATABASE_URL", address(guarded))

    def execute(*words: str) -> Result:
        return Result(run(words), *capfd.readouterr())

    execute("install")
    return execute


class Order(msgspec.Struct):
    number: int


def drive_failures(client: Client, evidence: Evidence) -> None:
    """Let everything go wrong that can, with messages that hold a canary."""
    admin, producer, consumer = client.admin, client.producer, client.consumer
    admin.install()
    admin.create_queue("jobs", max_body_bytes=200, max_attempts=1)
    secret = {"token": BODY}
    for where, payload, options in (
        ("too large", BODY * 50, {}),
        ("not JSON", {BODY: object()}, {}),
        ("unknown type", secret, {"content_type": "application/x-unknown"}),
        ("bad headers", secret, {"headers": {BODY: object()}}),
        ("bad headers", secret, {"headers": {"a": BODY, "b": float("nan")}}),
        ("bad priority", secret, {"priority": 99}),
        ("nested too deeply", deep(BODY), {}),
    ):
        with evidence.failing(where):
            producer.enqueue("jobs", payload, **options)
    with evidence.failing("no such queue"):
        producer.enqueue("nowhere", secret)
    producer.enqueue("jobs", secret, headers={"h": BODY})
    message = consumer.read("jobs", type=Order, mismatch="return")
    evidence.add("message", message, str(message))
    producer.enqueue("jobs", f'{{"broken": {BODY}'.encode(), headers={"h": BODY})
    evidence.add("snapshots", *admin.peek("jobs"))
    evidence.add("draft", Draft("jobs", BODY.encode(), "text/plain", {"h": BODY}))
    evidence.add("delivery", Delivery(0, 1, 1, 0, None, "text/plain", BODY, BODY.encode()))  # type: ignore[arg-type]
    found = consumer.read("jobs")
    if found is not None:
        consumer.nack(found, error="bad", bury=True)
    evidence.add("dead", *admin.list_dead("jobs"))


def deep(canary: str) -> Any:
    value: Any = canary
    for _ in range(100_000):
        value = [value]
    return value


def dissolve(value: Any) -> None:
    """Take a deep list apart: freeing it at once would overflow the stack of some Pythons."""
    while isinstance(value, list) and value:
        value = value.pop()


def test_messages_and_passwords_are_nowhere_to_be_read(guarded: Any, evidence: Evidence) -> None:
    with Client(Config.load(url=address(guarded), env={})) as client:
        drive_failures(client, evidence)
        with evidence.failing("the server refuses a statement"):
            client.engine.queue("jobs")
            with Proxy(address(guarded)) as proxy, Client(Config.load(url=proxy.dsn, env={})) as far:
                far.admin.list_queues()
                proxy.refuses = True
                proxy.cut()
                far.producer.enqueue("jobs", {"token": BODY})
    evidence.add("the server's log", guarded.log.read_text(errors="replace"))

    assert evidence.hold(BODY) == []


COMMANDS = [
    ["config", "show"],
    ["doctor"],
    ["plugins"],
    ["queue", "list"],
    ["queue", "metrics"],
    ["top", "--once"],
    ["maintain"],
    ["install"],
    ["queue", "metrics", "nowhere"],
    ["message", "send", "nowhere", "1"],
]


def test_a_worker_logs_nothing_of_what_it_cannot_handle(guarded: Any, evidence: Evidence) -> None:
    with Client(Config.load(url=address(guarded), env={})) as client:
        client.admin.install()
        client.admin.create_queue("work", max_attempts=1)
        worker = Worker(client)

        @worker.handler("work", type=Order)
        def handle(message: Any) -> None:
            raise RuntimeError("it cannot be done")

        client.producer.enqueue("work", {"number": BODY}, headers={"h": BODY})
        client.producer.enqueue("work", f"{{{BODY}".encode(), headers={"h": BODY})
        client.producer.enqueue("work", f"{{{BODY}".encode(), content_type="application/octet-stream")
        client.producer.enqueue("work", {"number": 1, "more": BODY})
        thread = threading.Thread(target=worker.run, kwargs={"signals": False})
        thread.start()
        deadline = time.monotonic() + 30
        while client.admin.queue_metrics("work").dead < 4:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        worker.stop()
        thread.join(30)
        evidence.add("reasons", *(repr(one.error) for one in client.admin.list_dead("work")))

    assert evidence.hold(BODY) == []


@pytest.mark.parametrize("form", [[], ["--json"], ["--debug"]], ids=["plain", "json", "debug"])
@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_no_command_shows_a_password(
    words: list[str], form: list[str], shell: Callable[..., Result], evidence: Evidence
) -> None:
    right = shell(*words, *form)
    wrong = shell(*words, *form, "--url", f"postgresql://u:{PASSWORD}@127.0.0.1:1/db")

    evidence.add("output", right.out, right.err, wrong.out, wrong.err)
    if "--json" in form and right.out:
        json.loads(right.out)


def test_what_a_command_sends_is_not_shown_by_its_errors(shell: Callable[..., Result], evidence: Evidence) -> None:
    for words in (
        ["message", "send", "nowhere", json.dumps(BODY)],
        ["message", "send", "nowhere", f"{{{BODY}"],
        ["message", "send", "nowhere", "1", "--header", f"a={BODY}"],
    ):
        result = shell(*words)
        assert result.code != 0
        evidence.add("output", result.err)

    assert evidence.hold(BODY) == []


def test_secrets_of_the_environment_stay_there(evidence: Evidence, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    monkeypatch.setenv("PGHOST", "127.0.0.1")
    monkeypatch.setenv("PGPORT", "1")
    assert os.environ["PGPASSWORD"] == PASSWORD
    with evidence.failing("environment"):
        by_client("dbname=x")


def test_the_net_catches_what_is_shown() -> None:
    evidence = Evidence()
    with evidence.failing("shown"):
        raise ValueError(f"it is {BODY}")
    evidence.add("hidden", BODY.encode().hex())

    assert len(evidence.hold(BODY)) == 4
