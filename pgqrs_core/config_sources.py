"""What a setting is, and how to read settings from arguments and from the environment.

Each reader gives ``{(section, key): Given(value, source)}`` with values that are already checked, so that an
error can name the place where the value stands. The caller says which settings exist: see ``config.py``.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, NoReturn

from pgqrs_core.config_address import looks_secret
from pgqrs_core.errors import ConfigurationError

__all__ = [
    "PLUGIN_KEYS",
    "Given",
    "Level",
    "RawSetting",
    "Setting",
    "Settings",
    "env_names",
    "flat_name",
    "plugin_level",
    "quote",
    "read_arguments",
    "read_environment",
    "refuse_unknown",
]

#: Names that came before the rule, or that everybody uses. The long name wins over the short one.
_SHORT_NAMES = {
    ("database", "url"): "DATABASE_URL",
    ("database", "schema"): "PGQRS_SCHEMA",
    ("database", "max_connections"): "PGQRS_MAX_CONNECTIONS",
}

#: The section of a `Level` that holds what only plugins can check: `RawSetting`s by flat names.
PLUGIN_KEYS = "plugins.*"

_WORDS = dict.fromkeys(("true", "yes", "on", "1"), True) | dict.fromkeys(("false", "no", "off", "0"), False)


@dataclass(frozen=True)
class Setting:
    """One key: what it means and which values it takes.

    ``low`` and ``high`` limit a number, or the UTF-8 bytes of a text (``high=0``: no limit).
    """

    kind: Literal["text", "int", "float", "bool", "names"]
    summary: str
    default: Any = None
    unit: str = ""
    low: float = 0
    high: float = 0
    secret: bool = False

    @property
    def expected(self) -> str:
        """Say which values are right, to follow "must be"."""
        if self.kind == "text":
            limited = f"text of {self.low} to {self.high} bytes" if self.high else "text that is not empty"
            return limited if self.low else "text"
        if self.kind in ("int", "float"):
            return f"a {'whole ' * (self.kind == 'int')}number from {self.low:,} to {self.high:,}"
        return "true or false" if self.kind == "bool" else "a list of names"

    def check(self, label: str, value: object, source: str | None = None) -> Any:
        """Return the value in its one form, or raise an error that says what was expected."""
        if value is None and self.default is None:
            return None
        fits = False
        if self.kind == "text" and isinstance(value, str):
            fits = self._fits_text(value)
        elif self.kind == "bool":
            fits = isinstance(value, bool)
        elif self.kind == "names" and isinstance(value, (list, tuple)):
            # A list from YAML and a tuple from code become the same hashable value.
            value = tuple(value)
            fits = all(isinstance(name, str) and name for name in value)
        elif isinstance(value, (int, float) if self.kind == "float" else int) and not isinstance(value, bool):
            # NaN is in no range. A huge int must be refused before float() overflows on it.
            fits = self.low <= value <= self.high
            value = float(value) if fits and self.kind == "float" else value
        if not fits:
            quotes = isinstance(value, (int, float)) and self.kind == "text"
            raise ConfigurationError(
                f"{label} must be {self.expected}, not {self._show(value)}{'; put it in quotes' * quotes}",
                key=label,
                source=source,
            )
        return value

    def from_text(self, label: str, text: str, source: str) -> Any:
        """Read the value out of an environment variable."""
        value: object = text
        if self.kind == "bool":
            value = _WORDS.get(text.strip().lower(), text)
        elif self.kind == "names":
            value = [name for name in map(str.strip, text.split(",")) if name]
        elif self.kind == "int" and re.fullmatch(r"\s*[+-]?[0-9]{1,20}\s*", text):
            value = int(text)
        elif self.kind == "float" and re.fullmatch(r"\s*[+-]?[0-9]{0,20}\.?[0-9]{1,20}\s*", text):
            value = float(text)
        return self.check(label, value, source)

    def _fits_text(self, value: str) -> bool:
        # Surrogates come from undecodable environment variables; no server could be sent one.
        if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
            return False
        size = len(value.encode())
        return self.low <= size and (not self.high or size <= self.high)

    def _show(self, value: object) -> str:
        """Show a wrong value, or only what it is when it may hold a secret."""
        if self.secret or (isinstance(value, str) and looks_secret(value)):
            return _describe_type(value)
        if isinstance(value, str):
            return quote(value)
        # int's repr() refuses to write thousands of digits.
        if isinstance(value, (bool, float)) or (isinstance(value, int) and abs(value) < 10**20):
            return repr(value).lower()
        return _describe_type(value)


Settings = Mapping[str, Mapping[str, Setting]]


class Given(NamedTuple):
    """A checked value and where it was found."""

    value: Any
    source: str


class RawSetting(NamedTuple):
    """A plugin's value as it was found. ``text`` is True for one of the environment, which has no types."""

    value: Any
    source: str
    text: bool


Level = dict[tuple[str, str], Given]


