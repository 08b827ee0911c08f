"""Threads and tasks that fail begin anew, and nothing is started in another way."""

from __future__ import annotations

import ast
import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import pgqrs_core
from pgqrs_core import interrupts, logs
from pgqrs_core.backoff import Backoff
from pgqrs_core.supervision import start_task, start_thread

ROOT = Path(pgqrs_core.__file__).parents[1]

#: What begins a thread or a task that nobody would miss.
STARTS = {"Thread", "Timer", "create_task", "ensure_future", "start_new_thread", "TaskGroup", "ThreadPoolExecutor"}
#: Where they may be: the helper itself; what serves tests; the demo, whose processes measure and hold nothing.
EXEMPT = ("pgqrs_core/supervision.py", "pgqrs_core/testing/", "/demo/")


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


FAILURES = [RuntimeError("boom"), SystemExit(3), Unprintable(), KeyboardInterrupt()]


def sources() -> Iterator[Path]:
    for folder in ("pgqrs_core", "adapters", "plugins"):
        for path in (ROOT / folder).rglob("*.py"):
            if not any(part in path.as_posix() for part in EXEMPT):
                yield path


def called(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            function = node.func
            name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
            yield node.lineno, name


def test_nothing_starts_a_thread_or_a_task_without_supervision() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line} {name}"
        for path in sources()
        for line, name in called(ast.parse(path.read_text(encoding="utf-8")))
        if name in STARTS
    ]
    assert found == [], "use start_thread or start_task of pgqrs_core.supervision"


def test_no_line_of_the_log_can_fail_the_code_that_writes_it() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in sources()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if path.name != "logs.py"
        and isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Call)
        and isinstance(node.value.func, ast.Attribute)
        and node.value.func.attr == "getLogger"
    ]
    assert found == [], "use get_logger of pgqrs_core.logs"


def test_no_condition_can_be_left_locked_by_an_interrupt() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in sources()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "Condition"
        and getattr(node.func.value, "id", "") == "threading"
    ]
    assert found == [], "use Condition of pgqrs_core.conditions"


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
def test_a_thread_that_fails_begins_anew_and_says_so(error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    calls: list[int] = []

    def run(number: int) -> None:
        calls.append(number)
        if len(calls) < 3:
            raise error

    start_thread(run, 7, name="tested").join(10)
    assert calls == [7, 7, 7]
    assert len([message for message in caplog.messages if message.startswith("tested failed and begins anew")]) == 2


def test_a_thread_that_is_not_to_begin_anew_says_that_it_has_ended(caplog: pytest.LogCaptureFixture) -> None:
    def run() -> None:
        raise RuntimeError("boom")

    start_thread(run, name="tested", restart=False).join(10)
    assert caplog.messages == ["tested failed and has ended: boom"]


@pytest.mark.parametrize("error", FAILURES[:3], ids=lambda error: type(error).__name__)
def test_a_task_that_fails_begins_anew(error: BaseException) -> None:
    calls: list[int] = []

    async def run() -> None:
        calls.append(1)
        if len(calls) < 3:
            raise error

    async def main() -> None:
        await asyncio.wait_for(start_task(run, name="tested"), 10)

    asyncio.run(main())
    assert len(calls) == 3


def test_a_task_that_is_cancelled_ends() -> None:
    async def main() -> None:
        task = start_task(lambda: asyncio.sleep(60), name="tested")
        await asyncio.sleep(0)
        task.cancel()
        done, _ = await asyncio.wait({task}, timeout=10)
        assert done
        assert task.cancelled()

    asyncio.run(main())


class Hostile(logging.Handler):
    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def handle(self, record: logging.LogRecord) -> bool:
        raise self.error


@pytest.fixture
def hostile() -> Iterator[Callable[[BaseException], None]]:
    added: list[logging.Handler] = []

    def add(error: BaseException) -> None:
        added.append(Hostile(error))
        logging.getLogger("pgqrs.tested").addHandler(added[-1])

    yield add
    for handler in added:
        logging.getLogger("pgqrs.tested").removeHandler(handler)


@pytest.mark.parametrize("error", FAILURES[:3], ids=lambda error: type(error).__name__)
def test_a_handler_of_the_log_that_raises_is_reported_once_on_standard_error(
    error: BaseException, hostile: Callable[[BaseException], None], capsys: pytest.CaptureFixture[str]
) -> None:
    hostile(error)
    log = logs.get_logger("pgqrs.tested")
    for _ in range(3):
        log.warning("message %d: %s", 5, Unprintable())
    said = capsys.readouterr().err
    assert said.count("logging failed") == 1
    assert "message 5" in said or "message %d" in said


def test_a_line_is_written_though_the_record_factory_has_set_its_fields(caplog: pytest.LogCaptureFixture) -> None:
    before = logging.getLogRecordFactory()

    def factory(*args: object, **options: object) -> logging.LogRecord:
        record = before(*args, **options)
        record.queue = "mine"
        return record

    logging.setLogRecordFactory(factory)
    try:
        logs.get_logger("pgqrs.tested").warning("said", extra={"queue": "jobs"})
    finally:
        logging.setLogRecordFactory(before)
    assert caplog.messages == ["said"]


def test_an_interrupt_of_the_host_passes_through_a_line_of_the_log(
    hostile: Callable[[BaseException], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    class TimeIsUp(Exception):
        pass

    monkeypatch.setattr(interrupts, "_noted", {TimeIsUp})
    hostile(TimeIsUp())
    with pytest.raises(TimeIsUp):
        logs.get_logger("pgqrs.tested").warning("said")


def test_waits_double_up_to_the_longest_and_end_with_a_success() -> None:
    now = [0.0]
    backoff = Backoff(1.0, 4.0, lambda: now[0])
    waits = [backoff.failed("a") for _ in range(5)]
    assert all(0.8 * full <= wait <= full for wait, full in zip(waits, [1.0, 2.0, 4.0, 4.0, 4.0]))
    assert backoff.waits("a")
    assert not backoff.waits("b")
    now[0] = 10.0
    assert backoff.has_failed("a")
    assert not backoff.waits("a")
    assert backoff.succeeded("a")
    assert backoff.pause() is None


def test_many_threads_that_fail_do_not_share_their_pauses() -> None:
    done = threading.Semaphore(0)

    def run(calls: list[int]) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("boom")
        done.release()

    for number in range(5):
        start_thread(run, [], name=f"tested-{number}")
    assert all(done.acquire(timeout=10) for _ in range(5))
