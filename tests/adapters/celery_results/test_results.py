"""Storing and reading: what Celery's other backends keep, this one keeps too."""

from __future__ import annotations

import pickle
import threading
import uuid
import zlib
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import psycopg
import pytest
from celery import Celery, states
from celery.backends.base import Backend
from celery.exceptions import BackendGetMetaError, ImproperlyConfigured, SecurityError
from celery.result import AsyncResult, GroupResult
from kombu.exceptions import ContentDisallowed, EncodeError

from pgqrs_core.errors import InvalidArgument, SchemaError, SchemaMissing, Unavailable
from pgqrs_core.testing import eventually
from tests.support.versions import needs_celery_57

from .support import ask, request_of

EVERYTHING: dict[str, Any] = {
    "id": "t1",
    "task": "shop.charge",
    "args": [1, "two"],
    "kwargs": {"three": 3.5},
    "hostname": "worker@host",
    "retries": 2,
    "group": "g1",
    "parent_id": "p1",
    "delivery_info": {"routing_key": "payments"},
    "stamped_headers": ["tenant"],
    "stamps": {"tenant": "acme"},
}

FIELDS = ("state", "result", "traceback", "children", "name", "args", "kwargs", "worker", "retries", "queue")


def new_id() -> str:
    return uuid.uuid4().hex


def seen(app: Celery, task_id: str) -> AsyncResult[Any]:
    """A result as somebody sees it who has not looked before."""
    app.backend._cache.clear()
    return AsyncResult(task_id, app=app)


@pytest.mark.parametrize("serializer", ["json", "pickle", "yaml"])
@pytest.mark.parametrize("value", [None, 0, "", "text\N{SNOWMAN}", [1, {"a": [None]}], {"k": "v"}, "x" * 200_000])
def test_a_result_comes_back_as_it_was_stored(open_app: Callable[..., Celery], serializer: str, value: Any) -> None:
    if serializer == "yaml":
        pytest.importorskip("yaml")
    app = open_app(result_serializer=serializer, accept_content=["json", serializer])
    app.backend.store_result("t", value, states.SUCCESS)

    assert seen(app, "t").get(timeout=5) == value


def test_what_was_never_stored_is_pending(app: Celery) -> None:
    result = seen(app, "nobody")

    assert (result.state, result.result, app.backend.task_result_exists("nobody")) == (states.PENDING, None, False)


@pytest.mark.parametrize("state", [states.STARTED, states.FAILURE, states.RETRY, states.REVOKED, "PROGRESS", "SUCCESS"])
def test_a_success_is_never_overwritten(app: Celery, state: str) -> None:
    app.backend.store_result("t", 1, states.SUCCESS)
    app.backend.store_result("t", ValueError("late") if state in states.EXCEPTION_STATES else 2, state)

    assert (seen(app, "t").state, seen(app, "t").result) == (states.SUCCESS, 1)


def test_a_success_replaces_whatever_was_there(app: Celery) -> None:
    for state in (states.STARTED, states.RETRY, states.FAILURE):
        app.backend.store_result("t", ValueError(state) if state in states.EXCEPTION_STATES else None, state)
    app.backend.store_result("t", "fine", states.SUCCESS)

    assert seen(app, "t").get(timeout=5) == "fine"


def test_two_workers_that_store_at_once_leave_the_success(app: Celery) -> None:
    for attempt in range(20):
        task_id = f"t{attempt}"
        stores = [(1, states.SUCCESS), (ValueError("no"), states.FAILURE)] * 2
        threads = [threading.Thread(target=app.backend.store_result, args=(task_id, *one)) for one in stores]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert seen(app, task_id).state == states.SUCCESS


def test_a_stored_result_is_one_statement(app: Celery, pgqrs_dsn: str) -> None:
    app.backend.store_result("warm", 1, states.SUCCESS)
    counted: list[str] = []
    run = app.backend.store.engine.connections.run
    app.backend.store.engine.connections.run = lambda effect, statements: (
        counted.append(effect.query.name), run(effect, statements)
    )[1]  # fmt: skip

    app.backend.store_result("t", 1, states.SUCCESS, request=request_of(**EVERYTHING))

    assert counted == ["store_result"]


