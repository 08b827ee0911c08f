"""What ``doctor`` says about plugins and packages: what is loaded, broken, set up wrongly, or of an unsupported version.

Nothing that plugins raise ends it.
"""

from collections.abc import Iterator
from typing import Any

from pgqrs_core.errors import PluginError
from pgqrs_core.operations.findings import Finding
from pgqrs_core.pasting import command, shell_quoted
from pgqrs_core.plugins import Plugins
from pgqrs_core.requirements import installed_packages
from pgqrs_native.command.output import plural

__all__ = ["findings"]


def findings(plugins: Plugins) -> Iterator[Finding]:
    """Yield what there is to say about the plugins that are installed here, and the adapters and serializers among them."""
    names = ", ".join(one.name for one in plugins.loaded) or "none"
    yield Finding("plugins", "ok", f"{plural(len(plugins.loaded), 'plugin')} loaded: {names}")
    told = [str(problem) for problem in plugins.problems]
    for problem in told:
        remedy = "Engines do not start like this: correct the setting, or take it out."
        yield Finding("plugins", "fail", problem, remedy, (command("config", "show"),))
    for broken in plugins.broken:
        if any(broken.error.endswith(" ".join(problem.split())) for problem in told):
            continue
        origin = f" of {broken.distribution} {broken.version}" if broken.distribution else ""
        blocked = ",".join([*(one.name for one in plugins.blocked), broken.name])
        block = f"export PGQRS_PLUGINS_BLOCKED={shell_quoted(blocked)}"
        summary = f"plugin {broken.name!r}{origin} is broken: {broken.error}"
        yield Finding("plugins", "warn", summary, "Repair or uninstall it, or block it.", (block,))
    for one in plugins.blocked:
        yield Finding("plugins", "info", f"plugin {one.name!r} is blocked by the configuration")
    yield from _serializers(plugins)
    for adapter in plugins.adapters:
        yield _adapter(adapter)
    yield from _versions()


def _versions() -> Iterator[Finding]:
    """Yield what there is to say about the versions of the packages that adapters and drivers work with."""
    found = list(installed_packages())
    for one in found:
        if one.problem is not None:
            remedy = None if one.is_too_old else "If something fails, go back to what was tested."
            yield Finding("versions", "warn", one.problem, remedy, (one.remedy,))
    if all(one.problem is None for one in found):
        yield Finding("versions", "ok", f"supported: {', '.join(f'{one.package} {one.version}' for one in found)}")


def _serializers(plugins: Plugins) -> Iterator[Finding]:
    try:
        kinds = ", ".join(plugins.serializers.content_types) or "none"
    except PluginError as error:
        yield Finding("serializers", "fail", str(error))
    except Exception as error:
        yield Finding("serializers", "fail", f"they cannot be asked: {type(error).__name__}: {error}")
    else:
        yield Finding("serializers", "ok", f"content types that can be read: {kinds}")
    yield Finding("codecs", "ok", f"codecs that can be undone: {', '.join(plugins.hooks.codecs.names) or 'none'}")


def _adapter(adapter: Any) -> Finding:
    try:
        problem = adapter.check()
    except (Exception, SystemExit) as error:
        problem = f"its check failed: {type(error).__name__}: {error}"
    summary = f"adapter {adapter.name} {adapter.version}"
    if problem:
        return Finding("adapters", "info", f"{summary} cannot be used: {problem}")
    return Finding("adapters", "ok", f"{summary}: {adapter.summary}")
