"""Several processes compete for one queue, some die, some keep leases too long; then their history is checked."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from competitor import BATCH
from harness import until
from history import check, read

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness import SyncHarness

HERE = Path(__file__).parent
MESSAGES = 1000
RECEIVERS = 3


class Crowd:
    """The processes, started together behind a barrier."""

    def __init__(self, dsn: str, folder: Path) -> None:
        self.dsn = dsn
        self.folder = folder
        self.done = folder / "done"
        self.running: dict[str, subprocess.Popen[str]] = {}
        self.deaths = 0
        self._count = 0

    def start(self, role: str, *arguments: object) -> subprocess.Popen[str]:
        self._count += 1
        name = f"{role}{self._count}"
        notes = self.folder / f"{name}.jsonl"
        command = [sys.executable, str(HERE / "competitor.py"), role, self.dsn, notes, name, self.done, *arguments]
        process = subprocess.Popen(
            list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=HERE.parents[1]
        )
        self.running[name] = process
        return process

    def release(self) -> None:
        """Let all go at once that have said that they are ready."""
        fresh = [process for process in self.running.values() if process.stdin and not process.stdin.closed]
        for process in fresh:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in fresh:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.close()

    def reap(self) -> list[str]:
        """Collect those that ended; return the roles of those that died, and note their deaths."""
        died = []
        for name, process in list(self.running.items()):
            if process.poll() is not None:
                del self.running[name]
                assert process.stdout is not None
                process.stdout.close()
                if process.returncode:
                    assert process.returncode in (9, -9), f"{name} failed with {process.returncode}"
                    died.append(name.rstrip("0123456789"))
                    self.deaths += 1
        return died

    def close(self) -> None:
        for process in self.running.values():
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream:
                    stream.close()


@pytest.mark.timeout(60)
def test_competing_processes_lose_and_double_nothing(engine: SyncHarness, tmp_path: Path) -> None:
    engine.transact(alter, {"max_attempts": 1_000_000})
    chance = random.Random(5)
    crowd = Crowd(engine.dsn, tmp_path)
    try:
        producers = [crowd.start("producer", MESSAGES) for _ in range(2)]
        for _ in range(RECEIVERS):
            crowd.start("mortal")
        crowd.start("consumer")
        crowd.release()

        def producers_are_done() -> bool:
            for role in crowd.reap():
                crowd.start(role if crowd.deaths < 6 else "consumer")
                crowd.release()
            if crowd.deaths < 3 and chance.random() < 0.02:
                victims = [process for name, process in crowd.running.items() if name.startswith("mortal")]
                if victims:
                    chance.choice(victims).kill()
            return all(process.returncode is not None for process in producers)

        until(producers_are_done, "the producers are done", limit=30)
        crowd.done.touch()
        until(lambda: [crowd.reap(), not crowd.running][1], "the consumers are done", limit=30)
    finally:
        crowd.close()

    history = read(tmp_path)
    history += [{"op": "died", "claims": BATCH}] * crowd.deaths
    left = [row[0] for row in engine.ask("select convert_from(body, 'utf8') from pgqrs.q_jobs")]
    assert crowd.deaths > 0
    assert check(history, left) == []
    # There was something to check.
    claims = [event for event in history if event["op"] == "claimed"]
    refused = [event for event in history if event["op"] == "settled" and not event["ok"]]
    assert len({event["key"] for event in claims}) > MESSAGES
    assert max(event["attempt"] for event in claims) > 1
    assert refused


def alter(changes: dict[str, Any]) -> Any:
    from pgqrs_core.operations.queues import alter_queue

    return alter_queue("jobs", changes)


def sound() -> list[dict[str, Any]]:
    """A history in which all is well: one message of each fate."""

    def claimed(key: str, number: int, token: int, attempt: int, at: float) -> dict[str, Any]:
        return {
            "op": "claimed",
            "key": key,
            "id": number,
            "token": token,
            "attempt": attempt,
            "lease": 1.0,
            "began": at,
            "ended": at + 0.01,
        }

    def settled(what: str, number: int, token: int, at: float, *, ok: bool = True) -> list[dict[str, Any]]:
        asked = {"what": what, "id": number, "token": token, "began": at}
        return [{"op": "settling", **asked}, {"op": "settled", **asked, "ok": ok, "ended": at + 0.01}]

    sends = [{"op": op, "key": key} for op in ("sending", "sent") for key in "abcde"]
    return [
        *sends,
        {"op": "sending", "key": "never"},
        {"op": "aborted", "key": "never"},
        claimed("a", 1, 11, 1, 0.0),
        *settled("ack", 1, 11, 0.1),
        claimed("b", 2, 21, 1, 0.0),
        *settled("nack", 2, 21, 0.1),
        claimed("b", 2, 22, 2, 0.2),
        *settled("archive", 2, 22, 0.3),
        claimed("c", 3, 31, 1, 0.0),
        claimed("c", 3, 32, 2, 1.5),
        *settled("ack", 3, 31, 1.6, ok=False),
        *settled("ack", 3, 32, 1.7),
        claimed("d", 4, 41, 1, 0.0),
        *settled("release", 4, 41, 0.1),
        claimed("d", 4, 42, 1, 0.2),
    ]


LEFT = ["d", "e"]


def changed(**wanted: Any) -> Callable[[list[dict[str, Any]]], None]:
    """Change the claims or answers with this token."""
    token, op = wanted.pop("token"), wanted.pop("op")

    def change(history: list[dict[str, Any]]) -> None:
        found = [event for event in history if event["op"] == op and event["token"] == token]
        assert found
        for event in found:
            event.update(wanted)

    return change


def without(op: str, token: int) -> Callable[[list[dict[str, Any]]], None]:
    def change(history: list[dict[str, Any]]) -> None:
        history[:] = [event for event in history if not (event["op"] == op and event.get("token") == token)]

    return change


def again(op: str, of: int, **fields: Any) -> Callable[[list[dict[str, Any]]], None]:
    """Let something happen a second time, with a difference."""

    def change(history: list[dict[str, Any]]) -> None:
        history += [{**event, **fields} for event in history if event["op"] == op and event["token"] == of]

    return change


def both(*changes: Callable[[list[dict[str, Any]]], None]) -> Callable[[list[dict[str, Any]]], None]:
    def change(history: list[dict[str, Any]]) -> None:
        for one in changes:
            one(history)

    return change


class TestChecker:
    def test_it_finds_nothing_wrong_with_a_sound_history(self) -> None:
        assert check(sound(), LEFT) == []

    @pytest.mark.parametrize(
        ("verdict", "change", "left"),
        [
            ("LOST e", lambda _: None, ["d"]),
            ("LOST a", changed(op="settled", token=11, ok=False), LEFT),
            ("UNEXPECTED z", lambda _: None, [*LEFT, "z"]),
            ("PHANTOM never", lambda _: None, [*LEFT, "never"]),
            ("STORED TWICE e", lambda _: None, [*LEFT, "e"]),
            ("STORED TWICE b", changed(op="claimed", token=22, id=9), [*LEFT, "b"]),
            ("DOUBLED c", changed(op="claimed", token=32, began=0.5, ended=0.6), LEFT),
            ("DOUBLED b", both(without("settling", 21), without("settled", 21)), LEFT),
            ("STALE LEASE ACCEPTED c", changed(op="settled", token=31, ok=True), LEFT),
            ("SETTLED TWICE a", again("settled", 11, what="release"), LEFT),
            ("RESURRECTED a", lambda _: None, [*LEFT, "a"]),
            ("RESURRECTED a", again("claimed", 11, token=12, attempt=2, began=5.0, ended=5.1), LEFT),
            ("ATTEMPTS c", changed(op="claimed", token=32, attempt=1), LEFT),
            ("ATTEMPTS", changed(op="claimed", token=32, attempt=3), LEFT),
            ("ATTEMPTS", changed(op="claimed", token=42, attempt=2), LEFT),
        ],
        ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
    )
    def test_it_finds_what_is_wrong_with_a_broken_one(
        self, verdict: str, change: Callable[[list[dict[str, Any]]], None], left: list[str]
    ) -> None:
        history = sound()
        change(history)

        found = check(history, left)

        assert any(line.startswith(verdict) for line in found), found

    @pytest.mark.parametrize(
        ("change", "left"),
        [
            pytest.param(without("settled", 22), LEFT, id="an ack whose answer it did not live to see"),
            pytest.param(
                both(
                    without("settling", 32),
                    without("settled", 32),
                    again("claimed", 32, token=33, attempt=3, began=9.0, ended=9.1),
                ),
                [*LEFT, "c"],
                id="a lease that it took with it",
            ),
        ],
    )
    def test_it_allows_for_what_the_dead_did_not_do(
        self, change: Callable[[list[dict[str, Any]]], None], left: list[str]
    ) -> None:
        history = sound()
        change(history)

        assert check(history, left) == []

    def test_it_allows_for_claims_that_the_dead_did_not_note(self) -> None:
        history = sound()
        changed(op="claimed", token=32, attempt=3)(history)

        assert check([*history, {"op": "died", "claims": 1}], LEFT) == []

    def test_a_line_that_was_cut_off_is_no_event(self, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").write_text(json.dumps({"op": "sent", "key": "a"}) + '\n{"op": "se')

        assert read(tmp_path) == [{"op": "sent", "key": "a"}]
