"""Plugins are loaded one by one, a broken one is named and skipped, and each hook keeps its contract."""

from __future__ import annotations

import importlib
import logging
import re
import sys
import textwrap
import threading
from importlib.metadata import entry_points
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from pgqrs_core import interrupts
from pgqrs_core.config import Config
from pgqrs_core.engine import Engine
from pgqrs_core.errors import ConfigurationError, InvalidArgument, PgqrsError, PluginError, QueueNotFound
from pgqrs_core.events import (
    Claimed,
    ConsumeBatch,
    Consumed,
    Draft,
    EnqueueBatch,
    Enqueued,
    Handled,
    Handling,
    Outcome,
)
from pgqrs_core.hookspecs import AdapterInfo, MigrationSource, hookimpl
from pgqrs_core.operations.traffic import prepared
from pgqrs_core.plugin_contract import HOOKS
from pgqrs_core.plugin_settings import PluginSettings, Setting
from pgqrs_core.plugins import BlockedPlugin, BrokenPlugin, LoadedPlugin, Plugins, default_plugins
from pgqrs_core.serializers import JsonSerializer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


class Installer:
    """Puts throw-away distributions on the search path."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.modules: list[str] = []

    def __call__(self, name: str, body: str, *, distribution: str | None = None, version: str = "1.2") -> None:
        """Install a distribution whose plugin ``name`` is a module of this body."""
        distribution = distribution or f"dist-{name}"
        module = re.sub(r"\W", "_", distribution)
        (self.folder / f"{module}.py").write_text(
            "from pgqrs_core.hookspecs import AdapterInfo, MigrationSource, hookimpl\n" + textwrap.dedent(body)
        )
        info = self.folder / f"{module}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[pgqrs]\n{name} = {module}\n")
        self.modules.append(module)
        importlib.invalidate_caches()


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Installer]:
    """Distributions made by a test, and none of those that are really installed."""
    installer = Installer(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(
        "pgqrs_core.plugins.entry_points",
        lambda group: [one for one in entry_points(group=group) if one.value in installer.modules],
    )
    yield installer
    for module in installer.modules:
        sys.modules.pop(module, None)


GOOD = """
@hookimpl
def pgqrs_after_enqueue(event): ...
"""


def plugin(**hooks: Callable[..., Any]) -> SimpleNamespace:
    """An object with these hooks, marked."""
    return SimpleNamespace(**{f"pgqrs_{name}": hookimpl(function) for name, function in hooks.items()})


class Collector(list[Any]):
    """What a hook was called with: ``collector.append`` itself, being built in, cannot be marked."""

    def hook(self, name: str) -> SimpleNamespace:
        takes_batch = plugin(**{name: lambda batch: self.append(batch)})
        takes_event = plugin(**{name: lambda event: self.append(event)})
        return takes_batch if name.startswith("before") else takes_event


def with_plugins(**named: object) -> Plugins:
    plugins = Plugins.core()
    for name, one in named.items():
        plugins.register(one, name)
    return plugins


def drafts(*bodies: bytes) -> EnqueueBatch:
    return EnqueueBatch("jobs", "native", [Draft("jobs", body, "text/plain") for body in bodies])


def claimed(*ids: int) -> ConsumeBatch:
    deliveries: list[Any] = [
        SimpleNamespace(id=id, body=b"x", content_type="text/plain", raw_headers=None) for id in ids
    ]
    return ConsumeBatch("jobs", "native", deliveries)


WRITTEN = Enqueued("jobs", "native", [1, 2], 2, 20, 0.001)
TAKEN = Claimed("jobs", "native", [], 1_700_000_000.0, 0.001, managed=True)
HANDLING = Handling("jobs", "native", [Handled(1, 1, '{"tenant":"a"}')])
SETTLED = Consumed.of("jobs", "native", [Outcome(1, "acked", 1, 0.5, 0.1)])


# Loading


def test_a_good_plugin_is_loaded_with_its_distribution_and_its_hooks(install: Installer) -> None:
    install("good", GOOD)

    plugins = Plugins.load()

    assert LoadedPlugin("good", "dist-good", "1.2", ("pgqrs_after_enqueue",)) in plugins.loaded
    assert (plugins.broken, plugins.blocked) == ((), ())
    assert plugins.hooks.observes_enqueue


BROKEN = {
    "import": ("import no_such_module_anywhere", "ModuleNotFoundError.*no_such_module_anywhere"),
    "syntax": ("def broken(:", "SyntaxError"),
    "exit": ("raise SystemExit('needs more')", "SystemExit: needs more"),
    "typo": (
        "@hookimpl\ndef pgqrs_after_enqueu(event): ...",
        "no hook pgqrs_after_enqueu; did you mean pgqrs_after_enqueue",
    ),
    "unknown": ("@hookimpl\ndef zzz(): ...", "no hook zzz; known are: pgqrs_adapters"),
    "argument": ("@hookimpl\ndef pgqrs_after_enqueue(evnt): ...", "pgqrs_after_enqueue.*evnt"),
    "late": (
        "@hookimpl\ndef pgqrs_after_consume(event): ...\n@hookimpl\ndef pgqrs_before_consume(what): ...",
        "what",
    ),
    "unmarked": ("def pgqrs_after_enqueue(event): ...", "pgqrs_after_enqueue is not marked"),
    "async": ("@hookimpl\nasync def pgqrs_after_enqueue(event): ...", "must be a plain function"),
    "generator": ("@hookimpl\ndef pgqrs_after_enqueue(event): yield", "must be a plain function"),
    "wrapper": ("@hookimpl(wrapper=True)\ndef pgqrs_after_enqueue(event): return (yield)", "is a wrapper"),
    "serializers": ("@hookimpl\ndef pgqrs_serializers(): return 5", "pgqrs_serializers returned int"),
    "serializer": ("@hookimpl\ndef pgqrs_serializers(): return [object()]", "not a Serializer"),
    "adapters": ("@hookimpl\ndef pgqrs_adapters(): return 'x'", "pgqrs_adapters returned 'x'"),
    "migrations": ("@hookimpl\ndef pgqrs_migrations(): return None, 1", "pgqrs_migrations returned"),
    "codecs": ("@hookimpl\ndef pgqrs_codecs(): return None", "pgqrs_codecs returned NoneType"),
    "codec": ("@hookimpl\ndef pgqrs_codecs(): return [object()]", "not a Codec with a name"),
    "newer": ("pgqrs_api = 99\n" + GOOD, "made for version 99 of the plugin interface.*has 1: upgrade pgqrs-py"),
    "older": ("pgqrs_api = 0\n" + GOOD, "made for version 0 .*: upgrade the plugin"),
    "no version": ("pgqrs_api = '1'\n" + GOOD, "pgqrs_api must be a whole number"),
    "configure": ("@hookimpl\ndef pgqrs_configure(settings): 1 / 0", "ZeroDivisionError"),
    "configured": (
        (
            "@hookimpl\ndef pgqrs_configure(settings):\n    class Bad:\n        @hookimpl\n        def pgqrs_x(self): ..."
            "\n    return Bad()"
        ),
        "there is no hook pgqrs_x",
    ),
    "raises": (
        "@hookimpl\ndef pgqrs_adapters(): return 1 / 0\n@hookimpl\ndef pgqrs_after_consume(event): ...",
        "ZeroDivisionError",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_plugin_is_named_logged_in_one_line_and_skipped(
    kind: str, install: Installer, caplog: pytest.LogCaptureFixture
) -> None:
    body, expected = BROKEN[kind]
    install("aaa", GOOD)
    install("bad", body)
    install("zzz", GOOD)

    plugins = Plugins.load()

    [broken] = plugins.broken
    assert (broken.name, broken.distribution, broken.version) == ("bad", "dist-bad", "1.2")
    assert re.search(expected, broken.error)
    assert [one.name for one in plugins.loaded] == ["json", "aaa", "zzz"]
    assert not plugins.hooks.observes_consume
    [record] = caplog.records
    assert record.name == "pgqrs.plugins"
    assert "'bad' of dist-bad 1.2 is skipped" in record.getMessage()
    assert "\n" not in record.getMessage()
    assert plugins.serializers.encode({}) == ("application/json", b"{}")


def test_a_plugin_that_names_a_class_is_told_to_name_an_instance() -> None:
    class Hooks:
        @hookimpl
        def pgqrs_after_enqueue(self, event: Enqueued) -> None: ...

    with pytest.raises(PluginError, match="class Hooks; name a module, or an instance"):
        with_plugins(one=Hooks)
    assert with_plugins(one=Hooks()).hooks.observes_enqueue


def test_a_blocked_plugin_is_not_even_imported(install: Installer) -> None:
    install("bad", "raise ZeroDivisionError")

    plugins = Plugins.load(blocked=["bad", "absent"])

    assert set(plugins.blocked) == {
        BlockedPlugin("bad", "dist-bad", "1.2"),
        BlockedPlugin("absent", None, None),
    }
    assert plugins.broken == ()
    assert "dist_bad" not in sys.modules


def test_of_two_plugins_with_one_name_the_second_is_reported(install: Installer) -> None:
    install("same", GOOD, distribution="first")
    install("same", GOOD, distribution="second")

    plugins = Plugins.load()

    assert [one.distribution for one in plugins.loaded if one.name == "same"] == ["first"]
    reason = "the name is taken by a plugin of first 1.2"
    assert plugins.broken == (BrokenPlugin("same", "second", "1.2", reason),)


def test_plugins_are_loaded_in_the_order_of_their_names_wherever_they_lie(install: Installer) -> None:
    for name in ("mmm", "aaa", "zzz"):
        install(name, GOOD)

    assert [one.name for one in Plugins.load().loaded] == ["json", "aaa", "mmm", "zzz"]


def test_the_core_serializers_are_there_without_metadata_and_gone_when_blocked(install: Installer) -> None:
    assert [one.name for one in Plugins.load().loaded] == ["json"]
    assert Plugins.load(blocked=["json"]).serializers.content_types == ()
    assert Plugins.core().serializers.content_types == ("application/json", "application/octet-stream")


def test_the_core_entry_point_is_recognised_as_what_is_loaded_already(install: Installer) -> None:
    install.modules.append("pgqrs_core.serializers")
    info = install.folder / "core_dist-3.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: core-dist\nVersion: 3\n")
    (info / "entry_points.txt").write_text("[pgqrs]\njson = pgqrs_core.serializers\n")

    try:
        plugins = Plugins.load()
    finally:
        install.modules.remove("pgqrs_core.serializers")

    assert [one.name for one in plugins.loaded] == ["json"]
    assert plugins.loaded[0].distribution is not None


def test_damaged_metadata_does_not_stop_the_loading(install: Installer) -> None:
    install("good", GOOD)
    (install.folder / "dist_good-1.2.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: dist-good\n")

    assert LoadedPlugin("good", "dist-good", "?", ("pgqrs_after_enqueue",)) in Plugins.load().loaded


def test_the_default_is_loaded_once_for_each_set_of_blocked_names(install: Installer) -> None:
    default_plugins.cache_clear()
    try:
        assert default_plugins() is default_plugins()
        assert default_plugins(frozenset({"json"})) is not default_plugins()
    finally:
        default_plugins.cache_clear()


def test_registering_in_code_fails_loudly_and_leaves_nothing_behind() -> None:
    plugins = with_plugins(one=plugin(after_enqueue=lambda event: None))
    mismatched = plugin(after_consume=lambda event: None, before_consume=lambda wrong: None)

    with pytest.raises(PluginError, match=r"'one'.*the name is taken by a plugin registered in code"):
        plugins.register(plugin(), "one")
    with pytest.raises(PluginError, match=r"'two'.*wrong"):
        plugins.register(mismatched, "two")

    assert [one.name for one in plugins.loaded] == ["json", "one"]
    assert not plugins.hooks.observes_consume
    plugins.register(plugin(after_consume=lambda event: None), "two")
    assert plugins.hooks.observes_consume


def test_a_blocked_name_is_left_out_when_registered_in_code() -> None:
    plugins = Plugins(blocked=["quiet"])

    plugins.register(plugin(after_enqueue=lambda event: None), "quiet")

    assert plugins.loaded == ()
    assert not plugins.hooks.observes_enqueue


# Hooks that are asked while a plugin is loaded


def test_hook_serializers() -> None:
    """Added serializers are used; two for one content type are an error once they are needed, not before."""

    class Other(JsonSerializer):
        content_type = "application/other"

    plugins = with_plugins(other=plugin(serializers=lambda: [Other()]))

    assert plugins.serializers.encode(1) == ("application/other", b"1")
    plugins.register(plugin(serializers=lambda: [Other()]), "again")
    with pytest.raises(PluginError, match=r"'again'.*application/other.*'other'"):
        _ = plugins.serializers


def test_hook_adapters() -> None:
    """Adapters are listed in order; two of one name cannot both be loaded."""
    info = AdapterInfo("celery", "5", "Celery", lambda: "celery is not installed")
    plugins = with_plugins(one=plugin(adapters=lambda: info))

    with pytest.raises(PluginError, match="'celery' is loaded already"):
        plugins.register(plugin(adapters=lambda: info), "two")

    assert plugins.adapters == (info,)
    assert plugins.adapters[0].check() == "celery is not installed"


@pytest.mark.parametrize("component", ["q", "a", "v"])
def test_tables_of_plugins_are_not_called_as_those_of_queues(component: str) -> None:
    with pytest.raises(PluginError, match="called as those of queues"):
        with_plugins(one=plugin(migrations=lambda: MigrationSource(component, "audit.sql")))


def test_hook_migrations() -> None:
    """Sources of scripts are listed in order; two of one component cannot both be loaded."""
    source = MigrationSource("audit", "audit.sql")
    plugins = with_plugins(one=plugin(migrations=lambda: source))

    with pytest.raises(PluginError, match="'audit' is taken"):
        plugins.register(plugin(migrations=lambda: source), "two")

    assert plugins.migrations == (source,)


class Rot:
    """A codec that turns bodies round."""

    stage = "transform"
    active = True

    def __init__(self, name: str) -> None:
        self.name = name

    def wants(self, queue: str, size: int) -> bool:
        return True

    def required(self, queue: str) -> bool:
        return False

    def encode(self, body: bytes, around: object) -> tuple[bytes, dict[str, Any]]:
        return body[::-1], {}

    def decode(self, body: bytes, around: object, facts: dict[str, Any]) -> bytes:
        return body[::-1]


def test_hook_codecs() -> None:
    """Bodies are encoded after all hooks and decoded before all; two of one name cannot both be loaded."""
    seen = Collector()
    plugins = with_plugins(a=plugin(codecs=lambda: [Rot("rot")]), b=seen.hook("before_enqueue"))
    batch = drafts(b"abc")

    assert plugins.hooks.concern_enqueue("jobs", batch.drafts)
    plugins.hooks.before_enqueue(batch)

    assert seen == [batch]
    assert batch.drafts[0].body == b"cba"
    assert batch.drafts[0].headers == {"pgqrs_encoding": [{"codec": "rot"}]}
    with pytest.raises(PluginError, match="a codec named 'rot' is loaded already"):
        plugins.register(plugin(codecs=lambda: [Rot("rot")]), "again")
    assert plugins.hooks.codecs.names == ("rot",)


def test_hook_configure() -> None:
    """What it returns takes the plugin's place, with the settings of this engine; None leaves the plugin there."""

    def configure(settings: PluginSettings) -> object:
        given = settings.read({"size": Setting("int", "how large", 5, low=1, high=9)})
        return plugin(before_enqueue=lambda batch: setattr(batch.drafts[0], "priority", given["size"]))

    module = plugin(configure=configure, after_enqueue=lambda event: None)
    priorities = []
    for settings in ({}, {"size": 7}):
        plugins = Plugins.core()
        plugins.register(module, "one", **settings)
        batch = drafts(b"x")
        plugins.hooks.before_enqueue(batch)
        priorities.append(batch.drafts[0].priority)
        assert not plugins.hooks.observes_enqueue

    assert priorities == [5, 7]
    same = with_plugins(one=plugin(configure=lambda settings: None, after_enqueue=lambda event: None))
    assert same.hooks.observes_enqueue
    with pytest.raises(ConfigurationError, match=r"plugins.one.size must be a whole number from 1 to 9, not 10"):
        Plugins.core().register(module, "one", size=10)
    with pytest.raises(ConfigurationError, match=r"unknown key 'plugins.two.size'"):
        Plugins.core().register(plugin(after_enqueue=lambda event: None), "two", size=1)