@needs_celery_57  # Before, its database backend does not work with the present SQLAlchemy.
@pytest.mark.parametrize("extended", [False, True])
@pytest.mark.parametrize("state", [states.SUCCESS, states.FAILURE, states.STARTED])
def test_the_fields_of_a_result_are_those_of_celerys_database_backend(
    open_app: Callable[..., Celery], tmp_path: Path, extended: bool, state: str
) -> None:
    apps = [
        open_app(result_extended=extended),
        open_app(f"db+sqlite:///{tmp_path}/results.sqlite", result_extended=extended),
    ]
    found = []
    for app in apps:
        value = KeyError("x") if state == states.FAILURE else {"n": 1}
        app.backend.store_result("t1", value, state, traceback="Traceback …", request=request_of(**EVERYTHING))
        result = seen(app, "t1")
        fields = {name: getattr(result, name) for name in FIELDS}
        fields["result"] = repr(fields["result"])
        found.append(fields)
        if state != states.STARTED:
            assert abs(datetime.now(timezone.utc) - as_utc(result.date_done)) < timedelta(minutes=1)
        if hasattr(app.backend, "session_manager"):
            app.backend.session_manager.invalidate(app.backend.url)

    assert found[0] == found[1]


def as_utc(moment: datetime) -> datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)


def test_the_columns_hold_what_the_worker_knew(open_app: Callable[..., Celery], pgqrs_dsn: str) -> None:
    app = open_app(result_extended=True)
    app.backend.store_result("t1", 5, states.SUCCESS, request=request_of(**EVERYTHING))

    (row,) = ask(pgqrs_dsn, "select * from pgqrs.celery_results")
    meta = app.backend.get_task_meta("t1")

    assert (row["status"], row["result"], row["content_type"]) == ("SUCCESS", b"5", "application/json")
    assert (row["name"], row["worker"], row["retries"], row["queue"]) == ("shop.charge", "worker@host", 2, "payments")
    assert (row["group_id"], row["parent_id"]) == ("g1", "p1")
    assert (meta["group_id"], meta["parent_id"], meta["tenant"]) == ("g1", "p1", "acme")
    assert meta["stamped_headers"] == ["tenant"]


def test_an_exception_comes_back_as_one(app: Celery) -> None:
    app.backend.store_result("t", ValueError("no", 3), states.FAILURE, traceback="Traceback: here")
    result = seen(app, "t")

    with pytest.raises(ValueError, match="no"):
        result.get(timeout=5)
    assert (result.result.args, result.traceback) == (("no", 3), "Traceback: here")


def test_what_is_no_exception_is_not_called_as_one(app: Celery, pgqrs_dsn: str) -> None:
    app.backend.store_result("t", ValueError("x"), states.FAILURE)
    ask(
        pgqrs_dsn,
        "update pgqrs.celery_results set result = "
        """convert_to('{"exc_type": "system", "exc_message": ["id"], "exc_module": "os"}', 'UTF8')""",
    )

    with pytest.raises(SecurityError, match=r"os\.system"):
        _ = seen(app, "t").result
    with pytest.raises(SecurityError, match=r"os\.system"):
        seen(app, "t").get(timeout=5)


def test_a_result_that_names_an_exit_does_not_end_its_reader(app: Celery) -> None:
    forged = {"exc_type": "SystemExit", "exc_module": "builtins", "exc_message": [1]}
    app.backend.store_result("t", forged, states.FAILURE)

    with pytest.raises(SecurityError, match="SystemExit"):
        seen(app, "t").get(timeout=5)


def test_a_traceback_may_hold_what_postgresql_cannot(app: Celery) -> None:
    app.backend.store_result("t", ValueError(), states.FAILURE, traceback="a\0b\udc80c")

    assert seen(app, "t").traceback == "a\\x00b\\udc80c"


def test_a_result_that_cannot_be_serialised_is_an_error_and_changes_nothing(app: Celery) -> None:
    with pytest.raises(EncodeError):
        app.backend.store_result("t", object(), states.SUCCESS)

    assert seen(app, "t").state == states.PENDING


