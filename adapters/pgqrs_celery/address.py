"""Where the results are: from a ``result_backend`` URL and its options to a configuration of the core.

    pgqrs://user:password@host1:5432,host2:5432/database?sslmode=verify-full&schema=jobs

Everything in the query is libpq's, except ``schema``. What neither the URL nor the options say comes from the
environment and from ``pgqrs.yaml``, as for any client of pgqrs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from celery.exceptions import ImproperlyConfigured
from msgspec import Struct

from pgqrs_celery.compat import MAX_EXPANDED_BYTES
from pgqrs_core.config import Config
from pgqrs_core.config_address import split_schema
from pgqrs_core.errors import ConfigurationError
from pgqrs_core.leftovers import find_leftovers, tell_leftovers
from pgqrs_core.secret import hidden

__all__ = ["Options", "configuration", "read_options", "same_place", "tell_settings_of_redis"]

#: Options that are settings of the core, passed on as they are.
_SETTINGS: Final = (
    "schema",
    "max_connections",
    "connection_pool_size",
    "connection_idle_seconds",
    "connection_timeout_seconds",
    "query_timeout_seconds",
    "cleanup_interval_seconds",
    "enable_listen_notify",
)


#: PostgreSQL holds no larger value.
_MOST_BYTES: Final = 1_073_741_823


class Options(Struct, frozen=True, kw_only=True):
    """What ``result_backend_transport_options`` may say beyond the core's settings.

    Attributes:
        create_schema: Install pgqrs where the schema holds nothing of it yet.
        chord_claim_seconds: For how long a worker that completes a chord may take to publish its body before another one
            takes over; only where the broker is not in the same database. At least 1.
        max_result_bytes: The largest size, in bytes, to which a compressed result is expanded. What is larger is stored
            without ``result_compression``.
    """

    create_schema: bool = True
    chord_claim_seconds: float = 60.0
    max_result_bytes: int = MAX_EXPANDED_BYTES


def read_options(given: Mapping[str, Any]) -> tuple[Options, dict[str, Any]]:
    """Split ``result_backend_transport_options`` into ours and settings of the core. Those of Redis are named in the log.

    Raises:
        ImproperlyConfigured: an option is unknown or of the wrong type.
    """
    known = [*Options.__struct_fields__, *_SETTINGS]
    leftovers = find_leftovers(given, known)
    tell_leftovers("result_backend_transport_options", leftovers)
    given = {name: value for name, value in given.items() if name not in leftovers}
    ours = {name: given[name] for name in given if name in Options.__struct_fields__}
    settings = {name: given[name] for name in given if name in _SETTINGS}
    if unknown := [name for name in given if name not in known]:
        what = f"{unknown[0]!r} is not an option" if len(unknown) == 1 else f"{unknown} are not options"
        raise ImproperlyConfigured(
            f"result_backend_transport_options: {what} of pgqrs://; known are {', '.join(sorted(known))}"
        )
    options = Options(**ours)
    if not isinstance(options.create_schema, bool):
        raise ImproperlyConfigured("result_backend_transport_options: create_schema must be True or False")
    seconds = options.chord_claim_seconds
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 1 <= seconds <= 86_400:
        raise ImproperlyConfigured(
            "result_backend_transport_options: chord_claim_seconds must be a number from 1 to 86,400 (seconds)"
        )
    if type(options.max_result_bytes) is not int or not 1 <= options.max_result_bytes <= _MOST_BYTES:
        raise ImproperlyConfigured(
            f"result_backend_transport_options: max_result_bytes must be a whole number from 1 to {_MOST_BYTES:,}"
        )
    return options, settings


def tell_settings_of_redis(conf: Any) -> None:
    """Name in the log the settings of Celery's Redis backend that an application still makes."""
    # The last of the maps holds Celery's defaults.
    made = {str(name).lower() for settings in conf.maps[:-1] for name in settings}
    tell_leftovers("settings", sorted(name for name in made if name.removeprefix("celery_").startswith("redis_")))


def configuration(url: str, settings: Mapping[str, Any]) -> Config:
    """Return the configuration for a URL, changed by settings of the core.

    Raises:
        ImproperlyConfigured: the URL or a setting is wrong; the message never holds the password.
    """
    address, schema = split_schema(url)
    address = hidden(address)
    given = dict(settings)
    if schema is not None:
        if given.get("schema", schema) != schema:
            raise ImproperlyConfigured("result_backend: the URL and result_backend_transport_options name two schemas")
        given["schema"] = schema
    problem = None
    try:
        return Config.load(url=address, **given)
    except ConfigurationError as error:
        problem = str(error)
    # Outside of the handler: the original error's own context may quote the address.
    raise ImproperlyConfigured(f"result_backend: {problem}")


def same_place(one: Config, other: Config) -> bool:
    """Tell whether two configurations lead to the same tables, as far as their texts say."""
    return (one.target, one.database.schema) == (other.target, other.database.schema)
