"""Load plugins one by one: a broken one is named, reported and skipped, never taking others with it."""

from __future__ import annotations

import threading
from functools import lru_cache, partial
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

import msgspec
import pluggy

from pgqrs_core import hookspecs, serializers
from pgqrs_core.codecs import Codec, CodecStack
from pgqrs_core.dispatch import Hooks
from pgqrs_core.errors import ConfigurationError, PluginError
from pgqrs_core.logs import get_logger
from pgqrs_core.plugin_contract import ContractError, Offers, check_api, check_marks, offers_of
from pgqrs_core.plugin_settings import NO_SETTINGS, AllSettings, PluginSettings
from pgqrs_core.serializers import Serializer, SerializerRegistry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pgqrs_core.hookspecs import AdapterInfo, MigrationSource

__all__ = ["GROUP", "BlockedPlugin", "BrokenPlugin", "LoadedPlugin", "Plugins", "default_plugins"]

#: The entry-point group in which distributions name their plugins.
GROUP = "pgqrs"

_CORE = "json"
_logger = get_logger("pgqrs.plugins")


class LoadedPlugin(msgspec.Struct, frozen=True):
    """A plugin that works. ``distribution`` and ``version`` are None if it was registered in code."""

    name: str
    distribution: str | None
    version: str | None
    hooks: tuple[str, ...]


class BrokenPlugin(msgspec.Struct, frozen=True):
    """A plugin that was skipped, and why."""

    name: str
    distribution: str | None
    version: str | None
    error: str


class BlockedPlugin(msgspec.Struct, frozen=True):
    """A plugin that the configuration blocks. ``distribution`` is None if none of that name is installed."""

    name: str
    distribution: str | None
    version: str | None