CONFIGURED = {
    "its own error": (
        (
            "from pgqrs_core.plugin_settings import Setting\n@hookimpl\ndef pgqrs_configure(settings):\n"
            "    settings.read({'size': Setting('int', '', 1, low=1, high=9)})"
        ),
        r"PGQRS_PLUGINS_BAD_SIZE: plugins.bad.size must be a whole number from 1 to 9, not 'ten'",
    ),
    "a broken plugin": (
        "import no_such_module",
        "plugins.bad is configured, but the plugin is broken: .*no_such_module",
    ),
    "no settings": (GOOD, "unknown key 'plugins.bad.size'"),
}


@pytest.mark.parametrize("kind", CONFIGURED)
def test_what_is_configured_and_cannot_take_effect_keeps_engines_from_starting(
    kind: str, install: Installer, caplog: pytest.LogCaptureFixture
) -> None:
    body, expected = CONFIGURED[kind]
    install("bad", body)
    config = Config.load(url="postgresql:///nowhere", env={"PGQRS_PLUGINS_BAD_SIZE": "ten"})

    plugins = Plugins.load(settings=config.plugins.settings)

    assert [one.name for one in plugins.broken] == ["bad"]
    assert len(caplog.records) == 1
    with pytest.raises(ConfigurationError, match=expected):
        Engine(config, plugins=plugins)


