"""Lines about messages say which: by logging's extras, or by structlog; and docs/logging.md shows how."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from structlog.testing import LogCapture

from pgqrs_core.logs import bound_logger, worker_name

from .native_support import Native, Seen

PAGE = (Path(__file__).parents[2] / "docs" / "logging.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
SECRET = "hunter2"


@pytest.fixture
def lines() -> Iterator[LogCapture]:
    """What structlog logs, as long as it is configured to."""
    captured = LogCapture()
    structlog.configure(processors=[captured])
    yield captured
    structlog.reset_defaults()


def fields(record: logging.LogRecord) -> dict[str, Any]:
    return {name: getattr(record, name, None) for name in ("queue", "message_id", "attempt", "worker")}


def test_a_handler_that_fails_is_logged_with_its_message_and_without_its_payload(
    native: Native, client: Any, jobs: str, caplog: pytest.LogCaptureFixture
) -> None:
    worker = native.worker(client, housekeeping=False)
    seen = Seen()

    @worker.handler(jobs)
    def handle(message: Any) -> None:
        seen.add(message.attempt)
        raise ValueError("no")

    sent = client.producer.enqueue(jobs, {"password": SECRET}, headers={"token": SECRET})
    with native.working(worker):
        seen.wait_for(2)

    failed = [record for record in caplog.records if record.name == "pgqrs.worker"][:2]
    assert [fields(record) for record in failed] == [
        {"queue": jobs, "message_id": sent, "attempt": attempt, "worker": worker_name()} for attempt in (1, 2)
    ]
    assert all(SECRET not in str(vars(record)) for record in caplog.records)


def test_a_batch_that_fails_and_a_message_that_nobody_takes_are_logged_with_fields(
    native: Native, client: Any, jobs: str, caplog: pytest.LogCaptureFixture
) -> None:
    worker = native.worker(client, housekeeping=False)
    seen = Seen()

    @worker.batch_handler(jobs, int, message_type="number")
    def handle(messages: list[Any]) -> None:
        seen.add(len(messages))
        raise ValueError("no")

    worker.batch_handler(jobs, str, message_type="word")(handle)
    client.producer.batch_enqueue(jobs, [1, 2], headers={"message_type": "number"})
    client.producer.enqueue(jobs, 3, headers={"message_type": "colour"})
    with native.working(worker):
        seen.wait_for(1)

    [batch] = [record for record in caplog.records if getattr(record, "messages", None)][:1]
    [refused] = [record for record in caplog.records if "colour" in record.getMessage()]
    assert (batch.queue, batch.messages, batch.worker) == (jobs, 2, worker_name())  # type: ignore[attr-defined]
    assert fields(refused)["message_id"] == 3


def test_the_fields_of_a_message_are_added_to_those_of_the_line(
    client: Any, jobs: str, caplog: pytest.LogCaptureFixture
) -> None:
    client.producer.enqueue(jobs, 1)
    message = client.consumer.read(jobs)
    caplog.set_level(logging.INFO)

    message.logger("shop").info("sending %s", "it", extra={"provider": "x", "queue": "not this one"})

    [record] = [record for record in caplog.records if record.name == "shop"]
    assert record.getMessage() == "sending it"
    assert (record.provider, record.queue) == ("x", jobs)  # type: ignore[attr-defined]


def test_structlog_is_used_where_it_is_configured_or_given(client: Any, jobs: str, lines: LogCapture) -> None:
    client.producer.enqueue(jobs, 1)
    message = client.consumer.read(jobs)

    message.logger("shop").info("by name")
    message.logger(structlog.get_logger("shop")).info("as given", provider="x")

    known = {**message.log_fields, "log_level": "info"}
    assert lines.entries == [{"event": "by name", **known}, {"event": "as given", "provider": "x", **known}]


def test_structlog_that_is_only_installed_changes_nothing() -> None:
    assert isinstance(bound_logger("shop", {"queue": "q"}), logging.LoggerAdapter)


def test_the_examples_of_the_page_do_what_it_says(
    native: Native, client: Any, lines: LogCapture, caplog: pytest.LogCaptureFixture
) -> None:
    structlog.reset_defaults()
    client.admin.create_queue("emails")
    caplog.set_level(logging.INFO)
    handlers: list[Any] = []

    class Worker:
        @staticmethod
        def handler(queue: str) -> Any:
            return handlers.append

    names: dict[str, Any] = {"worker": Worker}
    for example in EXAMPLES:
        exec(example, names)
    client.producer.enqueue("emails", {"to": SECRET})
    message = client.consumer.read("emails")
    plain, structured = handlers

    plain(message)
    [record] = [record for record in caplog.records if record.name == "shop.emails"]
    structlog.configure(processors=[lines])
    structured(message)

    assert json.loads(names["JsonFormatter"]().format(record)) == {
        "level": "INFO",
        "logger": "shop.emails",
        "event": "sending",
        "provider": "postmark",
        **message.log_fields,
    }
    assert lines.entries == [{"event": "sending", "provider": "postmark", "log_level": "info", **message.log_fields}]
