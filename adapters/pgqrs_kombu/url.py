"""The settings of an engine for a Kombu connection, and its address as a URL."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, urlencode

from psycopg.conninfo import make_conninfo

from pgqrs_core import config_address
from pgqrs_core.config import Config, DatabaseConfig, PerformanceConfig, QueueConfig
from pgqrs_core.errors import ConfigurationError
from pgqrs_core.secret import without_frames
from pgqrs_kombu.address import SCHEMA, embedded, parameters_of
from pgqrs_kombu.registration import SCHEME

if TYPE_CHECKING:
    from kombu import Connection

    from pgqrs_kombu.options import Options

__all__ = ["config_of", "masked"]

_SSL: Final = ("sslmode", "sslrootcert", "sslcert", "sslkey", "sslpassword", "sslcrl", "ssl_min_protocol_version")


@without_frames
def config_of(client: Connection, options: Options) -> Config:
    """Return the settings of an engine for a Kombu connection.

    Raises:
        ConfigurationError: the address cannot be understood; the reason never quotes it.
    """
    parameters = parameters_of(client)
    schema = parameters.pop(SCHEMA, None) or options.schema
    for key, value in _tls(client.ssl).items():
        parameters.setdefault(key, value)
    in_url = config_address.connect_timeout(parameters)
    timeout = in_url or max(float(client.connect_timeout or 5), 1.0)
    config = Config(
        database=DatabaseConfig(
            url=make_conninfo("", **parameters) or "dbname=''",
            schema=schema,
            max_connections=options.max_connections,
            connection_timeout_seconds=timeout,
        ),
        # The pool keeps what a burst opened, until it has been idle for a while.
        performance=PerformanceConfig(
            connection_pool_size=options.max_connections, query_timeout_seconds=options.query_timeout
        ),
        queue=QueueConfig(default_lock_time_seconds=options.lease),
        # An address has no room for these; they are those of every program of the deployment.
        plugins=Config.load().plugins,
    )
    address = embedded(client)
    return config if address is None else replace(config, database=replace(config.database, url=address))


def _tls(ssl: object) -> dict[str, str]:
    """Return libpq's parameters for ``broker_use_ssl``."""
    if not ssl:
        return {}
    if not isinstance(ssl, Mapping):
        return {"sslmode": "require"}
    for key in ssl:
        if key not in _SSL:
            raise ConfigurationError(f"ssl: {key!r} is unknown; there are {', '.join(_SSL)}", key="ssl")
    return {"sslmode": "require", **{key: str(value) for key, value in ssl.items()}}


def masked(client: Connection, *, include_password: bool, mask: str) -> str:
    """Return the address as a URL, to be shown or, with the password, to be used."""
    url = _url_of(client)
    return url if include_password else config_address.masked(url, mask)


def _url_of(client: Connection) -> str:
    parameters = parameters_of(client)
    if not parameters:
        address = embedded(client)
        return f"{SCHEME}+{address}" if address else f"{SCHEME}://"
    hosts = parameters.pop("host", "").split(",")
    ports = parameters.pop("port", "").split(",")
    sockets = any(host.startswith(("/", "@")) for host in hosts)
    netloc = "" if sockets else ",".join(map(_place, hosts, _spread(ports, len(hosts))))
    if sockets:
        parameters["host"] = ",".join(hosts)
        if ports != [""]:
            parameters["port"] = ",".join(ports)
    user, password = parameters.pop("user", ""), parameters.pop("password", "")
    if password:
        password = f":{quote(password, safe='')}"
    account = f"{quote(user, safe='')}{password}@" if user or password else ""
    database = quote(parameters.pop("dbname", ""), safe="")
    query = urlencode(parameters, quote_via=quote, safe="/")
    return f"{SCHEME}://{account}{netloc}/{database}" + (f"?{query}" if query else "")


def _spread(ports: list[str], count: int) -> list[str]:
    return ports if len(ports) == count else ports[:1] * count


def _place(host: str, port: str) -> str:
    host = f"[{host}]" if ":" in host else quote(host, safe="")
    return f"{host}:{port}" if port else host
