"""docs/hooks.md tells the truth: every hook, its arguments, its events, and examples that run."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from pgqrs_core import events, hookspecs
from pgqrs_core.events import ConsumeBatch, Consumed, Draft, EnqueueBatch, Outcome
from pgqrs_core.hookspecs import hookimpl
from pgqrs_core.plugin_contract import HOOKS
from pgqrs_core.plugins import Plugins

PAGE = (Path(__file__).parents[2] / "docs" / "hooks.md").read_text(encoding="utf-8")


def signature(hook: str) -> str:
    return f"{hook}({', '.join(inspect.signature(getattr(hookspecs, hook)).parameters)})"


def section(hook: str) -> str:
    return PAGE.split(f"### `{signature(hook)}`\n")[1].split("\n### ")[0]


def block(containing: str) -> str:
    """The one Python example of the page that contains a text."""
    [found] = [one for one in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if containing in one]
    return str(found)


def test_the_hooks_are_those_of_the_specifications() -> None:
    marked = {name for name, value in vars(hookspecs).items() if hasattr(value, "pgqrs_spec")}

    assert set(HOOKS) == marked


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_is_a_row_and_a_section_with_its_exact_arguments(hook: str) -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith(f"| `{signature(hook)}` |")]

    assert len(rows) == 1
    assert rows[0].count("|") == 7
    assert section(hook).strip()


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_states_its_whole_contract(hook: str) -> None:
    contract = inspect.getdoc(getattr(hookspecs, hook)) or ""

    for part in ("When:", "Order:", "Returns:", "Errors:"):
        assert f"\n{part} " in contract


def test_the_page_names_no_hook_that_does_not_exist() -> None:
    assert set(re.findall(r"pgqrs_(?:before|after|around)_\w+|pgqrs_\w+(?=\()", PAGE)) == set(HOOKS)


@pytest.mark.parametrize(
    ("hook", "event", "prefix"),
    [
        ("pgqrs_before_enqueue", EnqueueBatch, "batch."),
        ("pgqrs_before_enqueue", Draft, "draft."),
        ("pgqrs_after_enqueue", events.Enqueued, ""),
        ("pgqrs_after_claim", events.Claimed, ""),
        ("pgqrs_around_handler", events.Handling, ""),
        ("pgqrs_around_handler", events.Handled, ""),
        ("pgqrs_after_consume", Consumed, ""),
        ("pgqrs_after_consume", Outcome, ""),
    ],
)
def test_every_field_of_an_event_is_in_the_table_of_its_hook(hook: str, event: Any, prefix: str) -> None:
    for field in event.__struct_fields__:
        assert f"`{prefix}{field}`" in section(hook)


def test_every_event_is_in_the_table_of_its_module_with_its_fields() -> None:
    table = events.__doc__ or ""

    for name in set(events.__all__) - {"OutcomeKind"}:
        assert f"``{name}``" in table
        for field in getattr(events, name).__struct_fields__:
            assert re.search(rf"\b{field}\b", table)


def test_the_example_plugin_does_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    module = ModuleType("shop_origin")
    exec(block("Stamp each message"), module.__dict__)
    names: dict[str, Any] = {"Plugins": Plugins, "shop_origin": module}
    exec(block("plugins.register"), names)
    hooks = names["plugins"].hooks
    young, old = (
        SimpleNamespace(id=n, attempt=n, body=b"", content_type="text/plain", raw_headers=None) for n in (1, 4)
    )

    sent = EnqueueBatch("jobs", "native", [Draft("jobs", b"{}", "application/json")])
    hooks.before_enqueue(sent)
    received = ConsumeBatch("jobs", "native", [young, old])  # type: ignore[list-item]
    hooks.before_consume(received)
    hooks.after_consume(Consumed.of("jobs", "native", [Outcome(1, "acked", 1, 0.1, 0.2)]))

    assert sent.drafts[0].headers == {"origin": "shop"}
    assert [one.id for one in received.deliveries] == [1]
    assert [(one.id, reason) for one, reason in received.dropped] == [(4, "nobody waits for it any more")]
    assert capsys.readouterr().out == "jobs 1 acked\n"


def test_the_example_that_surrounds_does_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    module = ModuleType("shop_request")
    module.current_request = lambda: "r1"  # type: ignore[attr-defined]
    exec(block("current_request"), module.__dict__)
    plugins = Plugins.core()
    plugins.register(module, "request")
    batch = EnqueueBatch("jobs", "native", [Draft("jobs", b"{}", "application/json")])

    with plugins.hooks.around_enqueue(batch):
        batch.ids = [7]

    assert batch.drafts[0].headers == {"request": "r1"}
    assert capsys.readouterr().out == "wrote [7]\n"


def test_the_example_serializer_works() -> None:
    class Rows(list[list[str]]):
        pass

    names: dict[str, Any] = {"Rows": Rows, "Any": Any}
    exec(block("class Csv"), names)
    plugins = Plugins.core()
    plugins.register(SimpleNamespace(pgqrs_serializers=hookimpl(lambda: [names["Csv"]()])), "csv")

    content_type, body = plugins.serializers.encode(Rows([["a", "b"], ["c", "d"]]))

    assert (content_type, body) == ("text/csv", b"a,b\nc,d")
    assert plugins.serializers.decode(content_type, body) == [["a", "b"], ["c", "d"]]
