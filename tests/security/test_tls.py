"""TLS with a private authority, by every way to connect: accepted when it is right, refused when it is not."""

from __future__ import annotations

import asyncio
import datetime
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
from celery import Celery
from kombu import Connection
from kombu.exceptions import OperationalError
from pgqrs_native import AsyncClient, Client
from pgqrs_native.command.app import run
from pgqrs_native.command.doctor import encryption
from psycopg.conninfo import conninfo_to_dict

from pgqrs_core.config import Config
from pgqrs_core.errors import Unavailable
from pgqrs_core.testing import Proxy

from .certificates import Authority

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"), "right")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"), "wrong")


@pytest.fixture
def secured(pgqrs_dsn: str, authority: Authority) -> Iterator[Proxy]:
    """A server that speaks nothing but TLS, as ``localhost``."""
    with Proxy(pgqrs_dsn, tls=authority.context("localhost")) as proxy:
        yield proxy


def url_of(proxy: Proxy, *, scheme: str = "postgresql", host: str = "localhost", **query: object) -> str:
    """Return the address of the server behind the proxy."""
    parameters = conninfo_to_dict(proxy.dsn)
    account = quote(str(parameters.get("user", "")), safe="")
    if "password" in parameters:
        account += f":{quote(str(parameters['password']), safe='')}"
    words = "&".join(
        f"{key}={quote(str(value), safe='/')}" for key, value in {"gssencmode": "disable", **query}.items()
    )
    return f"{scheme}://{account}@{host}:{parameters['port']}/{parameters['dbname']}?{words}"


def verified(proxy: Proxy, authority: Authority, **more: Any) -> str:
    return url_of(proxy, **{"sslmode": "verify-full", "sslrootcert": authority.path, **more})


def by_client(url: str) -> None:
    with Client(Config.load(url=url.replace("pgqrs://", "postgresql://"), env={})) as client:
        client.admin.install()
        client.admin.create_queue("jobs")
        client.producer.enqueue("jobs", 1)
        assert client.consumer.read("jobs") is not None
        # On the connection that listens.
        assert client.consumer.read("jobs", wait=0.2) is None


def by_async_client(url: str) -> None:
    async def run() -> None:
        async with AsyncClient(Config.load(url=url.replace("pgqrs://", "postgresql://"), env={})) as client:
            await client.admin.install()
            await client.admin.create_queue("jobs")
            await client.producer.enqueue("jobs", 1)
            assert await client.consumer.read("jobs") is not None
            assert await client.consumer.read("jobs", wait=0.2) is None

    asyncio.run(run())


def by_kombu(url: str) -> None:
    with Connection(url, transport_options={"create_schema": True, "max_retries": 1}) as connection:
        queue = connection.SimpleQueue("tasks")
        queue.put({"a": 1})
        message = queue.get(timeout=10)
        message.ack()
        assert message.payload == {"a": 1}
        queue.close()


def by_celery_results(url: str) -> None:
    app = Celery("tls", set_as_current=False)
    app.conf.update(result_backend=url, result_backend_always_retry=False)
    app.backend.store_result("one", 42, "SUCCESS")
    assert app.AsyncResult("one").get(timeout=10) == 42


WAYS = [
    pytest.param(by_client, id="client"),
    pytest.param(by_async_client, id="async-client"),
    pytest.param(by_kombu, id="kombu"),
    pytest.param(by_celery_results, id="celery-results"),
]
#: Kombu puts its own error around ours where it connects by itself.
REFUSED = (Unavailable, OperationalError)
Way = Callable[[str], None]


@pytest.mark.parametrize("way", WAYS)
def test_the_right_authority_and_name_are_accepted(way: Way, secured: Proxy, authority: Authority) -> None:
    way(verified(secured, authority, scheme="pgqrs"))


@pytest.mark.parametrize("way", WAYS)
def test_another_authority_is_refused(way: Way, secured: Proxy, stranger: Authority) -> None:
    with pytest.raises(REFUSED, match="certificate verify failed"):
        way(verified(secured, stranger, scheme="pgqrs"))


