"""An address in parts: each where Kombu keeps and shows it, and the secret ones where it does not."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pytest
from kombu import Connection
from kombu.pools import producers

from pgqrs_core.errors import ConfigurationError

SEVERAL = "pgqrs://app:s3cret@one:5433,two:5434/db?sslmode=require&schema=jobs"


def shown(connection: Connection) -> str:
    """Everything of a connection that Celery and Flower show: they leave the password out."""
    info = connection.info()
    del info["password"]
    return json.dumps(info) + repr(info) + repr(connection) + repr(connection.transport) + connection.as_uri()


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("pgqrs://app:s3cret@db.example.com/shop", ("db.example.com", 5432, "app", "s3cret", "shop")),
        ("pgqrs+postgresql://app:s3cret@db:6432/shop", ("db", 6432, "app", "s3cret", "shop")),
        (SEVERAL, ("one,two", 5433, "app", "s3cret", "db")),
        ("pgqrs://app:s3cret@[::1]:5433/shop", ("::1", 5433, "app", "s3cret", "shop")),
        ("pgqrs:///shop?host=/run/postgresql&password=s3cret", ("/run/postgresql", 5432, None, "s3cret", "shop")),
        ("pgqrs://app@/shop", ("localhost", 5432, "app", None, "shop")),
        ("pgqrs://app:s3cret@db", ("db", 5432, "app", "s3cret", "/")),
        ("pgqrs://app:s3cret@db:port/shop", ("unreadable address", 5432, None, None, "/")),
        ("pgqrs+embedded:///data", ("embedded", 5432, None, None, "/")),
        (f"pgqrs://app:s3cret@first/shop;{SEVERAL[:-12]}", ("first", 5432, "app", "s3cret", "shop")),
    ],
)
def test_an_address_is_kept_in_parts(url: str, parts: tuple[Any, ...]) -> None:
    connection = Connection(url)
    found = (connection.hostname, connection.port, connection.userid, connection.password, connection.virtual_host)
    assert found == parts
    assert "s3cret" not in shown(connection)
    whole = connection.as_uri(include_password=True)
    assert ("s3cret" in whole) == (parts[3] is not None)
    others = [connection.clone(), pickle.loads(pickle.dumps(connection))]
    if parts[0] != "unreadable address":
        others.append(Connection(whole))
    for other in others:
        assert other.as_uri(include_password=True) == whole
        assert (other.hostname, other.port) == parts[:2]


@pytest.mark.parametrize("used", [False, True])
def test_failover_keeps_every_address_in_parts_and_whole(used: bool) -> None:
    second = "pgqrs://app:s3cret@two:5434/other?sslmode=require"
    connection = Connection(f"pgqrs://app:s3cret@one/db?application_name=x;{second}")
    if used:
        assert connection.transport.client is connection

    connection.maybe_switch_next()

    assert (connection.hostname, connection.port, connection.virtual_host) == ("two", 5434, "other")
    assert connection.as_uri(include_password=True) == second
    assert connection.clone().as_uri(include_password=True) == second
    assert "s3cret" not in shown(connection)
    assert connection.info()["alternates"] == ["one:5432/db", "two:5434/other"]
    if used:
        connection.maybe_switch_next()
        assert (connection.hostname, connection.port) == ("one", 5432)


@pytest.mark.parametrize("name", ["sslpassword", "scram_client_key", "oauth_client_secret"])
def test_other_secrets_of_an_address_are_not_shown(name: str) -> None:
    url = f"pgqrs://app@db/shop?{name}=s3cret"
    connection = Connection(url)
    # libpq before 18 does not know all of them.
    assert "s3cret" not in shown(connection)
    if name == "sslpassword":
        given = {"sslmode": "require", "sslpassword": "s3cret"}
        connection = Connection("pgqrs://app@db/shop", ssl=given)
        assert "s3cret" not in shown(connection)
        assert "sslpassword=s3cret" in connection.clone().as_uri(include_password=True)
        assert given["sslpassword"] == "s3cret"


def test_parts_may_be_changed_in_a_clone() -> None:
    connection = Connection(SEVERAL)
    clone = connection.clone(virtual_host="other", password="new")
    assert clone.as_uri(include_password=True) == SEVERAL.replace("/db", "/other").replace("s3cret", "new")
    assert "one:6000,two:6000/" in connection.clone(port=6000).as_uri()
    assert "@other:5433/" in connection.clone(hostname="other").as_uri()


def test_one_address_has_one_pool_before_and_after_it_was_used() -> None:
    connection = Connection(SEVERAL)
    before = producers[connection]
    assert connection.transport.client is connection
    assert producers[connection] is before


def test_a_wrong_address_is_an_error_of_connecting_that_does_not_quote_it() -> None:
    connection = Connection("pgqrs://app:s3cret@db:port/shop")
    with pytest.raises(ConfigurationError) as caught:
        connection.connect()
    assert "s3cret" not in str(caught.value)
