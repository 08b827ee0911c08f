"""The broker's address, in the three shapes in which Kombu holds one.

===================  ========================================================================================
whole                ``pgqrs://user:password@host:5432/database?sslmode=require`` in ``client.hostname``
libpq                ``host=… dbname=…`` in ``client.hostname``: how the other addresses of a list are kept here
parts                host, port, user, password and virtual host apart, after Kombu itself has parsed an address
===================  ========================================================================================

`Connection.switch` parses the next address of a list always, and stumbles over its query. A text without a scheme it
leaves alone; so lists are rewritten to libpq's shape, see `keep_alternates`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, urlencode

from psycopg.conninfo import make_conninfo

from pgqrs_core import config_address
from pgqrs_core.config import Config, DatabaseConfig, PerformanceConfig, QueueConfig
from pgqrs_core.errors import ConfigurationError
from pgqrs_kombu.registration import SCHEME

if TYPE_CHECKING:
    from kombu import Connection

    from pgqrs_kombu.options import Options

__all__ = ["config_of", "keep_alternates", "masked", "port_of"]

_OURS: Final = (f"{SCHEME}://", f"{SCHEME}+postgresql://", f"{SCHEME}+postgres://", "postgresql://", "postgres://")
#: The only parameter of a URL that is not libpq's.
_SCHEMA: Final = "schema"
_SSL: Final = ("sslmode", "sslrootcert", "sslcert", "sslkey", "sslpassword", "sslcrl", "ssl_min_protocol_version")


def config_of(client: Connection, options: Options) -> Config:
    """Return the settings of an engine for a Kombu connection.

    Raises:
        ConfigurationError: the address cannot be understood; the reason never quotes it.
    """
    parameters = _parameters(client)
    schema = parameters.pop(_SCHEMA, None) or options.schema
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
        # The pool keeps what a burst opened; the broker's upkeep closes what stays idle.
        performance=PerformanceConfig(
            connection_pool_size=options.max_connections, query_timeout_seconds=options.query_timeout
        ),
        queue=QueueConfig(default_lock_time_seconds=options.lease),
        # An address has no room for these; they are those of every program of the deployment.
        plugins=Config.load().plugins,
    )
    embedded = _whole(client)
    if embedded is not None and config_address.normalise(embedded).startswith(config_address.EMBEDDED):
        return replace(config, database=replace(config.database, url=embedded))
    return config


def _whole(client: Connection) -> str | None:
    hostname = client.hostname or ""
    return hostname if "://" in hostname else None


def _parameters(client: Connection) -> dict[str, str]:
    hostname = client.hostname or ""
    if "://" in hostname or "=" in hostname:
        return _parse(hostname)
    parts = {
        "host": hostname or None,
        "port": client.port,
        "user": client.userid,
        "password": client.password() if callable(client.password) else client.password,
        "dbname": None if client.virtual_host in (None, "", "/") else client.virtual_host.lstrip("/"),
    }
    parameters = {key: str(value) for key, value in parts.items() if value is not None}
    config_address.check(parameters)
    return parameters


def _parse(address: str) -> dict[str, str]:
    address, schema = config_address.split_schema(address.removeprefix(f"{SCHEME}+"))
    parameters = config_address.parse(address)
    return {**parameters, _SCHEMA: schema} if schema else parameters


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


def keep_alternates(client: Connection) -> None:
    """Rewrite the other addresses of a list so that Kombu's failover passes them on whole."""
    if not client.alt or not any(_is_ours(address) for address in client.alt):
        return
    client.alt = [_libpq(address) if _is_ours(address) else address for address in client.alt]
    client.cycle = client.failover_strategy(client.alt)
    next(client.cycle)


def _is_ours(address: object) -> bool:
    return isinstance(address, str) and address.startswith(_OURS)


def _libpq(address: str) -> str:
    parameters = _parse(address)
    schema = parameters.pop(_SCHEMA, None)
    if schema:
        raise ConfigurationError("give the schema of a list of addresses as a transport option", key=_SCHEMA)
    return make_conninfo("", **parameters)


def port_of(client: Connection) -> int:
    """Return the port of the address, the first of several; 5432 unless it says."""
    try:
        port = _parameters(client).get("port", "")
    except ConfigurationError:
        return 5432
    return int(port.split(",")[0] or 5432)


def masked(client: Connection, *, include_password: bool, mask: str) -> str:
    """Return the address as a URL, to be shown or, with the password, to be used."""
    url = _url_of(client)
    return url if include_password else config_address.masked(url, mask)


def _url_of(client: Connection) -> str:
    whole = _whole(client)
    parameters = {} if whole and whole.startswith(config_address.EMBEDDED) else _parameters(client)
    if not parameters:
        return f"{SCHEME}://"
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
