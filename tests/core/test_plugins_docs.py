"""docs/plugins.md tells the truth: every hook, every setting of what is shipped, and examples that run."""

from __future__ import annotations

import re
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from pgqrs_core import hookspecs
from pgqrs_core.codecs import STAGES, Codec, CodecStack
from pgqrs_core.events import Enqueued
from pgqrs_core.plugin_contract import HOOKS
from pgqrs_core.plugins import Plugins
from pgqrs_core.testing.codecs import CodecConformance, sent
from pgqrs_core.testing.serializers import SerializerConformance

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
HOOKS_PAGE = (ROOT / "docs" / "hooks.md").read_text(encoding="utf-8")
CONFIGURED = ("pickle", "zstd", "prometheus", "crypto")


def block(containing: str, page: str = PAGE) -> str:
    [found] = [one for one in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if containing in one]
    return str(found)


def anchor(heading: str) -> str:
    """What GitHub makes of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_is_named_with_a_link_to_its_reference(hook: str) -> None:
    [target] = re.findall(rf"\[`{hook}`\]\(hooks\.md#(\w+)\)", PAGE)

    assert target in {anchor(heading) for heading in re.findall(r"^#+ (.*)$", HOOKS_PAGE, re.MULTILINE)}


def test_links_within_the_page_lead_somewhere() -> None:
    headings = {anchor(heading) for heading in re.findall(r"^#+ (.*)$", PAGE, re.MULTILINE)}

    assert set(re.findall(r"\]\(#([\w-]+)\)", PAGE)) <= headings


@pytest.mark.parametrize("plugin", CONFIGURED)
def test_every_setting_of_a_shipped_plugin_is_a_row_as_the_code_has_it(plugin: str) -> None:
    declared = import_module(f"pgqrs_{plugin}.plugin")._SETTINGS

    rows = [line for line in PAGE.splitlines() if line.startswith(f"| `plugins.{plugin}.")]

    assert rows == [
        f"| `plugins.{plugin}.{key}` | {one.summary} | {one.expected} | {_default(one.default)} |"
        for key, one in declared.items()
    ]


def _default(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:,}"
    return ", ".join(value) or "none"


def test_every_shipped_plugin_is_in_the_table() -> None:
    ours = {one.name for one in entry_points(group="pgqrs") if one.dist and one.dist.name == "pgqrs-py"}

    named = set(re.findall(r"^\| `(\w+)` \| (?:–|`\w+`) \|", PAGE, re.MULTILINE))

    assert ours - {"native", "kombu", "celery", "dramatiq"} <= named


def test_the_version_and_the_stages_are_those_of_the_code() -> None:
    assert f"`hookspecs.API_VERSION`, now {hookspecs.API_VERSION}." in PAGE
    assert f"# {', '.join(STAGES)}: applied in this order" in PAGE


def test_the_example_of_settings_works() -> None:
    module = ModuleType("keeper")
    exec(block("class Keeper"), module.__dict__)
    plugins = Plugins.core()
    plugins.register(module, "keeper", size=5)

    plugins.hooks.after_enqueue(Enqueued("jobs", "native", [1, 2], 2, 20, 0.1))

    [call] = plugins.hooks._calls["pgqrs_after_enqueue"]
    assert call.function.__self__.size == 3  # type: ignore[attr-defined]


def test_the_example_of_a_codec_and_those_of_suites_work() -> None:
    names: dict[str, Any] = {"Any": Any, "Rows": type("Rows", (list,), {})}
    exec(block("class Zlib"), names)
    exec(block("class Csv", HOOKS_PAGE), names)
    exec(block("class TestCsv"), names)

    [codec] = names["pgqrs_codecs"]()

    assert isinstance(codec, Codec)
    assert len(sent(CodecStack([("zlib", codec)]), b"x" * 1000).body) < 100
    for suite in (names["TestZlib"](), names["TestCsv"]()):
        assert isinstance(suite, (CodecConformance, SerializerConformance))
        for test in [name for name in dir(suite) if name.startswith("test_") and "cannot_be" not in name]:
            getattr(suite, test)()


def test_the_example_of_pydantic_prints_what_it_should(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pydantic")
    registry = Plugins.load().serializers
    box: list[Any] = []

    def read(queue: str, type_: Any) -> Any:
        kind, body, name = box.pop()
        return SimpleNamespace(message_type=name, payload=registry.decode(kind, body, type_))

    def enqueue(queue: str, payload: Any) -> None:
        box.append((*registry.encode(payload), registry.type_name(type(payload))))

    client = SimpleNamespace(producer=SimpleNamespace(enqueue=enqueue), consumer=SimpleNamespace(read=read))
    exec(block("class Order"), {"client": client, "__name__": "example"})

    assert capsys.readouterr().out == "order.v2 number=7 notes=[]\n"


def test_the_version_that_the_example_plugin_declares_is_supported() -> None:
    names: dict[str, Any] = {}
    exec(block("pgqrs_api"), names)

    assert hookspecs.OLDEST_API_VERSION <= names["pgqrs_api"] <= hookspecs.API_VERSION