class Plugins:
    """The plugins of one engine. Create it with `load` or `core`; after that any thread may use it.

    Attributes:
        hooks: The hooks of a batch, ready to be called; stays the same object for the life of this one.
        loaded: Those that work, in the order of loading.
        broken: Those that were skipped.
        blocked: Those that ``blocked`` named.
        problems: What keeps engines from starting with these plugins: settings that are wrong, or of plugins that are
            broken or not there.
        adapters: What the loaded adapters say about themselves.
        migrations: The scripts of the loaded plugins' own tables.
    """

    def __init__(self, blocked: Iterable[str] = (), content_types: Iterable[str] = ()) -> None:
        self.hooks = Hooks()
        self.problems: tuple[ConfigurationError, ...] = ()
        self.loaded: tuple[LoadedPlugin, ...] = ()
        self.broken: tuple[BrokenPlugin, ...] = ()
        self.blocked = tuple(BlockedPlugin(name, None, None) for name in sorted(set(blocked)))
        self.adapters: tuple[AdapterInfo, ...] = ()
        self.migrations: tuple[MigrationSource, ...] = ()
        self._serializers: tuple[tuple[str, Serializer], ...] = ()
        self._codecs: tuple[tuple[str, Codec], ...] = ()
        self._content_types = tuple(content_types)
        self._settings: dict[str, PluginSettings] = {}
        self._registry: SerializerRegistry | None = None
        self._lock = threading.RLock()
        self._manager = pluggy.PluginManager("pgqrs")
        self._manager.add_hookspecs(hookspecs)

    @classmethod
    def load(
        cls, blocked: Iterable[str] = (), settings: AllSettings = NO_SETTINGS, content_types: Iterable[str] = ()
    ) -> Plugins:
        """Load what the installed distributions name in the entry-point group ``pgqrs``.

        Each broken plugin costs one line in the log ``pgqrs.plugins`` and an entry in ``broken``. The core's
        serializers are there unless blocked as ``json``, even where no metadata is installed.

        Args:
            blocked: Names of plugins not to import.
            settings: What the configuration says to plugins.
            content_types: How payloads are encoded by default, ``queue=content type`` each.
        """
        plugins = cls(blocked, content_types)
        entries = sorted(entry_points(group=GROUP), key=lambda entry: (entry.name, *_origin(entry)))
        plugins._settings, strays = settings.by_plugin([*(entry.name for entry in entries), *blocked])
        plugins.problems = tuple(
            ConfigurationError(f"{name!r} is no setting of a plugin that is installed", key=name, source=raw.source)
            for name, raw in strays.items()
        )
        if not plugins._is_blocked(_CORE):
            plugins.register(serializers, _CORE)
        # The order of the search path differs between machines; what undoes another must not depend on it.
        for entry in entries:
            plugins._load(entry)
        for one in plugins.broken:
            if plugins._settings[one.name] and not plugins.problems:
                reason = f"plugins.{one.name} is configured, but the plugin is broken: {one.error}"
                plugins.problems = (ConfigurationError(reason, key=f"plugins.{one.name}"),)
        return plugins

    @classmethod
    def core(cls) -> Plugins:
        """Return the core's own serializers alone, without looking at what is installed."""
        plugins = cls()
        plugins.register(serializers, _CORE)
        return plugins

    @property
    def serializers(self) -> SerializerRegistry:
        """All serializers.

        Raises:
            PluginError: Two plugins claim one content type. Which of them wins is for people to decide, by
                blocking the other: to guess would be to misread messages.
        """
        registry = self._registry
        if registry is None:
            registry = self._registry = SerializerRegistry(self._serializers, self._content_types)
        return registry

    def check(self) -> None:
        """Raise if the settings of a plugin are wrong, or cannot take effect: an engine must not start without them.

        Raises:
            ConfigurationError: Names the place, the key and what was expected.
        """
        if self.problems:
            raise self.problems[0]

    def register(self, plugin: object, name: str, **settings: Any) -> None:
        """Register a module or an object with hooks, in code rather than by an entry point.

        A name that is blocked is left out, as an entry point of that name would be.

        Args:
            plugin: The module or object.
            name: What it is called in reports, and in the configuration.
            **settings: What `pgqrs_configure` gets.

        Raises:
            ConfigurationError: A setting is wrong.
            PluginError: The plugin breaks a hook's contract, or the name is taken.
        """
        if self._is_blocked(name):
            return
        self._settings[name] = PluginSettings.of(name, **settings)
        try:
            self._admit(plugin, name, None, None)
        except ContractError as error:
            raise PluginError(name, str(error)) from error

    def extend_command(self, add: Callable[[Callable[[Any], object]], None]) -> None:
        """Let each plugin add its commands; one that fails is reported.

        Args:
            add: is called once for each plugin, with a function that takes a ``typer.Typer`` and adds commands to it. What
                it raises, the plugin is skipped for.
        """
        for one in reversed(self._manager.hook.pgqrs_cli.get_hookimpls()):
            try:
                add(partial(_call, one.function, len(one.argnames)))
            except (Exception, SystemExit) as error:
                origin = next(it for it in self.loaded if it.name == one.plugin_name)
                reason = f"pgqrs_cli failed: {type(error).__name__}: {error}"
                self._report(BrokenPlugin(origin.name, origin.distribution, origin.version, reason))

    def _load(self, entry: EntryPoint) -> None:
        distribution, version = _origin(entry)
        if self._is_blocked(entry.name):
            others = [one for one in self.blocked if one != BlockedPlugin(entry.name, None, None)]
            self.blocked = (*others, BlockedPlugin(entry.name, distribution, version))
            return
        try:
            plugin = entry.load()
        # A module may call sys.exit() where something it needs is missing; the program goes on without it.
        except (Exception, SystemExit) as error:
            reason = f"it cannot be imported: {type(error).__name__}: {error}"
            self._report(BrokenPlugin(entry.name, distribution, version, reason))
            return
        if plugin is serializers and entry.name == _CORE:
            # Registered already; now it is known where it comes from.
            self.loaded = (LoadedPlugin(_CORE, distribution, version, self.loaded[0].hooks), *self.loaded[1:])
            return
        try:
            self._admit(plugin, entry.name, distribution, version)
        except ConfigurationError as error:
            self.problems += (error,)
            self._report(BrokenPlugin(entry.name, distribution, version, f"its settings are wrong: {error}"))
        except ContractError as error:
            self._report(BrokenPlugin(entry.name, distribution, version, str(error)))

    def _admit(self, plugin: object, name: str, distribution: str | None, version: str | None) -> None:
        """Register a plugin, all of it or nothing."""
        with self._lock:
            if taken := next((one for one in self.loaded if one.name == name), None):
                raise ContractError(f"the name is taken by a plugin {_from(taken)}")
            try:
                plugin = self._configured(plugin, name)
                self._manager.register(plugin, name)
                self._keep(name, offers_of(self._manager, plugin))
            except (Exception, SystemExit) as error:
                # pluggy keeps what it had registered of a plugin when it finds the first mistake.
                if self._manager.has_plugin(name):
                    self._manager.unregister(name=name)
                if isinstance(error, (ConfigurationError, ContractError)):
                    raise
                # pluggy explains itself over several lines; a report is one.
                reason = " ".join(str(error).split())
                raise ContractError(f"it cannot be registered: {type(error).__name__}: {reason}") from error
            callers = self._manager.get_hookcallers(plugin) or []
            hooks = tuple(sorted(caller.name for caller in callers))
            self.loaded = (*self.loaded, LoadedPlugin(name, distribution, version, hooks))
            self.hooks.refresh(
                self._manager, {one.name: one.distribution for one in self.loaded}, CodecStack(self._codecs)
            )

    def _configured(self, plugin: object, name: str) -> object:
        """Check a plugin, and give it its settings; return what is to be registered in its place."""
        check_api(plugin)
        check_marks(self._manager, plugin)
        settings = self._settings.get(name) or PluginSettings(name)
        configure = getattr(plugin, "pgqrs_configure", None)
        if configure is None:
            # Whatever is given is unknown to a plugin that reads nothing.
            settings.read({})
            return plugin
        configured: object = configure(settings)
        if configured is None:
            return plugin
        check_marks(self._manager, configured)
        return configured

    def _keep(self, name: str, offers: Offers) -> None:
        for info in offers.adapters:
            if any(known.name == info.name for known in self.adapters):
                raise ContractError(f"pgqrs_adapters: an adapter named {info.name!r} is loaded already")
        for source in offers.migrations:
            if any(known.component == source.component for known in self.migrations):
                raise ContractError(f"pgqrs_migrations: the component {source.component!r} is taken")
        for codec in offers.codecs:
            if any(known.name == codec.name for _, known in self._codecs):
                raise ContractError(f"pgqrs_codecs: a codec named {codec.name!r} is loaded already")
        self._codecs = (*self._codecs, *((name, one) for one in offers.codecs))
        self._serializers = (*self._serializers, *((name, one) for one in offers.serializers))
        self.adapters = (*self.adapters, *offers.adapters)
        self.migrations = (*self.migrations, *offers.migrations)
        self._registry = None

    def _is_blocked(self, name: str) -> bool:
        return any(one.name == name for one in self.blocked)

    def _report(self, broken: BrokenPlugin) -> None:
        broken = msgspec.structs.replace(broken, error=" ".join(broken.error.split()))
        self.broken = (*self.broken, broken)
        _logger.error("plugin %r %s is skipped: %s", broken.name, _from(broken), broken.error)


def _call(function: Callable[..., object], arguments: int, app: Any) -> object:
    # An implementation may leave the argument out.
    return function(*[app] * arguments)


def _origin(entry: EntryPoint) -> tuple[str, str]:
    """Return the distribution and its version; a damaged installation may lack either."""
    metadata = entry.dist.metadata if entry.dist else None
    known = {key: metadata[key] for key in ("Name", "Version") if metadata is not None and key in metadata}
    return known.get("Name", "?"), known.get("Version", "?")


def _from(plugin: LoadedPlugin | BrokenPlugin) -> str:
    return f"of {plugin.distribution} {plugin.version}" if plugin.distribution else "registered in code"


@lru_cache(maxsize=8)
def default_plugins(
    blocked: frozenset[str] = frozenset(),
    settings: AllSettings = NO_SETTINGS,
    content_types: tuple[str, ...] = (),
) -> Plugins:
    """Return what is installed, loaded once for each set of blocked names and settings in this process."""
    return Plugins.load(blocked, settings, content_types)