def test_a_reader_with_another_serializer_reads_it_if_it_accepts_the_type(open_app: Callable[..., Celery]) -> None:
    writer = open_app(result_serializer="pickle", accept_content=["pickle"])
    writer.backend.store_result("t", {1, 2}, states.SUCCESS)

    assert open_app(result_serializer="json", accept_content=["json", "pickle"]).AsyncResult("t").result == {1, 2}
    refusing = open_app(result_serializer="json", accept_content=["json"])
    with pytest.raises(ContentDisallowed):
        _ = refusing.AsyncResult("t").result
    with pytest.raises(ContentDisallowed):
        refusing.AsyncResult("t").get(timeout=5)


@needs_celery_57
def test_compressed_results_are_read_by_those_who_do_not_compress(
    open_app: Callable[..., Celery], pgqrs_dsn: str
) -> None:
    open_app(result_compression="zlib").backend.store_result("t", "a" * 50_000, states.SUCCESS)

    assert open_app().AsyncResult("t").get(timeout=5) == "a" * 50_000
    assert ask(pgqrs_dsn, "select length(result) as n from pgqrs.celery_results")[0]["n"] < 1_000


def test_a_result_that_a_newer_celery_compressed_is_read(app: Celery, pgqrs_dsn: str) -> None:
    app.backend.store_result("t", 1, states.SUCCESS)
    compressed = b"\0celery-compressed\0application/x-gzip\0" + zlib.compress(b'"' + b"a" * 50_000 + b'"')
    with psycopg.connect(pgqrs_dsn) as connection:
        connection.execute("update pgqrs.celery_results set result = %s", [compressed])

    assert seen(app, "t").get(timeout=5) == "a" * 50_000


def test_forgetting_removes_the_row(app: Celery, pgqrs_dsn: str) -> None:
    app.backend.store_result("t", 1, states.SUCCESS)
    result = seen(app, "t")
    assert app.backend.task_result_exists("t")

    result.forget()

    assert ask(pgqrs_dsn, "select * from pgqrs.celery_results") == []
    assert (seen(app, "t").state, app.backend.task_result_exists("t")) == (states.PENDING, False)


def test_groups_are_saved_restored_and_deleted(app: Celery) -> None:
    inner = GroupResult("g-inner", [AsyncResult("c", app=app)], app=app)
    group = GroupResult("g", [AsyncResult("a", app=app), inner], app=app)
    group.save()
    app.backend._cache.clear()

    restored = GroupResult.restore("g", app=app)

    assert restored is not None
    assert restored.as_tuple() == group.as_tuple()
    restored.delete()
    assert GroupResult.restore("g", app=app) is None


def test_a_group_can_be_saved_again(app: Celery) -> None:
    GroupResult("g", [AsyncResult("a", app=app)], app=app).save()
    GroupResult("g", [AsyncResult("b", app=app)], app=app).save()

    assert [one.id for one in GroupResult.restore("g", app=app)] == ["b"]


def test_expired_results_are_gone_before_they_are_removed(open_app: Callable[..., Celery], pgqrs_dsn: str) -> None:
    app = open_app(result_expires=3600, result_failure_expires=60)
    app.backend.store_result("kept", 1, states.SUCCESS)
    app.backend.store_result("failed", ValueError(), states.FAILURE)
    app.backend.save_group("g", GroupResult("g", [], app=app))
    rows = ask(
        pgqrs_dsn,
        "select task_id, extract(epoch from expires_at - statement_timestamp())::int as left from pgqrs.celery_results",
    )
    left = {row["task_id"]: row["left"] for row in rows}
    assert 3500 < left["kept"] <= 3600
    assert 30 < left["failed"] <= 60

    for table in ("celery_results", "celery_groups"):
        ask(pgqrs_dsn, f"update pgqrs.{table} set expires_at = statement_timestamp() - interval '1 second'")

    assert seen(app, "kept").state == states.PENDING
    assert GroupResult.restore("g", app=app) is None
    app.backend.store_result("kept", 2, states.SUCCESS)
    assert seen(app, "kept").result == 2


@pytest.mark.parametrize("never", [0, None])
def test_results_may_be_kept_for_ever(open_app: Callable[..., Celery], pgqrs_dsn: str, never: int | None) -> None:
    app = open_app(result_expires=never)
    app.backend.store_result("t", 1, states.SUCCESS)

    assert ask(pgqrs_dsn, "select expires_at from pgqrs.celery_results") == [{"expires_at": None}]