def test_settings_of_plugins_whose_names_begin_alike_are_told_apart(install: Installer) -> None:
    body = (
        "from pgqrs_core.plugin_settings import Setting\nseen = []\n@hookimpl\ndef pgqrs_configure(settings):\n"
        "    seen.append(settings.read({{'{0}': Setting('text', '')}}))\n"
    )
    install("hello", body.format("size"))
    install("hello-world", body.format("size"))
    env = {"PGQRS_PLUGINS_HELLO_SIZE": "1", "PGQRS_PLUGINS_HELLO_WORLD_SIZE": "2"}

    plugins = Plugins.load(settings=Config.load(url="postgresql:///nowhere", env=env).plugins.settings)

    plugins.check()
    assert [sys.modules[name].seen for name in ("dist_hello", "dist_hello_world")] == [[{"size": "1"}], [{"size": "2"}]]


def test_hook_cli(caplog: pytest.LogCaptureFixture) -> None:
    """Each plugin gets the app; one that fails is reported and the others' commands are there."""
    app: list[str] = []

    def fail(app: list[str]) -> None:
        raise ZeroDivisionError("no")

    plugins = with_plugins(
        one=plugin(cli=lambda app: app.append("one")),
        two=plugin(cli=fail),
        three=plugin(cli=lambda app: app.append("three")),
    )

    plugins.extend_command(lambda add: add(app))

    assert app == ["three", "one"]
    assert plugins.broken == (BrokenPlugin("two", None, None, "pgqrs_cli failed: ZeroDivisionError: no"),)
    assert len(caplog.records) == 1


