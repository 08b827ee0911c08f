"""What makes a module a plugin: hooks that match their specification, offers of the promised type."""

from __future__ import annotations

import difflib
import inspect
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pgqrs_core import hookspecs
from pgqrs_core.codecs import STAGES, Codec
from pgqrs_core.hookspecs import API_VERSION, OLDEST_API_VERSION, AdapterInfo, MigrationSource
from pgqrs_core.serializers import Serializer

if TYPE_CHECKING:
    import pluggy

__all__ = ["HOOKS", "ContractError", "Offers", "check_api", "check_marks", "offers_of"]

#: The names of all hooks.
HOOKS = tuple(name for name in hookspecs.__all__ if name.startswith("pgqrs_"))


class ContractError(Exception):
    """A plugin breaks the contract of a hook; says which, in one sentence."""


class Offers(NamedTuple):
    """What one plugin adds by the hooks that are asked while it is loaded."""

    serializers: tuple[Serializer, ...]
    codecs: tuple[Codec, ...]
    adapters: tuple[AdapterInfo, ...]
    migrations: tuple[MigrationSource, ...]


def check_api(plugin: object) -> None:
    """Refuse a plugin that says that it was made for another version of the hooks; one that says nothing is tried.

    Raises:
        ContractError: Says which of the two to upgrade.
    """
    wanted = getattr(plugin, "pgqrs_api", API_VERSION)
    if not isinstance(wanted, int):
        raise ContractError(f"its pgqrs_api must be a whole number, not {wanted!r}")
    if wanted > API_VERSION:
        raise ContractError(
            f"it is made for version {wanted} of the plugin interface, this core has {API_VERSION}: upgrade pgqrs-py"
        )
    if wanted < OLDEST_API_VERSION:
        raise ContractError(
            f"it is made for version {wanted} of the plugin interface, this core needs {OLDEST_API_VERSION} or later: "
            "upgrade the plugin"
        )


def check_marks(manager: pluggy.PluginManager, plugin: object) -> None:
    """Refuse what pluggy would accept in silence, or explain worse.

    Raises:
        ContractError: It is a class, lacks a mark, names an unknown hook, or implements one by anything but a
            plain function.
    """
    if isinstance(plugin, type):
        raise ContractError(f"it names the class {plugin.__name__}; name a module, or an instance")
    for attribute in dir(plugin):
        options = manager.parse_hookimpl_opts(plugin, attribute)
        if options is None:
            if attribute in HOOKS and inspect.isroutine(getattr(plugin, attribute)):
                raise ContractError(f"{attribute} is not marked with pgqrs_core.hookspecs.hookimpl")
            continue
        hook = options.get("specname") or attribute
        if hook in HOOKS:
            _check_kind(hook, options, getattr(plugin, attribute))
        elif not options.get("optionalhook"):
            near = difflib.get_close_matches(hook, HOOKS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known are: {', '.join(HOOKS)}"
            raise ContractError(f"there is no hook {hook}; {hint}")


def _check_kind(hook: str, options: Any, function: object) -> None:
    if options.get("wrapper") or options.get("hookwrapper"):
        raise ContractError(f"{hook} is a wrapper; hooks of pgqrs are called one by one and cannot be wrapped")
    kinds = (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction)
    if any(is_kind(function) for is_kind in kinds):
        raise ContractError(f"{hook} must be a plain function: nobody would await or iterate it")


def offers_of(manager: pluggy.PluginManager, plugin: object) -> Offers:
    """Ask a registered plugin what it offers.

    Raises:
        ContractError: It offers something of another type than the hook promises.
    """

    def ask(hook: str) -> list[Any]:
        found = getattr(manager.hook, hook).get_hookimpls()
        return [one.function() for one in found if one.plugin is plugin]

    return Offers(
        tuple(one for offered in ask("pgqrs_serializers") for one in _serializers(offered)),
        tuple(one for offered in ask("pgqrs_codecs") for one in _codecs(offered)),
        tuple(map(_adapter, ask("pgqrs_adapters"))),
        tuple(map(_migration, ask("pgqrs_migrations"))),
    )


def _serializers(offered: object) -> list[Serializer]:
    if not isinstance(offered, (list, tuple)):
        raise ContractError(f"pgqrs_serializers returned {type(offered).__name__}, not a list of Serializer")
    for one in offered:
        if isinstance(one, type) or not isinstance(one, Serializer) or not _is_text(one.content_type):
            raise ContractError(f"pgqrs_serializers returned {one!r}, not a Serializer with a content_type")
    return list(offered)


def _codecs(offered: object) -> list[Codec]:
    if not isinstance(offered, (list, tuple)):
        raise ContractError(f"pgqrs_codecs returned {type(offered).__name__}, not a list of Codec")
    for one in offered:
        if isinstance(one, type) or not isinstance(one, Codec) or not _is_text(one.name) or one.stage not in STAGES:
            raise ContractError(f"pgqrs_codecs returned {one!r}, not a Codec with a name and one of the known stages")
    return list(offered)


#: What the tables and views of queues begin with, before an underscore.
_QUEUE_TABLES: Final = frozenset("qav")


def _adapter(offered: object) -> AdapterInfo:
    if not isinstance(offered, AdapterInfo) or not _is_text(offered.name) or not callable(offered.check):
        raise ContractError(f"pgqrs_adapters returned {offered!r}, not an AdapterInfo with a name and a check")
    return offered


def _migration(offered: object) -> MigrationSource:
    if isinstance(offered, MigrationSource) and _is_text(offered.component) and _is_text(offered.package):
        if offered.component in _QUEUE_TABLES:
            raise ContractError(
                f"pgqrs_migrations: tables of the component {offered.component!r} would be called as those of queues are"
            )
        return offered
    raise ContractError(f"pgqrs_migrations returned {offered!r}, not a MigrationSource of two texts")


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value)
