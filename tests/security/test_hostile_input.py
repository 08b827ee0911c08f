"""Whatever anybody sends: a clear error of ours, or a dead letter; the others are not held up."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pgqrs_native import AsyncClient, Client, Worker

from pgqrs_core.config import Config
from pgqrs_core.errors import ConfigurationError, DecodeError, InvalidArgument, PayloadError, PgqrsError
from pgqrs_core.operations.queues import table_suffix

pytestmark = [
    pytest.mark.timeout(180),
    # A client's threads draw their jitter while an example is being made.
    pytest.mark.filterwarnings("ignore:Do not use the `random` module"),
]

#: Each example is a round trip or several to a server that others use, too.
SERVER = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
PURE = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

#: Any text, lone surrogates and NUL included, and what has hurt others.
NASTY = st.sampled_from(
    [
        "'; drop table pgqrs.queues; --",
        '"; drop schema pgqrs cascade; --',
        "$$; select 1; $$",
        "%s%(name)s%%{schema}{queue}",
        "\\",
        "E'\\x00'",
        "nul\0nul",
        "\ud800",
        "a" * 255,
        "ä" * 255,
        "../../etc/passwd",
        "pg_catalog.pg_class",
        "\u202eevil\u2028",
        "line\nbreak\rand\ttab",
        "𝕌𝕟𝕚𝕔𝕠𝕕𝕖 💥",
    ]
)
SURROGATES = st.text(st.characters(codec=None, categories=None), max_size=40)  # type: ignore[arg-type]
TEXT = NASTY | SURROGATES | st.text(max_size=300)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
#: What a Python program may pass although nothing of it is JSON.
WRONG = st.sampled_from([object(), {1, 2}, b"bytes", 10**5000, float("nan"), 1j, [object()], print])

#: JSON that a parser may choke on.
BOMBS = {
    "deep lists": b"[" * 200_000 + b"]" * 200_000,
    "deep open lists": b"[" * 1_000_000,
    "deep objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "a long number": b"9" * 1_000_000,
    "a large exponent": b"1e999999999",
    "many keys": b"{" + b",".join(b'"%d":1' % n for n in range(50_000)) + b"}",
    "no text": b"\xff\xfe\x00",
    "a long text": b'"' + b"\\u0000" * 150_000 + b'"',
}


@pytest.fixture(scope="module")
def client(module_dsn: str) -> Iterator[Client]:
    with Client(Config.load(url=module_dsn, env={})) as made:
        made.admin.install()
        made.admin.create_queue("jobs", max_attempts=2, max_body_bytes=4_000_000)
        yield made


@pytest.fixture
def sql(module_dsn: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(module_dsn, autocommit=True) as connection:
        yield connection


def tables(sql: psycopg.Connection[Any]) -> int:
    row = sql.execute("select count(*) from pg_class where relnamespace = 'pgqrs'::regnamespace").fetchone()
    assert row is not None
    return int(row[0])


@SERVER
@given(name=TEXT)
def test_a_queue_of_any_name_works_or_is_refused_and_leaves_nothing(
    name: str, client: Client, sql: psycopg.Connection[Any]
) -> None:
    before = tables(sql)
    try:
        client.admin.create_queue(name)
    except InvalidArgument:
        assert tables(sql) == before
        with pytest.raises(InvalidArgument):
            client.producer.enqueue(name, 1)
        return

    number = client.producer.enqueue(name, {"to": 1})
    message = client.consumer.read(name)
    assert message is not None
    assert (message.id, message.queue) == (number, name)
    client.consumer.archive(message)
    assert client.admin.queue_metrics(name).archived == 1
    assert name in [queue.name for queue in client.admin.list_queues()]
    client.admin.delete_queue(name)
    assert tables(sql) == before


@PURE
@given(names=st.lists(TEXT, min_size=2, max_size=20, unique=True))
@example(names=["a-b", "a_b", "A_B", "a b", "a.b", "ä_b"])
def test_no_two_names_share_a_table_and_each_is_an_identifier(names: list[str]) -> None:
    sound = [name for name in names if not re.search("[\ud800-\udfff]", name)]
    suffixes = [table_suffix(name) for name in sound]

    assert len(set(suffixes)) == len(sound)
    assert all(re.fullmatch("[a-z_0-9]{1,61}", suffix) for suffix in suffixes), suffixes


@SERVER
@given(headers=st.dictionaries(TEXT, JSON | WRONG, max_size=5) | JSON | WRONG)
def test_headers_arrive_as_they_were_or_are_refused(headers: Any, client: Client) -> None:
    try:
        client.producer.enqueue("jobs", 1, headers=headers)
    except (InvalidArgument, PgqrsError):
        assert client.admin.queue_metrics("jobs").ready == 0
        return
    message = client.consumer.read("jobs")
    assert message is not None
    client.consumer.dequeue(message)

    assert json.dumps(message.headers) == json.dumps(headers or {})


@SERVER
@given(payload=JSON | WRONG | st.binary(max_size=300))
def test_payloads_arrive_or_are_refused(payload: Any, client: Client) -> None:
    try:
        client.producer.enqueue("jobs", payload)
    except PayloadError:
        assert client.admin.queue_metrics("jobs").ready == 0
        return
    message = client.consumer.read("jobs")
    assert message is not None
    client.consumer.dequeue(message)


@SERVER
@given(payloads=st.lists(JSON | WRONG, min_size=1, max_size=8))
def test_a_batch_is_stored_whole_or_not_at_all(payloads: list[Any], client: Client) -> None:
    try:
        ids = client.producer.batch_enqueue("jobs", payloads)
    except PgqrsError:
        ids = []

    assert client.admin.queue_metrics("jobs").ready == len(ids)
    assert len(ids) in (0, len(payloads))
    client.admin.purge_queue("jobs")


@SERVER
@given(
    options=st.fixed_dictionaries(
        {},
        optional={
            "priority": st.integers() | st.floats() | TEXT,
            "delay": st.floats() | st.integers() | TEXT,
            "ttl": st.floats() | st.integers() | TEXT,
            "at": st.datetimes() | st.floats() | TEXT,
            "content_type": TEXT | st.sampled_from(["application/json", "application/octet-stream", "text/plain\0"]),
        },
    )
)
def test_options_of_a_message_are_right_or_refused(options: dict[str, Any], client: Client) -> None:
    try:
        client.producer.enqueue("jobs", 1, **options)
    except PgqrsError:
        assert client.admin.queue_metrics("jobs").ready == 0
    client.admin.purge_queue("jobs")


@pytest.mark.parametrize("headers", [{"a": "x" * 2_000_000}, {"n": list(range(300_000))}])
def test_headers_have_a_limit(headers: dict[str, Any], client: Client) -> None:
    with pytest.raises(InvalidArgument, match="at most 1,048,576 bytes"):
        client.producer.enqueue("jobs", 1, headers=headers)


#: Headers that nobody would write with pgqrs, and that a hostile producer writes by hand.
ODD_HEADERS = st.sampled_from(
    [
        None,
        "{}",
        "[1, 2]",
        "1",
        '"text"',
        "null",
        '{"message_type": []}',
        '{"message_type": {"a": 1}}',
        '{"n": 1e400}',
        '{"n": ' + "9" * 5_000 + "}",
        '{"a": ' + "[" * 2_000 + "]" * 2_000 + "}",
        '{"\\u0000": "\\ud800"}',
        '{"a": 1, "a": 2}',
    ]
)
ROWS = st.tuples(
    st.sampled_from(
        ["application/json", "application/octet-stream", "text/html", "", "x" * 200, "application/x-pickle"]
    )
    | st.text(max_size=20),
    ODD_HEADERS,
    st.binary(max_size=60) | st.sampled_from([b"null", b"1", b'{"number": 1}', *BOMBS.values()]),
)


def write(sql: psycopg.Connection[Any], rows: list[tuple[str, str | None, bytes]]) -> int:
    """Write rows as a hostile producer could; return how many there are in the end."""
    count = 0
    for content_type, headers, body in rows:
        if "\0" not in content_type:
            sql.execute(
                "insert into pgqrs.q_jobs (lane, content_type, headers, body) values (0, %s, %s::json, %s)",
                [content_type, headers, body],
            )
            count += 1
    return count


def is_readable(message: Any) -> bool:
    try:
        return isinstance(message.headers, dict)
    except DecodeError:
        return False


@settings(SERVER, max_examples=30)
@given(rows=st.lists(ROWS, max_size=6), wanted=st.sampled_from([Any, dict, int]))
def test_whatever_stands_in_the_table_each_message_is_read_buried_or_put_off(
    rows: list[tuple[str, str | None, bytes]], wanted: Any, client: Client, sql: psycopg.Connection[Any]
) -> None:
    sql.execute("truncate pgqrs.q_jobs")
    count = write(sql, rows)
    client.producer.enqueue("jobs", {"good": True})

    seen = 0
    while messages := client.consumer.read_batch("jobs", count=3, type=wanted):
        for message in messages:
            if is_readable(message):
                seen += 1
                client.consumer.dequeue(message)
            else:
                client.consumer.nack(message, bury=True)

    dead = client.admin.list_dead("jobs")
    # What needs a serializer that is not loaded here is left to a process that has it.
    put_off = client.admin.queue_metrics("jobs").delayed
    assert seen + len(dead) + put_off == count + 1
    assert put_off <= sum(
        content_type not in ("application/json", "application/octet-stream") for content_type, _, _ in rows
    )
    if wanted is not int:
        assert seen >= 1


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_costs_little_and_takes_only_itself(name: str, client: Client, sql: psycopg.Connection[Any]) -> None:
    sql.execute("truncate pgqrs.q_jobs")
    client.producer.enqueue("jobs", "before")
    write(sql, [("application/json", None, BOMBS[name])])
    client.producer.enqueue("jobs", "after")

    found = client.consumer.read_batch("jobs", count=10)

    texts = [message.payload for message in found if isinstance(message.payload, str)]
    assert texts[0] == "before"
    assert texts[-1] == "after"
    assert len(found) + client.admin.queue_metrics("jobs").dead == 3
    assert all(len(json.dumps(one.error)) < 10_000 for one in client.admin.list_dead("jobs"))


@pytest.mark.parametrize(
    "headers", ["[1]", "7", '{"n": ' + "9" * 5_000 + "}", '{"a": ' + "[" * 3_000 + "]" * 3_000 + "}"]
)
def test_an_administrator_sees_messages_with_unreadable_headers(
    headers: str, client: Client, sql: psycopg.Connection[Any]
) -> None:
    sql.execute("truncate pgqrs.q_jobs")
    write(sql, [("application/json", headers, b"1")])

    # Python 3.13 reads what is nested too deeply for those before it.
    def is_shown(found: dict[str, Any] | None) -> bool:
        return found is not None and ("unreadable" in found or found == json.loads(headers))

    assert is_shown(client.admin.peek("jobs")[0].headers)

    message = client.consumer.read("jobs")
    assert message is not None
    client.consumer.nack(message, bury=True)

    dead = client.admin.list_dead("jobs")[0]
    assert is_shown(dead.headers)
    assert client.admin.show_dead("jobs", dead.id) == dead


def test_a_worker_buries_what_it_cannot_route_and_goes_on(client: Client, sql: psycopg.Connection[Any]) -> None:
    sql.execute("truncate pgqrs.q_jobs")
    write(
        sql,
        [
            ("application/json", headers, b"1")
            for headers in ("[1]", '{"n": ' + "9" * 5_000 + "}", '{"message_type": []}')
        ],
    )
    write(sql, [("application/json", '{"message_type": "a"}', body) for body in BOMBS.values()])
    client.producer.enqueue("jobs", "good", headers={"message_type": "a"})
    done = threading.Event()
    worker = Worker(client)

    @worker.handler("jobs", message_type="a")
    def handle(message: Any) -> None:
        if message.payload == "good":
            done.set()

    @worker.handler("jobs", message_type="b")
    def never(message: Any) -> None:
        raise AssertionError

    thread = threading.Thread(target=worker.run, kwargs={"signals": False})
    thread.start()
    try:
        assert done.wait(60)
        deadline = time.monotonic() + 60
        while client.admin.queue_metrics("jobs").ready or client.admin.queue_metrics("jobs").in_flight:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        worker.stop()
        thread.join(30)
    assert client.admin.queue_metrics("jobs").dead >= 3


PAYLOADS = st.sampled_from(
    ["", "0", "-1", "9" * 100, "1; drop table x", "é", "[" * 500, "x" * 7_900, "null", "1e5", "٣"]
) | st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=50)


@settings(SERVER, max_examples=10)
@given(payloads=st.lists(PAYLOADS, min_size=1, max_size=20))
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_notifications_of_strangers_wake_nobody_for_good(
    kind: str, payloads: list[str], client: Client, sql: psycopg.Connection[Any]
) -> None:
    client.admin.purge_queue("jobs")

    def disturb() -> None:
        for payload in payloads:
            sql.execute("select pg_notify(%s, %s)", [client.engine.doorbell.channel, payload])
        client.producer.enqueue("jobs", "real")

    timer = threading.Timer(0.05, disturb)
    timer.start()
    try:
        found = client.consumer.read("jobs", wait=20) if kind == "sync" else asyncio.run(read(client.config))
    finally:
        timer.join()
    assert found is not None
    assert found.payload == "real"


async def read(config: Config) -> Any:
    async with AsyncClient(config) as client:
        found = await client.consumer.read("jobs", wait=20)
        if found is not None:
            await client.consumer.dequeue(found)
        return found


YAML = st.sampled_from(
    [
        "database: {url: x, url: y}",
        "database: [1]",
        "a: &a [*a]",
        "&a [*a, *a]",
        "!!python/object/apply:os.system ['true']",
        "!!binary x",
        "database: {port: 0x10}",
        "database: {port: 1_0}",
        "queue: {max_batch_size: .inf}",
        "queue: {default_lock_time_seconds: .nan}",
        "queue: {max_batch_size: " + "9" * 5_000 + "}",
        "plugins: {blocked: [[x]]}",
        "--- a\n--- b",
        "%YAML 9.9\n---\na",
        "\t",
        "? [a]\n: b",
        "<<: {a: 1}",
        "database: {<<: {host: x}}",
        "2001-99-99",
        "[" * 5_000,
        "{a: " * 5_000,
        "- " * 5_000,
        "a: &a [x]\n" + "\n".join(f"b{n}: &b{n} [{','.join(['*a'] * 10)}]" for n in range(5)),
    ]
)


@PURE
@given(text=YAML | st.text(max_size=200) | st.text("database:urlhost{}[]&*!|>-'\"#%@, \n", max_size=200))
def test_a_configuration_file_is_read_or_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "pgqrs.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with contextlib.suppress(ConfigurationError):
        Config.load(path, env={})


def test_a_configuration_file_cannot_multiply(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 30)]
    path = tmp_path / "pgqrs.yaml"
    path.write_text("\n".join([*lines, "plugins: {blocked: *a29}"]))

    with pytest.raises(ConfigurationError):
        Config.load(path, env={})


#: What addresses are made of, and what is out of place in them.
SCHEMES = ["postgresql://", "pgqrs://", "embedded://", "mysql://"]
MARKS = [*":@/?&=%,;#[]'\" \\", "%00", "%zz", "\0", "\ud800"]
WORDS = ["u", "p", "host", "[::1]", "db", "sslmode", "schema", "port", "5432", "99999", "-1", "connect_timeout"]
PAIRS = ["host=", "dbname=", "password=", "options=-c"]
PIECES = st.lists(st.sampled_from([*SCHEMES, *MARKS, *WORDS, *PAIRS]), max_size=14).map("".join)


@PURE
@given(url=PIECES | TEXT)
@example(url="embedded://[")
@example(url="embedded:///a\0b")
def test_an_address_is_understood_or_refused(url: str) -> None:
    if url.strip().lower() in ("embedded://", "embedded:///"):
        return
    with contextlib.suppress(ConfigurationError):
        config = Config.load(url=url, env={})
        assert isinstance(config.target, str)
        repr(config)
        if not config.embedded:
            config.conninfo()


@PURE
@given(
    env=st.dictionaries(
        st.sampled_from(
            [
                "DATABASE_URL",
                "PGQRS_SCHEMA",
                "PGQRS_DATABASE_PORT",
                "PGQRS_QUEUE_MAX_BATCH_SIZE",
                "PGQRS_PLUGINS_BLOCKED",
                "PGQRS_CONFIG",
                "PGQRS_QUEUE_ENABLE_LISTEN_NOTIFY",
            ]
        ),
        TEXT,
    )
)
def test_an_environment_is_understood_or_refused(env: dict[str, str]) -> None:
    with contextlib.suppress(ConfigurationError):
        Config.load(env=env)


@settings(SERVER, max_examples=25)
@given(schema=TEXT)
def test_a_schema_of_any_name_is_a_name_and_nothing_more(schema: str, module_dsn: str) -> None:
    with contextlib.suppress(ConfigurationError), Client(Config.load(url=module_dsn, env={}, schema=schema)) as other:
        try:
            other.admin.install()
        except PgqrsError:
            return
        other.admin.create_queue("jobs")
        other.producer.enqueue("jobs", 1)
        assert other.consumer.read("jobs", wait=0.01) is not None
        other.admin.uninstall()


def test_what_is_compressed_is_only_bytes_to_the_core(client: Client) -> None:
    client.admin.purge_queue("jobs")
    client.producer.enqueue("jobs", zlib.compress(b"0" * 1_000_000), headers={"compression": "zlib"})

    message = client.consumer.read("jobs")

    assert message is not None
    assert len(message.payload) < 2_000
    client.consumer.dequeue(message)