# Transforming hooks


def test_hook_before_enqueue() -> None:
    """Each plugin sees what the one before it left, the last loaded first."""

    def append(text: bytes) -> Callable[[EnqueueBatch], None]:
        def hook(batch: EnqueueBatch) -> None:
            for draft in batch.drafts:
                draft.body += text
                draft.priority, draft.delay, draft.headers = 9, 1.5, {"by": text.decode()}

        return hook

    plugins = with_plugins(a=plugin(before_enqueue=append(b"a")), b=plugin(before_enqueue=append(b"b")))
    batch = drafts(b"1", b"2")

    plugins.hooks.before_enqueue(batch)

    assert plugins.hooks.transforms_enqueue
    assert [draft.body for draft in batch.drafts] == [b"1ba", b"2ba"]
    assert batch.drafts[0] == Draft("jobs", b"1ba", "text/plain", {"by": "a"}, 9, 1.5)


def test_hook_before_consume() -> None:
    """Deliveries are changed, dropped or buried, and later plugins do not see those that are gone."""
    seen: list[int] = []

    def sort_out(batch: ConsumeBatch) -> None:
        for delivery in batch.deliveries:
            if delivery.id == 1:
                batch.drop(delivery, "old")
            elif delivery.id == 2:
                batch.bury(delivery, "odd")

    def look(batch: ConsumeBatch) -> None:
        seen.extend(delivery.id for delivery in batch.deliveries)

    plugins = with_plugins(a=plugin(before_consume=sort_out), b=plugin(before_consume=look))
    batch = claimed(1, 2, 3)

    plugins.hooks.before_consume(batch)

    assert plugins.hooks.transforms_consume
    assert seen == [delivery.id for delivery in batch.deliveries] == [3]
    assert [(delivery.id, reason) for delivery, reason in batch.dropped] == [(1, "old")]
    assert [(delivery.id, reason) for delivery, reason in batch.buried] == [(2, "odd")]
    assert claimed(1).dropped == []


