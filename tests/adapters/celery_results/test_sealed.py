"""What the result backend keeps until it is used is sealed where messages are: bodies, parts and structures of chords."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery, states
from celery.exceptions import ChordError
from pgqrs_celery import plugin as backend
from pgqrs_celery.housekeeping import Housekeeper
from pgqrs_crypto import plugin as crypto

from pgqrs_core.errors import DecodeError
from pgqrs_core.plugins import Plugins

from .support import ask
from .test_chords import GROUP, Published, begin, body_of, finish

pytest.importorskip("cryptography")

KEY = "k1:" + base64.b64encode(b"k" * 32).decode()
RULES: dict[str, dict[str, Any]] = {"sign": {"sign": ["celery"]}, "encrypt": {"encrypt": ["other"]}}
OVERDUE = "update pgqrs.celery_chords set claimed_until = now() - interval '1 second'"


def plain() -> Plugins:
    plugins = Plugins.core()
    plugins.register(backend, "celery")
    return plugins


@pytest.fixture(params=RULES)
def rules(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Signed or encrypted, whatever the queue is called."""
    return RULES[request.param]


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Configure the plugin for the applications that are opened from now on."""

    def configure(**settings: Any) -> None:
        plugins = plain()
        plugins.register(crypto, "crypto", keys=[KEY], **settings)
        monkeypatch.setattr("pgqrs_core.engine.default_plugins", lambda *_: plugins)

    return configure


@pytest.fixture
def app(open_app: Callable[..., Celery], use: Callable[..., None], rules: dict[str, Any]) -> Celery:
    use(**rules, required=True)
    return open_app(broker_url="memory://")


@pytest.fixture
def published(app: Celery, monkeypatch: pytest.MonkeyPatch) -> Published:
    return Published(app, monkeypatch)


def complete(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    """Complete a chord and be killed before its body is published; then its claim runs out."""
    begin(app, 1)
    with monkeypatch.context() as patch:
        patch.setattr(app.backend, "_conclude", lambda *args: None)
        finish(app, 0)


def forge(dsn: str, body: bytes, group_id: str = "forged") -> None:
    ask(
        dsn,
        "insert into pgqrs.celery_chords (group_id, size, done, body, body_type, claimed_until) "
        "values (%s, 1, 1, %s, 'application/json', now() - interval '2 seconds')",
        group_id,
        body,
    )


def forged(app: Celery) -> bytes:
    return json.dumps(dict(app.signature("refund", args=[10**6]))).encode()


def test_a_sealed_body_is_published_by_the_worker_that_takes_over(
    app: Celery, published: Published, pgqrs_dsn: str, monkeypatch: pytest.MonkeyPatch, rules: dict[str, Any]
) -> None:
    complete(app, monkeypatch)
    (row,) = ask(pgqrs_dsn, "select body from pgqrs.celery_chords")
    assert (b"total" in bytes(row["body"])) == ("sign" in rules)
    ask(pgqrs_dsn, OVERDUE)

    assert app.backend.take_over_chords() == 1
    assert published.values == [[0]]


def test_a_forged_body_is_never_published(
    app: Celery, published: Published, pgqrs_dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    app.backend.store_result("first", 1, states.SUCCESS)
    forge(pgqrs_dsn, forged(app))

    assert Housekeeper(app.backend).round()

    assert published.values == []
    assert "Chord 'forged' failed: its kept body is refused" in caplog.text
    (row,) = ask(pgqrs_dsn, "select finished_at is not null as over, body from pgqrs.celery_chords")
    assert row == {"over": True, "body": None}


@pytest.mark.parametrize(
    "entries", [b"[]", b"[{}]", b'[{"codec":"zstd"}]', b'[{"codec":["x"]}]', b"{", b"[" * 9000, b"1" * 20000]
)
def test_a_forged_seal_is_none(app: Celery, published: Published, pgqrs_dsn: str, entries: bytes) -> None:
    app.backend.store_result("first", 1, states.SUCCESS)
    forge(pgqrs_dsn, b"\0pgqrs-sealed\0" + entries + b"\0" + forged(app))

    app.backend.take_over_chords()

    assert published.values == []


def test_the_body_of_another_chord_is_refused(
    app: Celery, published: Published, pgqrs_dsn: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    complete(app, monkeypatch)
    (row,) = ask(pgqrs_dsn, "select body from pgqrs.celery_chords")
    forge(pgqrs_dsn, bytes(row["body"]))

    app.backend.take_over_chords()

    assert published.values == []
    assert "Chord 'forged' failed" in caplog.text


def test_what_is_refused_keeps_no_other_chord_from_being_taken_over(
    app: Celery, published: Published, pgqrs_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete(app, monkeypatch)
    for number, body in enumerate([forged(app), b"", b"\0", b"[" * 100_000, b"1"]):
        forge(pgqrs_dsn, body, f"forged {number}")
    ask(pgqrs_dsn, OVERDUE + " where group_id = %s", GROUP)

    assert app.backend.take_over_chords() == 1
    assert published.values == [[0]]


@pytest.mark.parametrize("change", ["result = '1'", "status = 'RETRY'", "task_id = 'other'", "place = 7"])
def test_a_part_that_was_changed_fails_its_chord(
    app: Celery, published: Published, pgqrs_dsn: str, change: str
) -> None:
    begin(app, 2)
    finish(app, 0)
    ask(pgqrs_dsn, f"update pgqrs.celery_chord_parts set {change}")

    finish(app, 1)

    assert published.values == []
    with pytest.raises(ChordError):
        app.AsyncResult("body").get(timeout=10)


def test_a_part_that_was_slipped_in_fails_its_chord(app: Celery, published: Published, pgqrs_dsn: str) -> None:
    begin(app, 2)
    ask(
        pgqrs_dsn,
        "insert into pgqrs.celery_chord_parts (group_id, place, task_id, status, result, content_type) "
        "values ('g1', 0, 't0', 'SUCCESS', '999', 'application/json')",
    )
    ask(pgqrs_dsn, "update pgqrs.celery_chords set done = 1")

    finish(app, 1)

    assert published.values == []
    with pytest.raises(ChordError, match="lacks"):
        app.AsyncResult("body").get(timeout=10)


def nested(app: Celery) -> None:
    inner = app.GroupResult("inner", [app.AsyncResult("t0")])
    app.backend.apply_chord((GROUP, [inner]), body_of(app))
    app.backend.set_chord_size(GROUP, 1)


def test_the_structure_of_nested_groups_is_sealed_too(app: Celery, published: Published, pgqrs_dsn: str) -> None:
    nested(app)
    finish(app, 0)
    assert published.values == [[[0]]]


def test_a_structure_that_was_slipped_in_fails_its_chord(app: Celery, published: Published, pgqrs_dsn: str) -> None:
    app.backend.store_result("secret", 999, states.SUCCESS)
    nested(app)
    header = json.dumps([[GROUP, None], [[["secret", None], None]]])
    ask(pgqrs_dsn, "update pgqrs.celery_chords set header = %s", header.encode())

    finish(app, 0)

    assert published.values == []
    with pytest.raises(ChordError, match="lacks"):
        app.AsyncResult("body").get(timeout=10)


def test_a_saved_group_is_what_was_saved(app: Celery, pgqrs_dsn: str) -> None:
    app.GroupResult("g", [app.AsyncResult("one")]).save()
    assert [result.id for result in app.GroupResult.restore("g")] == ["one"]

    structure = json.dumps([["g", None], [[["two", None], None]]])
    ask(pgqrs_dsn, "update pgqrs.celery_groups set result = %s", structure.encode())

    with pytest.raises(DecodeError, match="lacks"):
        app.GroupResult.restore("g")


def test_what_was_kept_before_the_keys_is_read_where_nothing_is_required(
    open_app: Callable[..., Celery],
    use: Callable[..., None],
    rules: dict[str, Any],
    pgqrs_dsn: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    old = open_app(broker_url="memory://")
    begin(old, 2)
    finish(old, 0)
    use(**rules)
    app = open_app(broker_url="memory://", result_backend_transport_options={"chord_claim_seconds": 30})
    published = Published(app, monkeypatch)

    finish(app, 1)

    assert published.values == [[0, 1]]


def test_a_body_whose_key_is_missing_here_is_left_to_others(
    app: Celery,
    open_app: Callable[..., Celery],
    use: Callable[..., None],
    pgqrs_dsn: str,
    monkeypatch: pytest.MonkeyPatch,
    published: Published,
) -> None:
    complete(app, monkeypatch)
    ask(pgqrs_dsn, OVERDUE)
    monkeypatch.setattr("pgqrs_core.engine.default_plugins", lambda *_: plain())
    poor = open_app(broker_url="memory://", result_backend_transport_options={"chord_claim_seconds": 30})

    assert poor.backend.take_over_chords() == 0
    ask(pgqrs_dsn, OVERDUE)

    assert app.backend.take_over_chords() == 1
    assert published.values == [[0]]
