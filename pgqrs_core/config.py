"""The settings of one process, as frozen objects: from code, from the environment, from ``pgqrs.yaml``.

    >>> Config.load(schema="jobs").database.schema
    'jobs'

An explicit argument wins over the environment, that over the file, that over the default. Every mistake is
a ``ConfigurationError`` that names the place, the key and what was expected. Passwords are in
``conninfo()`` and in the fields that hold them, and in no repr, error or description.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar

from pgqrs_core import config_address
from pgqrs_core.config_file import read_file
from pgqrs_core.config_sources import PLUGIN_KEYS, Setting, env_names, read_arguments, read_environment
from pgqrs_core.config_strays import tell_strays
from pgqrs_core.errors import ConfigurationError
from pgqrs_core.plugin_settings import NO_SETTINGS, AllSettings
from pgqrs_core.secret import hidden, without_frames

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "SETTINGS",
    "Config",
    "DatabaseConfig",
    "PerformanceConfig",
    "PluginsConfig",
    "QueueConfig",
    "env_names",
]

_FILE = "pgqrs.yaml"
_MASK = "***"


def _setting(kind: Any, summary: str, default: Any = None, **limits: Any) -> Any:
    setting = Setting(kind, summary, default, **limits)
    return field(default=default, metadata={"setting": setting})


class _Section:
    """What the sections share: every field is checked on construction and masked when shown."""

    __slots__ = ()
    _section: ClassVar[str]

    def __post_init__(self) -> None:
        for name, setting in SETTINGS[self._section].items():
            value = setting.check(f"{self._section}.{name}", getattr(self, name))
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self.describe().items())
        return f"{type(self).__name__}({shown})"

    def describe(self) -> dict[str, Any]:
        """Give every key and value, secrets masked."""
        values = {name: getattr(self, name) for name in SETTINGS[self._section]}
        return {
            name: _MASK if value is not None and SETTINGS[self._section][name].secret else value
            for name, value in values.items()
        }


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class DatabaseConfig(_Section):
    """Where the tables are: ``url`` or single parts. What is left out, libpq fills in as ``psql`` does."""

    _section: ClassVar[str] = "database"

    url: str | None = _setting(
        "text", "the whole address: a PostgreSQL URL, key=value pairs, or embedded://", low=1, secret=True
    )
    host: str | None = _setting("text", "server name, address or socket directory; several by commas", low=1)
    port: int | None = _setting("int", "port of the server", low=1, high=65_535)
    username: str | None = _setting("text", "role to log in as", low=1)
    password: str | None = _setting("text", "its password; libpq's password file works too", secret=True)
    database: str | None = _setting("text", "name of the database", low=1)
    schema: str = _setting("text", "schema that holds the tables of pgqrs", "pgqrs", low=1, high=63)
    max_connections: int = _setting(
        "int",
        "most connections that one process opens, the listening one included",
        16,
        unit="connections",
        low=2,
        high=1000,
    )
    connection_timeout_seconds: float = _setting(
        "float", "how long to wait for a connection", 10.0, unit="seconds", low=1, high=3600
    )

    def __post_init__(self) -> None:
        """Check every field, and that they do not contradict each other."""
        _Section.__post_init__(self)
        object.__setattr__(self, "password", hidden(self.password))
        parts = self._parts()
        if self.url is None:
            config_address.check(self._parameters())
            return
        if parts:
            raise config_address.contradiction(next(iter(parts)))
        object.__setattr__(self, "url", hidden(config_address.normalise(self.url)))
        timeout = config_address.connect_timeout(config_address.parse(self.url))
        if timeout is not None:
            default = SETTINGS["database"]["connection_timeout_seconds"].default
            if self.connection_timeout_seconds not in (default, timeout):
                raise config_address.contradiction("connection_timeout_seconds")
            object.__setattr__(self, "connection_timeout_seconds", timeout)

    def _parts(self) -> dict[str, object]:
        values = {name: getattr(self, name) for name in config_address.LIBPQ_NAMES}
        return {name: value for name, value in values.items() if value is not None}

    def _parameters(self) -> dict[str, str]:
        if self.url is not None:
            return config_address.parse(self.url)
        return {config_address.LIBPQ_NAMES[name]: str(value) for name, value in self._parts().items()}


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class QueueConfig(_Section):
    """How queues behave where neither the queue nor the call says otherwise."""

    _section: ClassVar[str] = "queue"

    default_lock_time_seconds: float = _setting(
        "float", "lease of a message, where its queue sets none", 30.0, unit="seconds", low=0.1, high=43_200
    )
    max_batch_size: int = _setting(
        "int", "most messages in one enqueue or claim", 10_000, unit="messages", low=1, high=100_000
    )
    enable_listen_notify: bool = _setting(
        "bool", "wake consumers with LISTEN and NOTIFY; without it they only poll", True
    )
    cleanup_interval_seconds: float = _setting(
        "float", "time between two clean-ups of what has expired", 60.0, unit="seconds", low=1, high=86_400
    )


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class PerformanceConfig(_Section):
    """What trades memory and connections for speed."""

    _section: ClassVar[str] = "performance"

    prefetch_count: int = _setting(
        "int", "messages that a worker claims ahead; 0: none", 100, unit="messages", low=0, high=10_000
    )
    connection_pool_size: int = _setting(
        "int",
        "connections kept open when idle, within max_connections",
        4,
        unit="connections",
        low=0,
        high=1000,
    )
    connection_idle_seconds: float = _setting(
        "float", "after how long an idle connection is closed; 0: never", 10.0, unit="seconds", low=0, high=86_400
    )
    query_timeout_seconds: float = _setting(
        "float", "how long one statement may take; 0: no limit", 30.0, unit="seconds", low=0, high=86_400
    )


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class PluginsConfig(_Section):
    """Which plugins stay out, what payloads become, and the settings of each plugin, which the plugin checks."""

    _section: ClassVar[str] = "plugins"

    blocked: tuple[str, ...] = _setting("names", "plugins that are not loaded, by name", ())
    content_types: tuple[str, ...] = _setting(
        "names", "how payloads are encoded, by queue: `queue=content type`; `*` in a queue's name is any text", ()
    )
    settings: AllSettings = NO_SETTINGS

    def __post_init__(self) -> None:
        """Check every field, and that each entry of ``content_types`` is a pair."""
        _Section.__post_init__(self)
        for entry in self.content_types:
            queue, equals, content_type = entry.rpartition("=")
            if not (queue and equals and content_type):
                problem = "plugins.content_types must be a list of `queue=content type`"
                raise ConfigurationError(f"{problem}, not {entry!r}", key="plugins.content_types")

    def describe(self) -> dict[str, Any]:
        """Give every key and value; those of plugins masked."""
        return {**_Section.describe(self), **self.settings.describe()}


# What it is given stands in its parameters.
DatabaseConfig.__init__ = without_frames(DatabaseConfig.__init__)  # type: ignore[method-assign]

_SECTIONS: dict[str, type[_Section]] = {
    cls._section: cls for cls in (DatabaseConfig, QueueConfig, PerformanceConfig, PluginsConfig)
}

#: Every key of every section, with its meaning, limits and default.
SETTINGS: dict[str, dict[str, Setting]] = {
    section: {item.name: item.metadata["setting"] for item in fields(cls) if "setting" in item.metadata}  # type: ignore[arg-type]
    for section, cls in _SECTIONS.items()
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """All settings. Build it from sections, or with ``Config.load()``."""

    database: DatabaseConfig = field(default_factory=DatabaseConfig)
    queue: QueueConfig = field(default_factory=QueueConfig)
    performance: PerformanceConfig = field(default_factory=PerformanceConfig)
    plugins: PluginsConfig = field(default_factory=PluginsConfig)

    def __post_init__(self) -> None:
        """Refuse a mapping, or a section in the place of another."""
        for name, cls in _SECTIONS.items():
            if not isinstance(getattr(self, name), cls):
                raise ConfigurationError(f"{name} must be a {cls.__name__}", key=name)

    @classmethod
    @without_frames
    def load(
        cls,
        path: str | os.PathLike[str] | None = None,
        *,
        env: Mapping[str, str] = os.environ,
        **overrides: object,
    ) -> Config:
        """Combine arguments, environment, file and defaults, in this order.

        Args:
            path: The YAML file. Without it ``PGQRS_CONFIG`` names it; without that ``pgqrs.yaml`` in the
                working directory is read, if there is one.
            env: The environment.
            **overrides: Settings by key, ``schema="jobs"``, or by section, ``queue={"max_batch_size": 50}``.
                None means "not given".

        Raises:
            ConfigurationError: A setting is unknown, mistyped or contradictory, or the file cannot be read.
        """
        file = os.fspath(path) if path is not None else env.get("PGQRS_CONFIG")
        named = bool(file)
        if not file and os.path.lexists(_FILE):
            file = _FILE
        tell_strays(env, SETTINGS)
        levels = (
            read_arguments(overrides, SETTINGS),
            read_environment(env, SETTINGS),
            read_file(file, SETTINGS, named=named) if file else {},
        )
        values: dict[str, dict[str, Any]] = {section: {} for section in [*SETTINGS, PLUGIN_KEYS]}
        for level in reversed(levels):
            for (section, key), given in level.items():
                values[section][key] = given.value
        for key in ("url", *config_address.LIBPQ_NAMES):
            values["database"].pop(key, None)
        values["database"].update(config_address.settle(levels))
        return cls(
            database=DatabaseConfig(**values["database"]),
            queue=QueueConfig(**values["queue"]),
            performance=PerformanceConfig(**values["performance"]),
            plugins=PluginsConfig(**values["plugins"], settings=AllSettings(values[PLUGIN_KEYS])),
        )

    @classmethod
    @without_frames
    def from_value(cls, value: str | Config | None = None) -> Config:
        """Take what a client is given: a URL or conninfo string, a ``Config``, or None for ``load()``."""
        if isinstance(value, Config):
            return value
        if value is None or isinstance(value, str):
            return cls.load(url=value)
        raise ConfigurationError(f"expected a database URL or a Config, not a {type(value).__name__}")

    @property
    def embedded(self) -> bool:
        """Whether the address is an ``embedded://`` one, which a plugin must turn into a server first."""
        return (self.database.url or "").startswith(config_address.EMBEDDED)

    @property
    def target(self) -> str:
        """The server and database, ``host:port/database``, for messages. Never holds a user or a password."""
        if self.embedded:
            # What stands before '@' or after '?' is the plugin's own; show the place only.
            place = (self.database.url or "").removeprefix(config_address.EMBEDDED).partition("?")[0]
            return config_address.EMBEDDED + place.rpartition("@")[2]
        return config_address.target(self.database._parameters())

    def conninfo(self) -> str:
        """Give the string to connect with, password included: for psycopg, not for a log."""
        if self.embedded:
            raise ConfigurationError(
                f"{self.target} names a server that must be started first; is its plugin installed?",
                key="database.url",
            )
        return hidden(config_address.render(self.database._parameters(), self.database.connection_timeout_seconds))

    def describe(self) -> dict[str, Any]:
        """Give all settings by section, and the target, with secrets masked: for ``doctor`` and for logs."""
        sections: dict[str, Any] = {name: getattr(self, name).describe() for name in _SECTIONS}
        return {"target": self.target, **sections}