def test_a_delivery_is_settled_by_one_plugin_once() -> None:
    batch = claimed(1, 1)
    first = batch.deliveries[0]

    batch.drop(first, "twin")

    assert len(batch.deliveries) == 1
    with pytest.raises(InvalidArgument):
        batch.bury(first, "again")


def test_what_was_wrapped_last_is_unwrapped_first() -> None:
    order: list[str] = []

    def named(name: str, *, first: bool = False, last: bool = False) -> SimpleNamespace:
        return SimpleNamespace(
            pgqrs_before_enqueue=hookimpl(tryfirst=first, trylast=last)(lambda batch: order.append(name)),
            pgqrs_before_consume=hookimpl(tryfirst=last, trylast=first)(lambda batch: order.append(name)),
        )

    plugins = with_plugins(
        a=named("a"),
        b=named("b", first=True),
        c=named("c", last=True),
        d=named("d"),
        e=named("e", first=True),
        f=named("f", last=True),
    )

    plugins.hooks.before_enqueue(drafts(b"1"))
    inward = order.copy()
    order.clear()
    plugins.hooks.before_consume(claimed(1))

    assert inward == ["e", "b", "d", "a", "c", "f"]
    assert order == inward[::-1]


@pytest.mark.parametrize("hook", ["before_enqueue", "before_consume"])
def test_an_error_of_a_transforming_hook_fails_the_operation_and_names_the_plugin(hook: str) -> None:
    def fail(batch: object) -> None:
        raise error

    plugins = with_plugins(good=Collector().hook(hook), bad=plugin(**{hook: fail}))
    batch = drafts(b"1") if hook == "before_enqueue" else claimed(1)
    call = getattr(plugins.hooks, hook)
    error: Exception = ZeroDivisionError("by zero")

    with pytest.raises(PluginError, match=rf"'bad'.*pgqrs_{hook}: ZeroDivisionError: by zero") as caught:
        call(batch)
    assert caught.value.plugin == "bad"
    assert caught.value.__cause__ is error

    error = QueueNotFound("elsewhere")
    with pytest.raises(QueueNotFound) as passed:
        call(batch)
    assert passed.value is error

    for interruption in (KeyboardInterrupt(), SystemExit()):
        error = interruption  # type: ignore[assignment]
        with pytest.raises(type(interruption)):
            call(batch)


