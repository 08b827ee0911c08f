"""Where the database is: URLs and conninfo strings, how they combine, and what of them may be shown.

libpq's own messages quote the text they could not parse, and PostgreSQL URLs hold passwords. So nothing here
passes such a message on: every reason is one of ours, and is raised after the original error is gone.
"""

from __future__ import annotations

import math
import os
import re
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgqrs_core.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pgqrs_core.config_sources import Given, Level

__all__ = [
    "EMBEDDED",
    "LIBPQ_NAMES",
    "check",
    "connect_timeout",
    "contradiction",
    "is_secret",
    "looks_secret",
    "masked",
    "normalise",
    "parse",
    "render",
    "settle",
    "split_schema",
    "target",
]

EMBEDDED: Final = "embedded://"

#: Our keys for the parts of an address, and libpq's.
LIBPQ_NAMES: Final[Mapping[str, str]] = {
    "host": "host",
    "port": "port",
    "username": "user",
    "password": "password",
    "database": "dbname",
}

_OUR_NAMES: Final = {libpq: ours for ours, libpq in LIBPQ_NAMES.items()}

#: Without these a connection whose peer vanished (failover, power loss, a NAT that forgot) blocks for hours.
#: The application name is libpq's *fallback*, so that a URL and PGAPPNAME both still win.
_DEFAULTS: Final[Mapping[str, str]] = {
    "fallback_application_name": "pgqrs",
    "keepalives": "1",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "30000",
}

#: Parameters of a URL.
_PARAMETERS: Final = re.compile(r"(?<=[?&])([^=&]*)=[^&]*")

#: What no part of an address can hold: libpq would take a NUL for the end, and lone surrogates are in no encoding.
_UNFIT: Final = re.compile("[\0\ud800-\udfff]")

#: How the names end of libpq's parameters that are secret: two passwords, the keys of SCRAM, OAuth's secret.
_SECRET: Final = ("password", "scram_client_key", "scram_server_key", "oauth_client_secret")

_TIMEOUT: Final = "connection_timeout_seconds"
_SCHEMES: Final = ("postgresql", "postgres", "pgqrs", "embedded")
_EXPECTED: Final = "a URL (postgresql://, postgres://, pgqrs://, embedded://) or key=value pairs"
_ENCODE: Final = "percent-encode the special characters of its password, '@' as %40 and '/' as %2F"

#: Pieces of libpq's messages, and what we say instead of quoting them.
_REASONS: Final = (
    ("percent-encoded", "a '%' is not followed by two hexadecimal digits; write '%' itself as %25"),
    ("forbidden value", "it holds %00"),
    ("query parameter", "libpq does not know one of the parameters after '?'"),
    ("connection option", "libpq does not know one of its keys"),
    ("unterminated quoted", "a quoted value is not closed"),
    ('missing "="', "a key is not followed by '='"),
    ("codec can't decode", "its percent-encoded bytes are not UTF-8"),
    ("IPv6", "an IPv6 address is not written as [address]"),
    ("unexpected character", f"a character stands where none may; {_ENCODE}"),
)


def looks_secret(text: str) -> bool:
    """Say whether a text may be a whole address, with a password in it, that was put in the wrong place."""
    return "://" in text or re.search(r"pass\w*\s*=", text, re.IGNORECASE) is not None


def normalise(url: str) -> str:
    """Rewrite ``pgqrs://`` to the scheme that libpq knows, and schemes to the lower case it insists on."""
    scheme, separator, rest = url.strip().partition("://")
    scheme = scheme.lower()
    if not separator or scheme not in _SCHEMES:
        return url
    return f"{'postgresql' if scheme == 'pgqrs' else scheme}://{rest}"


def masked(url: str, mask: str = "**") -> str:
    """Return a URL with every password in it replaced by ``mask``, whether or not it is well formed."""
    scheme, separator, rest = url.partition("://")
    # A password with an unescaped '/', '?' or '@' must not be shown either: the last '@' that may end it does.
    before_query = rest.partition("?")[0]
    end = (before_query if "@" in before_query else rest).rfind("@")
    user, colon, _ = rest[: max(end, 0)].partition(":")
    shown = f"{user}:{mask}{rest[end:]}" if colon else rest
    return f"{scheme}{separator}{_PARAMETERS.sub(lambda found: _masked_parameter(found, mask), shown)}"


def _masked_parameter(found: re.Match[str], mask: str) -> str:
    """Hide the value of a parameter that is secret, whose name libpq takes percent-encoded, too."""
    return f"{found[1]}={mask}" if is_secret(unquote(found[1])) else found[0]