@pytest.mark.parametrize("way", WAYS)
def test_another_host_name_is_refused(way: Way, secured: Proxy, authority: Authority) -> None:
    with pytest.raises(REFUSED, match=r"(localhost|127\.0\.0\.1).* does not match host name"):
        way(verified(secured, authority, scheme="pgqrs", host="127.0.0.1"))


@pytest.mark.parametrize("way", WAYS)
def test_a_server_without_tls_is_refused(way: Way, pgqrs_dsn: str, authority: Authority) -> None:
    with Proxy(pgqrs_dsn) as plain:
        with psycopg.connect(plain.dsn) as connection:
            if connection.execute("show ssl").fetchone() == ("on",):
                pytest.skip("this server speaks TLS itself")
        with pytest.raises(REFUSED, match="does not support SSL"):
            way(verified(plain, authority, scheme="pgqrs"))


def test_a_certificate_that_has_run_out_is_refused(pgqrs_dsn: str, authority: Authority) -> None:
    context = authority.context("localhost", valid=datetime.timedelta(days=-1))
    with Proxy(pgqrs_dsn, tls=context) as proxy, pytest.raises(Unavailable, match="certificate verify failed"):
        by_client(verified(proxy, authority))


def test_an_authority_that_cannot_be_read_is_said(secured: Proxy, tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"root certificate file .*missing.pem"):
        by_client(url_of(secured, sslmode="verify-full", sslrootcert=tmp_path / "missing.pem"))


def test_a_program_that_does_not_want_tls_gets_nothing(secured: Proxy) -> None:
    with pytest.raises(Unavailable):
        by_client(url_of(secured, sslmode="disable"))


def test_to_require_tls_is_not_to_know_with_whom(secured: Proxy) -> None:
    # Documented: only verify-full keeps off whoever stands in between.
    by_client(url_of(secured, sslmode="require"))


@pytest.mark.parametrize(
    ("host", "encrypted", "mode", "status"),
    [
        ("/tmp", False, "prefer", "ok"),
        ("127.0.0.1", False, "disable", "ok"),
        ("::1", False, "prefer", "ok"),
        ("10.0.0.7", False, "prefer", "warn"),
        ("10.0.0.7", False, "disable", "warn"),
        ("10.0.0.7", True, "prefer", "info"),
        ("10.0.0.7", True, "require", "info"),
        ("10.0.0.7", True, "verify-ca", "info"),
        ("10.0.0.7", True, "verify-full", "ok"),
    ],
)
def test_the_doctor_judges_how_a_connection_is_protected(host: str, encrypted: bool, mode: str, status: str) -> None:
    assert encryption(host, encrypted=encrypted, mode=mode).status == status


def test_the_doctor_looks_at_its_connection(
    secured: Proxy, authority: Authority, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def looked(host: str, **facts: Any) -> Any:
        asked.append({"host": host, **facts})
        return encryption(host, **facts)

    monkeypatch.setattr("pgqrs_native.command.doctor.encryption", looked)
    run(["doctor", "--json", "--url", verified(secured, authority)])

    found = {one["check"] for one in json.loads(capfd.readouterr().out)["findings"]}
    assert "encryption" in found
    assert asked == [{"host": "127.0.0.1", "encrypted": True, "mode": "verify-full"}]


def test_celery_takes_the_settings_of_tls_beside_the_url(
    secured: Proxy, stranger: Authority, authority: Authority
) -> None:
    url = url_of(secured, scheme="pgqrs")
    right, wrong = ({"sslmode": "verify-full", "sslrootcert": str(one.path)} for one in (authority, stranger))
    with Connection(url, ssl=right, transport_options={"create_schema": True}) as connection:
        connection.connect()

    with Connection(url, ssl=wrong) as connection, pytest.raises(Unavailable, match="certificate verify failed"):
        connection.connect()