@pytest.mark.parametrize(
    ("attribute", "value", "reason"),
    [
        ("queue", "other", "queue must be that of the batch"),
        ("body", "text", "body must be bytes"),
        ("body", bytearray(b"x"), "body must be bytes"),
        ("content_type", "", "content type must be"),
        ("content_type", None, "content type must be"),
        ("headers", [], "headers must be a dict"),
        ("priority", 10, "priority must be"),
        ("priority", -1, "priority must be"),
        ("priority", True, "priority must be"),
        ("delay", -1, "delay must be"),
        ("delay", float("nan"), "delay must be"),
        ("at", "tomorrow", "at must be"),
        ("ttl", 0, "ttl must be"),
    ],
)
def test_a_draft_that_cannot_be_written_is_the_fault_of_the_plugin_that_left_it(
    attribute: str, value: object, reason: str
) -> None:
    plugins = with_plugins(bad=plugin(before_enqueue=lambda batch: setattr(batch.drafts[-1], attribute, value)))

    with pytest.raises(PluginError, match=rf"'bad'.*{reason}"):
        plugins.hooks.before_enqueue(drafts(b"1", b"2"))


def test_a_draft_that_came_wrong_is_not_the_fault_of_any_plugin() -> None:
    called = Collector()
    batch = drafts(b"1")
    batch.drafts[0].priority = 12

    with pytest.raises(InvalidArgument, match="priority"):
        with_plugins(a=called.hook("before_enqueue")).hooks.before_enqueue(batch)

    assert called == []


def test_messages_cannot_be_lost_or_made_by_a_plugin() -> None:
    plugins = with_plugins(
        bad=plugin(
            before_enqueue=lambda batch: batch.drafts.pop(),
            before_consume=lambda batch: batch.deliveries.pop(),
        )
    )
    worse = with_plugins(bad=plugin(before_consume=lambda batch: setattr(batch.deliveries[0], "body", None)))

    with pytest.raises(PluginError, match=r"'bad'.*added or removed"):
        plugins.hooks.before_enqueue(drafts(b"1"))
    with pytest.raises(PluginError, match=r"'bad'.*without drop\(\), bury\(\) or postpone\(\)"):
        plugins.hooks.before_consume(claimed(1))
    with pytest.raises(PluginError, match=r"'bad'.*body must be bytes"):
        worse.hooks.before_consume(claimed(1))


def test_the_distribution_of_a_plugin_that_fails_is_named(install: Installer) -> None:
    install("bad", "@hookimpl\ndef pgqrs_before_enqueue(batch): 1 / 0")

    with pytest.raises(PluginError, match="dist-bad") as caught:
        Plugins.load().hooks.before_enqueue(drafts(b"1"))

    assert caught.value.distribution == "dist-bad"


# Observing hooks


def test_hook_after_enqueue() -> None:
    """Every plugin gets the one frozen event, the last loaded first."""
    seen: list[tuple[str, object]] = []
    plugins = with_plugins(
        a=plugin(after_enqueue=lambda event: seen.append(("a", event))),
        b=plugin(after_enqueue=lambda event: seen.append(("b", event))),
        c=plugin(after_enqueue=lambda: seen.append(("c", None))),
    )

    plugins.hooks.after_enqueue(WRITTEN)

    assert plugins.hooks.observes_enqueue
    assert seen == [("c", None), ("b", WRITTEN), ("a", WRITTEN)]
    with pytest.raises(AttributeError):
        WRITTEN.count = 3  # type: ignore[misc]