def test_the_second_version_of_a_row_touches_no_index(app: Celery, pgqrs_dsn: str) -> None:
    app.backend.store_result("t", None, states.STARTED)
    before = ask(pgqrs_dsn, "select expires_at from pgqrs.celery_results")

    app.backend.store_result("t", 1, states.SUCCESS)

    assert ask(pgqrs_dsn, "select expires_at from pgqrs.celery_results") == before


def test_many_results_are_read_by_one_statement(app: Celery) -> None:
    for number in range(50):
        app.backend.store_result(f"t{number}", number, states.SUCCESS)

    found = dict(app.backend.get_many([f"t{number}" for number in range(50)], timeout=5))

    assert {task_id: meta["result"] for task_id, meta in found.items()} == {f"t{n}": n for n in range(50)}


def test_get_many_gives_up_in_time(app: Celery) -> None:
    with pytest.raises(Backend.TimeoutError):
        list(app.backend.get_many(["nobody"], timeout=0.1, interval=0.02))


def test_an_empty_database_is_installed_by_whoever_comes_first(open_app: Callable[..., Celery], pgqrs_dsn: str) -> None:
    apps = [open_app() for _ in range(4)]
    for number, app in enumerate(apps):
        # Each its own store, as in processes of their own.
        app.conf.result_backend_transport_options = {"connection_timeout_seconds": 10.0 + number}
    errors: list[BaseException] = []

    def store(app: Celery) -> None:
        try:
            app.backend.store_result(new_id(), 1, states.SUCCESS)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=store, args=(app,)) for app in apps]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert errors == []
    assert ask(pgqrs_dsn, "select count(*) as n from pgqrs.celery_results") == [{"n": 4}]


def test_a_missing_schema_is_a_clear_error_where_it_is_not_to_be_created(open_app: Callable[..., Celery]) -> None:
    app = open_app(result_backend_transport_options={"create_schema": False})

    with pytest.raises(SchemaMissing, match="pgqrs install"):
        app.backend.store_result("t", 1, states.SUCCESS)


def test_a_database_with_pgqrs_but_without_celerys_tables_is_left_alone(
    open_app: Callable[..., Celery], pgqrs_dsn: str
) -> None:
    from pgqrs_core.engine import Engine
    from pgqrs_core.operations import schema

    with Engine(pgqrs_dsn) as engine:
        engine.transact(schema.install, engine.schema)

    with pytest.raises(SchemaError, match=r"tables of celery.*pgqrs install"):
        open_app().backend.store_result("t", 1, states.SUCCESS)


def test_uninstalling_takes_celerys_tables_too(app: Celery, pgqrs_dsn: str) -> None:
    from pgqrs_native import Client

    app.backend.store_result("t", 1, states.SUCCESS)
    with Client(pgqrs_dsn) as client:
        client.admin.uninstall()

    assert ask(pgqrs_dsn, "select relname from pg_class where relname like 'celery%'") == []


def test_the_url_goes_to_libpq_and_its_schema_to_pgqrs(open_app: Callable[..., Celery]) -> None:
    app = open_app("pgqrs://u:p%40ss@a:1,b:2/db?sslmode=require&schema=jobs&target_session_attrs=read-write")
    config = app.backend.config

    assert config.target == "a:1,b:2/db"
    assert config.database.schema == "jobs"
    assert "sslmode=require" in config.conninfo()
    assert "target_session_attrs=read-write" in config.conninfo()
    assert "p@ss" not in app.backend.as_uri()
    assert app.backend.as_uri(include_password=True).endswith("read-write")


def test_results_go_to_the_schema_of_the_url(open_app: Callable[..., Celery], backend_url: str, pgqrs_dsn: str) -> None:
    app = open_app(f"{backend_url}&schema=Other%20one")
    app.backend.store_result("t", 1, states.SUCCESS)

    assert len(ask(pgqrs_dsn, 'select * from "Other one".celery_results')) == 1


