"""The settings of plugins: sections below ``plugins`` whose keys only the plugin knows.

The core reads them before any plugin is loaded, so it keeps each with the place it stands in; the plugin says what it
expects and gets checked values, or the error names that place. What is given is never shown: it may be a key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any

from pgqrs_core.config_sources import RawSetting, Setting, flat_name, refuse_unknown
from pgqrs_core.errors import ConfigurationError

__all__ = ["NO_SETTINGS", "AllSettings", "PluginSettings", "Setting", "matcher"]


class AllSettings:
    """What was given for all plugins, by flat names. Immutable, hashable, and silent about its values."""

    __slots__ = ("_given",)

    def __init__(self, given: Mapping[str, RawSetting]) -> None:
        self._given = tuple(sorted(given.items()))

    def __hash__(self) -> int:
        return hash(repr(self._given))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AllSettings) and self._given == other._given

    def __repr__(self) -> str:
        return f"AllSettings({', '.join(name for name, _ in self._given)})"

    def describe(self) -> dict[str, str]:
        """Return the flat names, every value masked: only the plugins know which are secret."""
        return {name: "***" for name, _ in self._given}

    def by_plugin(self, plugins: Iterable[str]) -> tuple[dict[str, PluginSettings], dict[str, RawSetting]]:
        """Return the settings of each of these plugins, and those that are nobody's.

        Where the names of two plugins begin alike, the longer one owns what fits both.
        """
        names = sorted(set(plugins), key=len, reverse=True)
        owned: dict[str, dict[str, RawSetting]] = {name: {} for name in names}
        nobodys: dict[str, RawSetting] = {}
        for flat, raw in self._given:
            owner = next((name for name in names if flat.startswith(flat_name(name))), None)
            if owner is None:
                nobodys[flat] = raw
            else:
                owned[owner][flat.removeprefix(flat_name(owner))] = raw
        return {name: PluginSettings(name, given) for name, given in owned.items()}, nobodys


NO_SETTINGS = AllSettings({})


class PluginSettings:
    """What one plugin is given: ``settings.read({"min_bytes": Setting("int", "…", 1024, low=0, high=10**9)})``.

    True where anything was given at all.
    """

    __slots__ = ("_given", "plugin")

    def __init__(self, plugin: str, given: Mapping[str, RawSetting] | None = None) -> None:
        self.plugin = plugin
        self._given = dict(given or {})

    @classmethod
    def of(cls, plugin: str, **values: Any) -> PluginSettings:
        """Return settings as if they had been given in code, for tests and for ``Plugins.register()``."""
        return cls(plugin, {key: RawSetting(value, "argument", False) for key, value in values.items()})

    def __bool__(self) -> bool:
        return bool(self._given)

    def __repr__(self) -> str:
        return f"PluginSettings({self.plugin!r}: {', '.join(sorted(self._given)) or 'nothing'})"

    def read(self, declared: Mapping[str, Setting]) -> dict[str, Any]:
        """Return a checked value for each declared key: what was given, else its default.

        Raises:
            ConfigurationError: a key is unknown or its value wrong; names the place, the key and what was expected, and
                shows no value of a setting that is ``secret``.
        """
        for key, raw in self._given.items():
            if key not in declared:
                labels = [self.label(known) for known in declared]
                refuse_unknown(raw.source, self.label(key), labels)
        return {
            key: self._value(key, setting, self._given[key]) if key in self._given else setting.default
            for key, setting in declared.items()
        }

    def label(self, key: str) -> str:
        """Return the full name of a key: ``plugins.zstd.min_bytes``."""
        return f"plugins.{self.plugin}.{key}"

    def refused(self, key: str, reason: str) -> ConfigurationError:
        """Return the error about a value that has the right type and is wrong all the same; it must not show a secret."""
        raw = self._given.get(key)
        return ConfigurationError(
            f"{self.label(key)} {reason}", key=self.label(key), source=raw.source if raw else None
        )

    def _value(self, key: str, setting: Setting, raw: RawSetting) -> Any:
        if raw.text:
            return setting.from_text(self.label(key), raw.value, raw.source)
        return setting.check(self.label(key), raw.value, raw.source)


def matcher(patterns: Iterable[str]) -> Callable[[str], bool]:
    """Return a function that tells whether a queue's name matches one of some patterns: ``jobs``, ``mail.*``, ``*``."""
    wanted = tuple(patterns)

    @lru_cache(maxsize=4096)
    def matches(queue: str) -> bool:
        return any(fnmatchcase(queue, pattern) for pattern in wanted)

    return matches