def test_hook_after_claim() -> None:
    seen = Collector()
    plugins = with_plugins(a=seen.hook("after_claim"))

    plugins.hooks.after_claim(TAKEN)

    assert seen == [TAKEN]
    assert plugins.hooks.observes_claim


def around(name: str, seen: list[Any], hook: str = "handling", answer: object = None) -> Callable[[Any], Any]:
    """A hook that notes when it is entered and left, and with what."""

    class Manager:
        def __init__(self, subject: Any) -> None:
            seen.append((name, type(subject).__name__))

        def __enter__(self) -> None:
            seen.append((name, "in"))

        def __exit__(self, kind: Any, value: Any, trace: Any) -> object:
            seen.append((name, value))
            return answer

    if hook == "batch":
        return lambda batch: Manager(batch)
    return lambda handling: Manager(handling)


def test_hook_around_enqueue() -> None:
    seen: list[Any] = []
    plugins = with_plugins(
        inner=plugin(around_enqueue=around("inner", seen, "batch")), none=plugin(around_enqueue=lambda: None)
    )
    plugins.register(plugin(around_enqueue=around("outer", seen, "batch")), "outer")

    with plugins.hooks.around_enqueue(drafts(b"x")):
        seen.append("written")

    assert plugins.hooks.surrounds_enqueue
    assert seen == [
        ("outer", "EnqueueBatch"),
        ("outer", "in"),
        ("inner", "EnqueueBatch"),
        ("inner", "in"),
        "written",
        ("inner", None),
        ("outer", None),
    ]


def test_hook_around_handler() -> None:
    seen: list[Any] = []
    plugins = with_plugins(a=plugin(around_handler=around("a", seen, answer=True)))
    error = ValueError("no")

    with pytest.raises(ValueError, match="no"), plugins.hooks.around_handler(HANDLING):
        raise error

    assert plugins.hooks.surrounds_handler
    # It was told of the error, and its wish to swallow it was not granted.
    assert seen == [("a", "Handling"), ("a", "in"), ("a", error)]
    assert HANDLING.messages[0].headers == {"tenant": "a"}


class Limit(Exception):
    """As Celery's soft time limit: an error like others, which ends what runs."""


class Leaves:
    def __init__(self, seen: list[Any], where: str, error: BaseException) -> None:
        self.seen, self.where, self.error = seen, where, error

    def __enter__(self) -> None:
        if self.where == "enter":
            raise self.error

    def __exit__(self, *_: object) -> None:
        self.seen.append("left")
        if self.where == "exit":
            raise self.error


@pytest.mark.parametrize("error", [Limit(), KeyboardInterrupt(), SystemExit()], ids=repr)
@pytest.mark.parametrize("where", ["call", "enter", "exit"])
def test_what_ends_the_work_is_let_through_by_hooks_and_all_that_was_entered_is_left(
    where: str, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interrupts, "_noted", {Limit})
    seen: list[Any] = []

    def interrupted(handling: object) -> Any:
        if where == "call":
            raise error
        return Leaves(seen, where, error)

    plugins = with_plugins(
        first=plugin(around_handler=around("first", seen)),
        bad=plugin(around_handler=interrupted),
        last=plugin(around_handler=around("last", seen)),
    )

    with pytest.raises(type(error)), plugins.hooks.around_handler(HANDLING):
        seen.append("handled")

    # Those that were entered were left: each is seen when it is asked, when it is entered, and then.
    names = [what[0] for what in seen if isinstance(what, tuple)]
    assert names
    assert {names.count(name) for name in names} == {3}
    assert ("handled" in seen) == (where == "exit")


@pytest.mark.parametrize("hook", ["before_enqueue", "after_enqueue"])
def test_what_ends_the_work_is_no_failure_of_a_plugin(hook: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupts, "_noted", {Limit})

    def interrupted() -> None:
        raise Limit

    plugins = with_plugins(slow=plugin(**{hook: interrupted}))
    with pytest.raises(Limit):
        getattr(plugins.hooks, hook)(drafts(b"x"))


class BreaksOnEntry:
    def __enter__(self) -> None:
        raise RuntimeError

    def __exit__(self, *_: object) -> None:
        raise AssertionError("it was never entered")


class BreaksOnExit:
    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        raise RuntimeError


def fails(handling: object) -> None:
    raise RuntimeError