@pytest.mark.parametrize(
    ("url", "options", "words"),
    [
        ("pgqrs://h/db?sslmoed=require", {}, "libpq does not know"),
        ("pgqrs://h:99999/db", {}, "port"),
        ("pgqrs://u:hunter2@x@h/db", {}, "%40"),
        ("pgqrs://h/db", {"visibility": 3600}, "visibility"),
        ("pgqrs://h/db", {"create_schema": "yes"}, "True or False"),
        ("pgqrs://h/db", {"chord_claim_seconds": 0}, "chord_claim_seconds"),
        ("pgqrs://h/db", {"max_connections": "many"}, "max_connections"),
        ("pgqrs://h/db?schema=a", {"schema": "b"}, "two schemas"),
    ],
)
def test_a_wrong_setting_is_said_in_celerys_own_error(
    open_app: Callable[..., Celery], url: str, options: dict[str, Any], words: str
) -> None:
    app = open_app(url, result_backend_transport_options=options)

    with pytest.raises(ImproperlyConfigured, match=words) as caught:
        _ = app.backend

    assert "hunter2" not in str(caught.value)


def test_a_backend_can_be_pickled(open_app: Callable[..., Celery], backend_url: str) -> None:
    app = open_app()
    app.backend.store_result("t", 1, states.SUCCESS)
    app.set_current()

    copy = pickle.loads(pickle.dumps(app.backend))

    assert copy.get_result("t") == 1
    assert (copy.url, copy.expires) == (app.backend.url, app.backend.expires)


def test_all_threads_share_one_backend(app: Celery) -> None:
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(app.backend.store)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(set(map(id, found))) == 1


def test_a_lost_connection_is_tried_again_as_configured(open_app: Callable[..., Celery], pgqrs_dsn: str) -> None:
    app = open_app(result_backend_always_retry=True, result_backend_max_retries=5)
    app.backend.store_result("t", 1, states.SUCCESS)
    name = ask(pgqrs_dsn, "select current_database() as name")[0]["name"]
    broken = [0]
    run = app.backend.store.run

    def fragile(*args: Any, **kwargs: Any) -> Any:
        broken[0] += 1
        if broken[0] <= 3:
            raise Unavailable("gone", target=name)
        return run(*args, **kwargs)

    app.backend.store.run = fragile
    app.backend.store_result("u", 2, states.SUCCESS)

    assert (broken[0], seen(app, "u").result) == (4, 2)


def test_without_retries_a_lost_database_is_an_error_at_once(open_app: Callable[..., Celery]) -> None:
    app = open_app("pgqrs://u@127.0.0.1:1/db?connect_timeout=1")

    with pytest.raises(Unavailable, match="cannot connect"):
        app.backend.store_result("t", 1, states.SUCCESS)
    with pytest.raises(Unavailable, match="cannot connect"):
        app.AsyncResult("t").get(timeout=2)


def test_retries_are_bounded(open_app: Callable[..., Celery]) -> None:
    app = open_app(
        "pgqrs://u@127.0.0.1:1/db?connect_timeout=1",
        result_backend_always_retry=True,
        result_backend_max_retries=2,
    )

    with pytest.raises(BackendGetMetaError):
        app.backend.get_task_meta("t")


def test_terminated_connections_cost_nothing(app: Celery, pgqrs_dsn: str) -> None:
    app.backend.store_result("t", 1, states.SUCCESS)
    ask(
        pgqrs_dsn,
        "select pg_terminate_backend(pid) from pg_stat_activity "
        "where datname = current_database() and pid <> pg_backend_pid()",
    )
    eventually(
        lambda: (
            not ask(
                pgqrs_dsn,
                "select 1 from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid() "
                "and backend_type = 'client backend'",
            )
        )
    )

    app.backend.store_result("u", 2, states.SUCCESS)

    assert seen(app, "u").result == 2


@pytest.mark.parametrize("task_id", ["a\0b", "a\udc80"])
def test_an_id_that_cannot_be_stored_is_refused_before_the_task_is_sent(app: Celery, task_id: str) -> None:
    with pytest.raises(InvalidArgument, match="id of a task"):
        app.send_task("t", task_id=task_id)
    with pytest.raises(InvalidArgument, match="id of a task"):
        app.AsyncResult(task_id).get(timeout=1)
