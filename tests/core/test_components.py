"""Tables of plugins: installed with the core's, checked, and dropped with them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pgqrs_core.errors import SchemaError, SchemaMissing, SchemaTooNew
from pgqrs_core.operations import schema
from pgqrs_core.sql import MIGRATIONS, read_queries
from pgqrs_core.testing.by_hand import play

NO_PLUGINS: Any = SimpleNamespace(migrations=())
CORE = [(step.version, step.checksum, step.safe) for step in MIGRATIONS]
STEPS = MIGRATIONS


def test_where_something_is_installed_nothing_is_installed_by_itself() -> None:
    played = play(schema.install_if_empty("pgqrs", NO_PLUGINS), [], [(True,)])

    assert (played.names, played.result) == (["migration_lock", "schema_exists"], [])


def test_an_empty_schema_is_looked_at_under_the_lock_of_migrations() -> None:
    transaction = next(schema.install_if_empty("pgqrs", NO_PLUGINS))
    op = transaction.make()  # type: ignore[union-attr]
    assert next(op).query.name == "migration_lock"
    assert op.send([]).query.name == "schema_exists"
    assert op.send([(False,)]).query.name == "schema_holds_others"
    # Within it the core's tables are installed in a transaction of their own, which is part of this one.
    inner = op.send([(False, "shop")]).make()
    assert next(inner).query.name == "migration_lock"
    assert inner.send([]).query.name == "namespace_exists"
    assert inner.send([(False,)]).query.name == "create_schema"


def test_a_schema_of_something_else_is_refused_with_what_to_do() -> None:
    with pytest.raises(SchemaMissing, match=r"tables of something else.*install --schema app` if it is the right one"):
        play(schema.install_if_empty("app", NO_PLUGINS), [], [(False,)], [(True, "shop")])


def check(*component: tuple[int, str, bool]) -> None:
    play(schema.check_component("pgqrs", "mail", STEPS), [(True,)], CORE, [], list(component))


def test_a_component_without_its_tables_is_named_with_the_remedy() -> None:
    with pytest.raises(SchemaError, match=r"tables of mail.*pgqrs install"):
        check()


def test_a_component_of_this_version_or_a_harmless_newer_one_is_fine() -> None:
    check(*CORE)
    check(*CORE, (99, "c", True))


def test_a_component_newer_than_this_code_survives_is_refused() -> None:
    with pytest.raises(SchemaTooNew):
        check(*CORE, (99, "c", False))


def test_without_the_core_no_component_is_asked_for() -> None:
    with pytest.raises(SchemaMissing):
        play(schema.check_component("pgqrs", "mail", STEPS), [(False,)])


def test_two_statements_of_one_name_in_a_package_are_refused(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "twice").mkdir()
    (tmp_path / "twice" / "__init__.py").touch()
    (tmp_path / "twice" / "a.sql").write_text("-- name: one\nselect 1;\n-- name: one\nselect 2;\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    with pytest.raises(ValueError, match="two statements are named 'one'"):
        read_queries("twice")
