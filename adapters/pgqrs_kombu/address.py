"""The address of a broker in the parts in which Kombu keeps and shows it.

Kombu leaves a ``pgqrs://`` URL as it is, for its own parser knows neither libpq's parameters nor several hosts, and keeps
it where the host name belongs. There it would be shown whole, with the password: by ``Connection.info()``, ``celery
inspect stats`` and Flower. So it is split as soon as Kombu has taken it: host, port, user, password and database go where
Kombu has a place for them, and all else stands behind the host name, in an `Address`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import wraps
from typing import TYPE_CHECKING, Any, Final

import kombu.connection

from pgqrs_core import config_address
from pgqrs_core.errors import ConfigurationError
from pgqrs_kombu.registration import SCHEME

if TYPE_CHECKING:
    from kombu import Connection

__all__ = ["SCHEMA", "Address", "embedded", "parameters_of", "place", "place_alternates", "split_when_taken"]

#: The only parameter of a URL that is not libpq's.
SCHEMA: Final = "schema"
_OURS: Final = (f"{SCHEME}://", f"{SCHEME}+postgresql://", f"{SCHEME}+postgres://", "postgresql://", "postgres://")
#: What a host name that is not given is shown as; Kombu would put a real one in the place of an empty text.
_NO_HOST: Final = "localhost"
_EMBEDDED: Final = "embedded"
_UNREADABLE: Final = "unreadable address"
_PORT: Final = 5432


class Address(str):
    """A host name, or several with commas, as it is shown; and what else is known of the address.

    Kombu hands it on to clones and pickles it, as it would any text. It prints, and is written as JSON, as the text alone.

    Attributes:
        given: the host names, ports and all that Kombu has no place for, by libpq's names and ``schema``.
        port: what Kombu was told as the port.
        whole: an address that has no parts, or that cannot be read.
        rest: the parts that Kombu has a place for, where it does not have them yet: of one address in a list.
    """

    given: Mapping[str, str]
    port: int
    whole: str | None
    rest: Mapping[str, str] | None

    @classmethod
    def of(cls, parameters: Mapping[str, str], *, shown: str | None = None) -> Address:
        """Make one of libpq's parameters; ``shown`` in place of the host names, and with the parts in `rest`."""
        rest = {name: value for name, value in parameters.items() if name in ("user", "password", "dbname")}
        given = {name: value for name, value in parameters.items() if name not in rest}
        made = cls(shown or given.get("host") or _NO_HOST)
        made.given, made.rest = given, rest if shown else None
        made.port = int(given.get("port", "").split(",")[0] or _PORT)
        made.whole = None
        return made

    @classmethod
    def opaque(cls, whole: str, shown: str) -> Address:
        """Make one that is kept for the time of connecting, and not shown."""
        made = cls(shown)
        made.given, made.rest, made.port, made.whole = {}, None, _PORT, whole
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the text with what stands behind it."""
        return _restored, (str(self), self.given, self.port, self.whole, self.rest)


def _restored(text: str, *state: Any) -> Address:
    made = Address(text)
    made.given, made.port, made.whole, made.rest = state
    return made


def split_when_taken() -> None:
    """Have Kombu split our addresses when it takes them, so that none is ever kept whole. May be repeated."""
    original = kombu.connection.Connection._init_params
    if hasattr(original, "__wrapped__"):
        return

    known = inspect.signature(original).parameters.keys()

    @wraps(original)
    def init_params(self: Any, *args: Any, **params: Any) -> None:
        # Kombu parses the next address of a list by itself unless `place_alternates` came first; then libpq's are here.
        ours = params.get("transport") == SCHEME
        more = {name: params.pop(name) for name in [*params] if ours and name not in known}
        original(self, *args, **params)
        if more:
            self.hostname = Address.of({**more, "host": self.hostname or ""})
            self.port = self.port or self.hostname.port
        if self.transport_cls == SCHEME:
            place(self)

    kombu.connection.Connection._init_params = init_params


def place(client: Connection) -> None:
    """Put the parts of an address where Kombu has a place for each. Harmless to repeat, and never fails."""
    _split(client)
    ssl = getattr(client, "ssl", None)
    if not isinstance(ssl, Mapping):
        return
    secrets = {key: ssl[key] for key in ssl if config_address.is_secret(str(key))}
    if secrets:
        # It is shown, too. The dictionary is the application's and stays as it is.
        client.ssl = {key: ssl[key] for key in ssl if key not in secrets} or True
        hostname = client.hostname
        if not isinstance(hostname, Address):
            hostname = client.hostname = Address.of({"host": hostname} if hostname else {})
        hostname.given = {**{key: str(value) for key, value in secrets.items()}, **hostname.given}


def _split(client: Connection) -> None:
    hostname = client.hostname or ""
    if isinstance(hostname, Address):
        if hostname.rest is None:
            return
        parameters = {**hostname.given, **hostname.rest}
    elif "://" in hostname or "=" in hostname:
        client.uri_prefix = None
        try:
            parameters = _parsed(hostname)
        except ConfigurationError:
            # The constructor of a connection is not the place to say so: connecting does.
            client.hostname, client.port = Address.opaque(hostname, _UNREADABLE), _PORT
            return
        if config_address.normalise(hostname).startswith(config_address.EMBEDDED):
            client.hostname, client.port = Address.opaque(hostname, _EMBEDDED), _PORT
            return
    else:
        return
    address = Address.of(parameters)
    client.hostname, client.port = address, address.port
    client.userid = parameters.get("user") or None
    client.password = parameters.get("password") or None
    client.virtual_host = parameters.get("dbname") or "/"


def place_alternates(client: Connection) -> None:
    """Rewrite the other addresses of a list so that Kombu's failover passes them on whole, and shows no password.

    `Connection.switch` parses the next address always, and stumbles over libpq's parameters. A text without a scheme it
    takes for a host name.
    """
    if not client.alt or not any(_is_ours(address) for address in client.alt):
        return
    client.alt = [_alternate(address) if _is_ours(address) else address for address in client.alt]
    client.cycle = client.failover_strategy(client.alt)
    next(client.cycle)


def parameters_of(client: Connection) -> dict[str, str]:
    """Return libpq's parameters, and the schema, of a connection; none for an ``embedded://`` address.

    Raises:
        ConfigurationError: the address cannot be understood; the reason never quotes it.
    """
    place(client)
    hostname = client.hostname or ""
    parameters: dict[str, str] = {}
    port = client.port
    if isinstance(hostname, Address):
        if hostname.whole is not None:
            return _parsed(hostname.whole)
        parameters.update(hostname.given)
        # Unless a clone was given another one.
        port = None if port == hostname.port else port
    elif hostname:
        parameters["host"] = hostname
    parts = {
        "port": port,
        "user": client.userid,
        "password": client.password() if callable(client.password) else client.password,
        "dbname": None if client.virtual_host in (None, "", "/") else client.virtual_host.removeprefix("/"),
    }
    parameters.update({key: str(value) for key, value in parts.items() if value is not None})
    if not isinstance(hostname, Address):
        config_address.check(parameters)
    return parameters


def embedded(client: Connection) -> str | None:
    """Return the ``embedded://`` address of a connection, if it has one."""
    hostname = client.hostname
    whole = hostname.whole if isinstance(hostname, Address) else None
    if whole is not None and config_address.normalise(whole).startswith(config_address.EMBEDDED):
        return whole
    return None


def _parsed(address: str) -> dict[str, str]:
    address, schema = config_address.split_schema(address.removeprefix(f"{SCHEME}+"))
    parameters = config_address.parse(address)
    return {**parameters, SCHEMA: schema} if schema else parameters


def _is_ours(address: object) -> bool:
    return isinstance(address, str) and address.startswith(_OURS)


def _alternate(address: str) -> Address:
    parameters = _parsed(address)
    if SCHEMA in parameters:
        raise ConfigurationError("give the schema of a list of addresses as a transport option", key=SCHEMA)
    return Address.of(parameters, shown=config_address.target(parameters))