def is_secret(name: str) -> bool:
    """Tell whether the value of one of libpq's parameters must not be shown."""
    return name.lower().endswith(_SECRET)


def split_schema(url: str) -> tuple[str, str | None]:
    """Take ``schema=`` out of a URL's query: the one parameter of ours there, which libpq would refuse.

    Everything else stays as it is written. A conninfo string has no query.
    """
    head, mark, query = url.partition("?")
    if not mark or "://" not in head:
        return url, None
    kept, schema = [], None
    for part in query.split("&"):
        name, _, value = part.partition("=")
        if name == "schema":
            schema = unquote(value)
        else:
            kept.append(part)
    return (f"{head}?{'&'.join(kept)}" if kept else head), schema


def parse(url: str, source: str | None = None) -> dict[str, str]:
    """Split a URL or conninfo string into libpq's parameters. An ``embedded://`` address has none."""
    url = normalise(url)
    if url.startswith(EMBEDDED):
        return {}
    if _UNFIT.search(url):
        problem = f"database.url must be {_EXPECTED}: it holds characters that no address can"
        raise ConfigurationError(problem, key="database.url", source=source)
    is_url = url.startswith(("postgresql://", "postgres://"))
    if not is_url and re.match(r"\s*\w+\s*=", url) is None:
        # SQLAlchemy's spelling is what DATABASE_URL holds in many deployments.
        hint = "; leave out the '+driver'" if re.match(r"postgres(ql)?\+\w+://", url) else ""
        raise ConfigurationError(f"database.url must be {_EXPECTED}{hint}", key="database.url", source=source)
    reason = None
    try:
        parameters = {key: str(value) for key, value in conninfo_to_dict(url).items()}
    except (ProgrammingError, UnicodeDecodeError) as error:
        reason = next((ours for theirs, ours in _REASONS if theirs in str(error)), "libpq cannot parse it")
    if reason is not None:
        raise ConfigurationError(f"database.url must be {_EXPECTED}: {reason}", key="database.url", source=source)
    if is_url and (part := _holds_bare_at(url)):
        problem = f"database.url: there is an '@' in the {part}; {_ENCODE}, one that belongs there as %40, too"
        raise ConfigurationError(problem, key="database.url", source=source)
    check(parameters, key="database.url", source=source)
    return parameters


def _holds_bare_at(url: str) -> str | None:
    """Return the part of a URL in which an '@' is not encoded: that is the tail of a password with an '@' or '/'."""
    place = url.partition("://")[2].partition("?")[0]
    authority, _, path = place.partition("/")
    if "@" in path:
        return "database"
    # libpq takes the first one for the end of the password.
    return "host" if authority.count("@") > 1 else None


def check(parameters: Mapping[str, str], *, key: str | None = None, source: str | None = None) -> None:
    """Refuse what libpq stumbles over only later, and what would show a password as a host name."""

    def refuse(part: str, problem: str) -> ConfigurationError:
        label = key or f"database.{part}"
        return ConfigurationError(f"{label}: {problem}", key=label, source=source)

    for name, value in parameters.items():
        if _UNFIT.search(value):
            raise refuse(_OUR_NAMES.get(name, name), "it holds characters that no address can")
    hosts = parameters.get("hostaddr", parameters.get("host", "")).split(",")
    ports = parameters.get("port", "").split(",")
    for part, name in (("host", "host"), ("database", "dbname")):
        value = parameters.get(name, "")
        if looks_secret(value):
            raise refuse(part, f"the {part} is a whole address; give that as database.url")
        # A database may hold an "@", and a host that begins with one is an abstract Unix socket.
        if part == "host" and any("@" in item[1:] for item in value.split(",")):
            raise refuse(part, f"there is an '@' in the {part}; {_ENCODE}")
    for port in ports:
        if port and not (re.fullmatch("[0-9]{1,5}", port) and 1 <= int(port) <= 65_535):
            raise refuse("port", f"a port must be a whole number from 1 to 65,535; {_ENCODE}")
    if len(ports) > 1 and len(ports) != len(hosts):
        raise refuse("port", f"{len(ports)} ports do not fit {len(hosts)} hosts; give one for all or for each")


