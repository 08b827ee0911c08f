"""Addresses, options, sharing, forks, failover, the schema; and what a connection that cannot be had costs."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from typing import Any

import pytest
from kombu import Connection, Exchange, Producer, Queue
from kombu.exceptions import OperationalError
from pgqrs_native import Client

from pgqrs_core.drivers import sync
from pgqrs_core.errors import ConfigurationError, SchemaError
from pgqrs_core.testing import Proxy, eventually

from .kombu_support import Bench, Inbox, plain, url_of

FORKING = """
import os, sys
from kombu import Connection, Exchange, Producer, Queue
connection = Connection(sys.argv[1])
producer = Producer(connection)
producer.publish("parent", routing_key="q", declare=[Queue("q")])
child = os.fork()
if child == 0:
    Producer(connection).publish("child", routing_key="q")
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
for number in range(3):
    producer.publish(number, routing_key="q")
print("done")
"""

NO_DRIVER = """
import sys
import pgqrs_kombu.registration
assert not [name for name in sys.modules if name.startswith("psycopg")], "a driver was imported"
from kombu.transport import TRANSPORT_ALIASES
print(TRANSPORT_ALIASES["pgqrs"])
"""


def test_the_scheme_is_known_without_an_import_and_without_a_driver(bench: Bench) -> None:
    assert bench.python(NO_DRIVER) == "pgqrs_kombu.entry:Transport\n"
    seen = bench.python(
        "import kombu.serialization, sys\n"
        "from kombu import Connection\nprint(Connection(sys.argv[1]).transport.driver_type)"
    )
    assert seen == "pgqrs\n"


def test_passwords_are_masked_and_every_option_of_libpq_may_be_in_the_url() -> None:
    url = "pgqrs://me:p%40ss@one:5433,two:5434/db?sslmode=require&target_session_attrs=read-write"
    connection = Connection(url)
    shown = connection.as_uri()
    assert "p%40ss" not in shown
    assert "sslmode=require" in shown
    assert connection.as_uri(include_password=True) == url
    assert "p%40ss" not in repr(connection.transport)
    assert connection.info()["port"] == 5433
    assert pickle.loads(pickle.dumps(connection)).as_uri() == shown
    assert connection.clone().as_uri() == shown


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("pgqrs://host/db?nonsense=1", {}),
        ("pgqrs://host/db", {"visibility": 30}),
        ("pgqrs://host/db", {"leese": 30}),
        ("pgqrs://host/db", {"lease": "long"}),
        ("pgqrs://host/db", {"max_connections": 1}),
    ],
)
def test_wrong_addresses_and_options_are_errors_that_say_what_is_wrong(url: str, options: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Connection(url, transport_options=options).connect()
    assert next(iter(options), "parameters") in str(caught.value)


def test_failover_reaches_the_next_address_whatever_its_query(bench: Bench) -> None:
    connection = bench.connect(f"pgqrs://nobody@127.0.0.1:1/none;{bench.url}")
    connection.ensure_connection(max_retries=3, interval_start=0)
    Producer(connection).publish("x", routing_key="q", declare=[Queue("q")])
    assert bench.rows("q") == 1
    assert connection.clone().as_uri() == connection.as_uri()


def test_a_publisher_is_told_soon_that_the_server_is_away() -> None:
    began = time.monotonic()
    with (
        Connection("pgqrs://nobody@127.0.0.1:1/none", connect_timeout=1) as connection,
        pytest.raises(OperationalError),
    ):
        Producer(connection).publish(
            "x", routing_key="q", retry=True, retry_policy={"max_retries": 1, "interval_start": 0, "interval_max": 0}
        )
    assert time.monotonic() - began < 30


def test_an_empty_database_is_set_up_by_itself_also_by_several_at_once(bench: Bench) -> None:
    script = (
        "import sys; from kombu import Connection, Queue\n"
        "with Connection(sys.argv[1]) as c: Queue('q')(c.channel()).declare()"
    )
    started = [
        subprocess.Popen(
            [sys.executable, "-c", f"import pgqrs_kombu\n{script}", bench.url],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            stderr=subprocess.PIPE,
        )
        for _ in range(4)
    ]
    for process in started:
        _, problem = process.communicate(timeout=60)
        assert process.returncode == 0, problem


def test_an_older_installation_is_not_touched(bench: Bench) -> None:
    with Client(bench.dsn) as client:
        client.admin.install()
    bench.sql("drop table pgqrs.kombu_exchanges, pgqrs.kombu_bindings, pgqrs.kombu_queues, pgqrs.kombu_mail")
    bench.sql("drop table pgqrs.kombu_consumers")
    bench.sql("delete from pgqrs.migrations where component = 'kombu'")
    for create in (True, False):
        with pytest.raises(SchemaError, match="pgqrs install"):
            bench.connect(create_schema=create).connect()
    with Client(bench.dsn) as client:
        client.admin.install()
    bench.connect().connect()


def test_uninstalling_leaves_nothing_and_installing_again_works(bench: Bench) -> None:
    bench.connect().connect()
    with Client(bench.dsn) as client:
        client.admin.uninstall()
        assert bench.sql("select count(*) from pg_namespace where nspname = 'pgqrs'") == [(0,)]
        client.admin.install()


def test_a_fork_leaves_the_parents_connections_alone(bench: Bench) -> None:
    assert bench.python(FORKING) == "done\n"
    assert bench.rows("q") == 5


def test_all_connections_of_a_process_share_a_few_to_the_server(bench: Bench) -> None:
    inboxes = [
        Inbox(bench.connect(), plain(f"q{number}"), plain(f"m{number}", auto_delete=True)) for number in range(8)
    ]
    for inbox in inboxes:
        assert inbox.nothing(0.05)
    found = bench.sql(
        "select count(*) from pg_stat_activity where datname = current_database() and application_name = 'pgqrs'"
    )
    assert found[0][0] <= 3


def test_an_idle_consumer_asks_once_a_second_whatever_it_consumes(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    perform = sync.perform

    def counting(link: Any, statements: Any, effect: Any, **options: Any) -> Any:
        asked.append(effect.query.name)
        return perform(link, statements, effect, **options)

    connection = bench.connect()
    inbox = Inbox(connection, *(plain(f"q{number}") for number in range(10)), plain("mail", auto_delete=True))
    producer = Producer(bench.connect())
    producer.publish("warm", exchange="q0", routing_key="q0")
    inbox.wait(1)[0].ack()
    assert inbox.nothing(2)
    monkeypatch.setattr(sync, "perform", counting)
    for _ in range(5):
        # What nobody listens to costs nothing either, as long as changes of bindings ring.
        producer.publish("unheard", exchange="amq.topic", routing_key="worker.heartbeat")
        assert inbox.nothing(1)
    assert len(asked) <= 7, asked


def test_the_last_connection_to_close_leaves_none_to_the_server(bench: Bench) -> None:
    with bench.connect() as connection:
        Inbox(connection, Queue("q")).nothing(0.05)
    asked = "select count(*) from pg_stat_activity where datname = current_database() and application_name = 'pgqrs'"
    eventually(lambda: bench.sql(asked) == [(0,)])


def test_several_queues_of_one_consumer_are_picked_up_as_fast_as_one(bench: Bench) -> None:
    queues = [plain(f"q{number}") for number in range(20)]
    inbox = Inbox(bench.connect(), *queues)
    assert inbox.nothing()
    producer = Producer(bench.connect())
    for number, queue in enumerate(queues):
        producer.publish(number, exchange=queue.exchange, routing_key=queue.routing_key)
    assert sorted(inbox.bodies(20)) == list(range(20))


def test_a_broker_url_of_the_test_server_round_trips(bench: Bench) -> None:
    assert url_of(bench.dsn) == bench.url


def test_a_program_that_opens_a_connection_for_each_message_shares_one_to_the_server(bench: Bench) -> None:
    """As Celery does with ``broker_pool_limit=0``."""
    with bench.connect() as connection:
        Producer(connection).publish("first", routing_key="q", declare=[Queue("q")])
    started = bench.sql("select now()")[0][0]
    brokers = set()
    for number in range(20):
        with bench.connect() as connection:
            Producer(connection).publish(number, routing_key="q")
            brokers.add(connection.transport.broker)
    opened = bench.sql(
        "select count(*) from pg_stat_activity where datname = current_database() and application_name = 'pgqrs' "
        "and backend_start > %s",
        started,
    )
    assert len(brokers) == 1
    assert opened[0][0] <= 2
    assert bench.rows("q") == 21
    broker = brokers.pop()
    # Not for ever: what nobody uses is closed.
    eventually(lambda: broker.closed, 15)


def test_closing_beside_a_server_that_has_gone_silent_takes_seconds(bench: Bench) -> None:
    with Proxy(bench.dsn) as proxy:
        connection = bench.connect(url_of(proxy.dsn))
        queues = [plain(f"q{number}") for number in range(3)]
        mail = [Queue(f"mail{number}", Exchange("mail"), exclusive=True) for number in range(3)]
        inbox = Inbox(connection, *queues, *mail)
        Producer(connection).publish("x", exchange="q0", routing_key="q0")
        inbox.wait(1)
        proxy.freeze()
        proxy.refuses = True
        began = time.monotonic()

        connection.release()

        # Where each step is awaited it takes minutes.
        assert time.monotonic() - began < 12