@pytest.mark.parametrize(
    "made",
    [fails, lambda handling: BreaksOnEntry(), lambda handling: BreaksOnExit(), lambda handling: "no context manager"],
)
def test_what_surrounds_work_cannot_break_it(made: Any, caplog: pytest.LogCaptureFixture) -> None:
    seen: list[Any] = []
    plugins = with_plugins(good=plugin(around_handler=around("good", seen)), bad=plugin(around_handler=made))

    for _ in range(2):
        with plugins.hooks.around_handler(HANDLING):
            seen.append("handled")

    assert seen == [("good", "Handling"), ("good", "in"), "handled", ("good", None)] * 2
    [record] = caplog.records
    assert "'bad': pgqrs_around_handler failed" in record.getMessage()


def test_hook_after_consume() -> None:
    """Every plugin gets the one frozen event."""
    seen = Collector()
    plugins = with_plugins(a=seen.hook("after_consume"))

    plugins.hooks.after_consume(SETTLED)

    assert plugins.hooks.observes_consume
    assert seen == [SETTLED]
    with pytest.raises(AttributeError):
        SETTLED.outcomes[0].kind = "dead"  # type: ignore[misc]


@pytest.mark.parametrize(("hook", "event"), [("after_enqueue", WRITTEN), ("after_consume", SETTLED)])
def test_an_error_of_an_observing_hook_is_contained_and_logged_once_per_kind(
    hook: str, event: object, caplog: pytest.LogCaptureFixture
) -> None:
    errors: list[BaseException] = [ZeroDivisionError(), ZeroDivisionError(), PgqrsError("x"), PgqrsError("y")]
    left = iter(errors)
    seen = Collector()

    def fail(event: object) -> None:
        raise next(left)

    plugins = with_plugins(good=seen.hook(hook), bad=plugin(**{hook: fail}))

    for _ in errors:
        getattr(plugins.hooks, hook)(event)

    assert len(seen) == len(errors)
    assert [record.levelno for record in caplog.records] == [logging.ERROR, logging.ERROR]
    assert all(f"'bad': pgqrs_{hook} failed" in record.getMessage() for record in caplog.records)
    assert all(record.exc_info for record in caplog.records)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_observing_hook_does_not_swallow_the_end_of_the_program(error: type[BaseException]) -> None:
    def fail(event: object) -> None:
        raise error

    with pytest.raises(error):
        with_plugins(a=plugin(after_enqueue=fail)).hooks.after_enqueue(WRITTEN)


def test_a_slow_observing_hook_is_warned_about_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgqrs_core.dispatch.SLOW_SECONDS", -1.0)
    plugins = with_plugins(slow=plugin(after_enqueue=lambda event: None))

    plugins.hooks.after_enqueue(WRITTEN)
    plugins.hooks.after_enqueue(WRITTEN)

    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert "'slow': pgqrs_after_enqueue took 0.0 s" in record.getMessage()


# Both


def test_without_implementations_the_engine_need_not_build_a_batch() -> None:
    hooks = Plugins.core().hooks

    flags = (
        hooks.transforms_enqueue,
        hooks.transforms_consume,
        hooks.observes_enqueue,
        hooks.observes_claim,
        hooks.observes_consume,
        hooks.surrounds_enqueue,
        hooks.surrounds_handler,
    )

    assert not any(flags)


def test_hooks_may_be_called_from_many_threads_while_a_plugin_is_registered() -> None:
    plugins = with_plugins(a=plugin(after_enqueue=lambda event: 1 / 0))
    wrong: list[BaseException] = []

    def call() -> None:
        try:
            for _ in range(200):
                plugins.hooks.after_enqueue(WRITTEN)
                plugins.serializers.encode({})
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(50):
        plugins.register(plugin(after_enqueue=lambda event: None), f"p{number}")
    for thread in threads:
        thread.join()

    assert wrong == []
    assert len(plugins.loaded) == 52


def test_every_hook_has_a_test_of_its_own() -> None:
    missing = [hook for hook in HOOKS if f"test_hook_{hook.removeprefix('pgqrs_')}" not in globals()]

    assert missing == []


def test_drafts_that_come_a_second_time_are_changed_as_if_it_were_the_first() -> None:
    plugins = Plugins.core()

    class Sealing:
        @hookimpl
        def pgqrs_before_enqueue(self, batch: EnqueueBatch) -> None:
            for draft in batch.drafts:
                draft.body += b"!"
                draft.headers = {
                    **(draft.headers or {}),
                    "sealed": draft.headers is not None and "sealed" in draft.headers,
                }

    plugins.register(Sealing(), "sealing")
    drafts = [Draft("jobs", b"x", "text/plain", {"a": 1})]

    for _ in range(2):
        [made] = prepared("jobs", drafts, plugins=plugins, adapter="native")
        assert (made.body, made.headers) == (b"x!", {"a": 1, "sealed": False})
    assert (drafts[0].body, drafts[0].headers) == (b"x", {"a": 1})