def connect_timeout(parameters: Mapping[str, str], source: str | None = None) -> float | None:
    """Read ``connect_timeout`` out of a URL: the same setting as ``connection_timeout_seconds``."""
    if "connect_timeout" not in parameters:
        return None
    text = parameters["connect_timeout"].strip()
    if not (re.fullmatch("[0-9]{1,4}", text) and 1 <= int(text) <= 3600):
        raise ConfigurationError(
            "database.url: connect_timeout must be a whole number from 1 to 3,600 (seconds)",
            key="database.url",
            source=source,
        )
    return float(text)


def contradiction(key: str, *, source: str | None = None, other: str = "") -> ConfigurationError:
    """Say that a URL and a single key both claim the same thing."""
    other = f" ({other})" if other else ""
    return ConfigurationError(
        f"database.url and database.{key}{other} are both given; leave one of them out",
        key=f"database.{key}",
        source=source,
    )


def settle(levels: Sequence[Level]) -> dict[str, Any]:
    """Combine the addresses of all sources, highest first, into one URL or into single parts.

    The highest URL counts, changed by the single parts that stand above it, never by those below.
    """
    parts: dict[str, Given] = {}
    timeout_above = False
    for level in levels:
        mine = {key: level["database", key] for key in LIBPQ_NAMES if ("database", key) in level}
        timeout, url = level.get(("database", _TIMEOUT)), level.get(("database", "url"))
        if url is None:
            for key, given in mine.items():
                check({LIBPQ_NAMES[key]: str(given.value)}, source=given.source)
            parts = {**mine, **parts}
            timeout_above = timeout_above or timeout is not None
            continue
        for key, given in mine.items():
            raise contradiction(key, source=url.source, other=given.source)
        in_url = connect_timeout(parse(url.value, url.source), url.source)
        if timeout is not None and in_url is not None:
            raise contradiction(_TIMEOUT, source=url.source, other=timeout.source)
        settled = {} if in_url is None or timeout_above else {_TIMEOUT: in_url}
        if not parts and not timeout_above:
            return {"url": url.value, **settled}
        return {"url": _override(url.value, parts, keep_timeout=not timeout_above), **settled}
    return {key: given.value for key, given in parts.items()}


def _override(url: str, parts: Mapping[str, Given], *, keep_timeout: bool) -> str:
    """Replace single parts of a URL, and give the result as a conninfo string."""
    if normalise(url).startswith(EMBEDDED):
        for key, given in parts.items():
            raise ConfigurationError(
                f"database.{key} cannot change part of an {EMBEDDED} address; give another database.url",
                key=f"database.{key}",
                source=given.source,
            )
        return url
    parameters = parse(url)
    if "host" in parts:
        # libpq connects to hostaddr when there is one: the old server's would silently win.
        parameters.pop("hostaddr", None)
    parameters.update({LIBPQ_NAMES[key]: str(given.value) for key, given in parts.items()})
    if not keep_timeout:
        parameters.pop("connect_timeout", None)
    check(parameters, source=next((given.source for given in parts.values()), None))
    return make_conninfo("", **parameters)


def render(parameters: Mapping[str, str], timeout: float) -> str:
    """Give the conninfo string to connect with: our defaults, then everything that the address says."""
    # libpq takes whole seconds and waits for ever on 0, so a fraction is rounded up.
    return make_conninfo("", **{**_DEFAULTS, **parameters, "connect_timeout": str(math.ceil(timeout))})


def target(parameters: Mapping[str, str]) -> str:
    """Name the server and database for people: ``host:port/database``, without user and password."""
    service = parameters.get("service") or _environment("PGSERVICE")
    hosts = parameters.get("host") or parameters.get("hostaddr") or _environment("PGHOST")
    if service and not hosts:
        return f"service {service}"
    ports = (parameters.get("port") or _environment("PGPORT") or "5432").split(",")
    shown = []
    for index, host in enumerate((hosts or "local socket").split(",")):
        port = ports[index if len(ports) > 1 and index < len(ports) else 0] or "5432"
        is_ipv6 = ":" in host and not host.startswith(("/", "@"))
        shown.append(f"[{host}]:{port}" if is_ipv6 else f"{host or 'local socket'}:{port}")
    # libpq falls back to a database named like the user.
    named, user = parameters.get("dbname") or _environment("PGDATABASE"), parameters.get("user")
    database = named or user or _environment("PGUSER")
    return ",".join(shown) + (f"/{database}" if database else "")


def _environment(name: str) -> str | None:
    """Read one of libpq's own variables, unless somebody put a whole address into it."""
    value = os.environ.get(name)
    return None if not value or looks_secret(value) else value