def env_names(section: str, key: str) -> tuple[str, ...]:
    """Name the environment variables of a key, the one that wins first."""
    short = _SHORT_NAMES.get((section, key))
    return (f"PGQRS_{section}_{key}".upper(), *([short] if short else []))


def read_arguments(arguments: Mapping[str, object], settings: Settings) -> Level:
    """Read keyword arguments: ``schema="jobs"``, ``database={"schema": "jobs"}``. None means "not given"."""
    level: Level = {}

    def take(section: str, key: str, value: object) -> None:
        if value is None:
            return
        label, source = f"{section}.{key}", "argument"
        if (section, key) in level:
            raise ConfigurationError(f"{label} is given twice", key=label, source=source)
        level[section, key] = Given(settings[section][key].check(label, value, source), source)

    sections = {key: section for section, keys in settings.items() for key in keys}
    for name, value in arguments.items():
        # "database" is a section and, inside it, a key: a mapping is meant for the section.
        if name in settings and isinstance(value, Mapping):
            for key, item in value.items():
                is_plugins = name == "plugins" and isinstance(key, str) and key not in settings[name]
                if is_plugins and isinstance(item, Mapping):
                    level.update(plugin_level(key, {inner: (deeper, "argument") for inner, deeper in item.items()}))
                    continue
                if key not in settings[name]:
                    refuse_unknown("argument", f"{name}.{key}", [f"{name}.{known}" for known in settings[name]])
                take(name, key, item)
        elif name in sections:
            take(sections[name], name, value)
        elif name not in settings:
            refuse_unknown("argument", name, [*sections, *settings])
        elif value is not None:
            raise ConfigurationError(
                f"{name} must be a mapping of keys, not {_describe_type(value)}", key=name, source="argument"
            )
    return level


def read_environment(env: Mapping[str, str], settings: Settings) -> Level:
    """Read the environment. An empty variable counts as unset: many tools can only set one."""
    level: Level = {}
    known: set[str] = set()
    for section, keys in settings.items():
        for key, setting in keys.items():
            names = env_names(section, key)
            known.update(names)
            name = next((name for name in names if env.get(name)), None)
            if name is not None:
                source = f"environment variable {name}"
                level[section, key] = Given(setting.from_text(f"{section}.{key}", env[name], source), source)
    prefixes = tuple(f"PGQRS_{section}_".upper() for section in settings)
    for name in sorted(env):
        flat = name.removeprefix("PGQRS_PLUGINS_").lower() if name.startswith("PGQRS_PLUGINS_") else ""
        if name in known or not name.startswith(prefixes):
            continue
        if "_" in flat:
            # Some plugin's, if it is installed: that shows when plugins are loaded.
            if env[name]:
                raw = RawSetting(env[name], f"environment variable {name}", True)
                level[PLUGIN_KEYS, flat] = Given(raw, raw.source)
        else:
            refuse_unknown("environment", name, known, what="variable")
    return level


def plugin_level(plugin: str, found: Mapping[str, tuple[object, str]]) -> Level:
    """Return the keys of one plugin with their values and sources, unchecked: only the plugin knows what is right."""
    level: Level = {}
    for key, (value, source) in found.items():
        if value is not None:
            raw = RawSetting(tuple(value) if isinstance(value, list) else value, source, False)
            level[PLUGIN_KEYS, flat_name(plugin, str(key))] = Given(raw, source)
    return level


def flat_name(plugin: str, key: str = "") -> str:
    """Return the name by which the environment knows a plugin's key, in lower case: ``zstd_min_bytes``."""
    return f"{re.sub(r'[^a-z0-9]', '_', plugin.lower())}_{key.lower()}"


def refuse_unknown(source: str, name: str, known: Iterable[str], *, what: str = "key", note: str = "") -> NoReturn:
    """Raise the error about a name that does not exist, with the nearest one that does."""
    names = sorted(known)
    # A beginning of a name says more than likeness does: "user" is the username, not the url.
    near = [longer for longer in names if len(name) > 3 and longer.startswith(name)]
    near = near or difflib.get_close_matches(name[:100], names, n=1, cutoff=0.5)
    hint = "" if note else f"; did you mean {near[0]}?" if near else f"; known are {', '.join(names)}"
    raise ConfigurationError(f"unknown {what} {quote(name)}{note}{hint}", key=quote(name)[1:-1], source=source)


def quote(text: str) -> str:
    """Quote a text for a message: cut short, and never one that may hold a password."""
    text = "…" if looks_secret(text) else text
    return repr(text if len(text) <= 60 else f"{text[:59]}…")


def _describe_type(value: object) -> str:
    if isinstance(value, str):
        text = "an address" if looks_secret(value) else "text that PostgreSQL cannot store"
        return text if value else "an empty text"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, (int, float)):
        return "this number"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, (list, tuple)):
        return "this list"
    return "nothing" if value is None else f"a {type(value).__name__}"
