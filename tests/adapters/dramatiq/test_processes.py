"""Real ``dramatiq`` processes: what they run and when, killed, stopped, reloaded, and beside each other."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request

import dramatiq
import psutil
import pytest
from dramatiq.encoder import PickleEncoder
from dramatiq.results import ResultFailure

from pgqrs_core.testing import PATIENCE, eventually

from .dramatiq_support import Workers


def times_of(crew: Workers, word: str) -> list[float]:
    return sorted(float(line.split()[1]) for line in crew.notes().elements() if line.startswith(f"{word} "))


def done(crew: Workers, count: int, prefix: str = "") -> bool:
    return sum(value for line, value in crew.notes().items() if line.startswith(prefix)) >= count


@pytest.mark.parametrize("start", [(), ("--use-spawn",)], ids=["fork", "spawn"])
def test_processes_and_threads_share_the_work_and_each_message_runs_once(crew: Workers, start: tuple[str, ...]) -> None:
    crew.broker.declare_queue("default")
    crew.broker.enqueue_many([dramatiq.Message("default", "say", (f"word {n}",), {}, {}) for n in range(500)])
    crew.start(*start, processes=2)

    eventually(lambda: done(crew, 500))
    crew.broker.join("default", timeout=20_000)

    assert set(crew.notes().values()) == {1}


def test_immediate_and_delayed_retries_come_when_they_should(crew: Workers) -> None:
    crew.start()
    crew.send("fail", "failing")
    crew.send("again", "again")

    eventually(lambda: len(times_of(crew, "failing")) == 12 and len(times_of(crew, "again")) == 2)
    crew.broker.join("default", timeout=20_000)

    failing, again = times_of(crew, "failing"), times_of(crew, "again")
    assert len(failing) == 12
    # It takes a tenth of that here; other tests may be running.
    assert failing[-1] - failing[0] < 1.0
    assert 0.099 <= again[1] - again[0] < 0.6
    assert [reason["type"] for reason in crew.station.dead()] == ["ValueError"]


def test_a_queue_that_is_not_asked_for_is_left_to_others(crew: Workers) -> None:
    crew.start("--queues", "other")
    crew.send("say", "default")
    crew.send("say_other", "word", queue="other")

    crew.wait_for("other word")
    crew.broker.join("other", timeout=20_000)

    assert crew.notes() == {"other word": 1}
    assert crew.station.rows() == 1


def test_what_a_killed_worker_held_comes_again_after_its_lease(crew: Workers) -> None:
    first = crew.start(lease="2", threads=2)
    crew.send("work", "slow", 60)
    eventually(lambda: done(crew, 1, "begin slow"))
    crew.send("say", "quick")
    crew.wait_for("quick")
    # Acks are written a moment later.
    eventually(lambda: crew.station.sql("select count(*) from pgqrs.q_default") == [(1,)])
    first.kill()
    crew.start(lease="2", name="two")

    eventually(lambda: done(crew, 2, "begin slow"), 2 + 5 + PATIENCE / 3)

    assert crew.station.sql("select attempt from pgqrs.q_default") == [(2,)]


def test_a_task_that_is_longer_than_its_lease_runs_once(crew: Workers) -> None:
    crew.start(lease="1", processes=2)
    crew.send("work", "slow", 3)

    crew.wait_for("end slow")
    crew.broker.join("default", timeout=20_000)

    assert sum(value for line, value in crew.notes().items() if line.startswith("begin")) == 1


def test_a_stopping_worker_gives_back_at_once_what_it_has_not_begun(crew: Workers) -> None:
    first = crew.start(threads=1)
    crew.send("work", "long", 3)
    eventually(lambda: done(crew, 1, "begin long"))
    for word in ("a", "b"):
        crew.send("say", word)
    held = "select count(*) from pgqrs.q_default where lease_until > now()"
    # One runs, one is prefetched.
    eventually(lambda: crew.station.sql(held)[0][0] >= 2)

    first.process.send_signal(signal.SIGTERM)

    eventually(lambda: crew.station.sql(held) == [(1,)], 2.5)
    assert "end long" not in crew.notes()
    assert first.process.wait(PATIENCE) == 0, first.log
    assert "end long" in crew.notes()
    assert crew.station.sql(held) == [(0,)]
    assert crew.station.sql("select attempt from pgqrs.q_default") == [(0,), (0,)]
    assert "Traceback" not in first.log


def test_an_idle_worker_stops_at_once_and_leaves_nothing_behind(crew: Workers) -> None:
    process = crew.start()
    crew.send("say", "word")
    crew.wait_for("word")

    assert process.stop() < 10
    assert crew.station.rows() == 0
    assert crew.station.sql("select count(*) from pgqrs.waiters") == [(0,)]


def test_a_reload_loses_nothing(crew: Workers) -> None:
    process = crew.start()
    crew.send("say", "before")
    crew.send("say", "late", delay=2_000)
    crew.wait_for("before")

    process.process.send_signal(signal.SIGHUP)
    crew.send("say", "after")

    crew.wait_for("after", "late")
    assert set(crew.notes().values()) == {1}


def test_a_message_that_kills_its_worker_does_not_do_so_for_ever(crew: Workers) -> None:
    crew.send("die", "died")
    crew.station.sql("update pgqrs.queues set options = (options::jsonb || '{\"max_attempts\": 2}')::json")
    for name in ("one", "two", "three"):
        crew.start(name=name, lease="1", processes=1)
        if name != "three":
            eventually(lambda name=name: crew.notes()["died"] == ("one", "two").index(name) + 1)
            eventually(lambda: crew.processes[-1].process.poll() is not None)
            crew.station.let_leases_end()

    eventually(lambda: [reason["type"] for reason in crew.station.dead()] == ["AttemptsExhausted"])
    assert crew.notes()["died"] == 2


@pytest.mark.parametrize("encoder", ["json", "pickle"])
def test_async_actors_return_results_to_another_process(crew: Workers, encoder: str) -> None:
    before = dramatiq.get_encoder()
    if encoder == "pickle":
        dramatiq.set_encoder(PickleEncoder())
    try:
        results = crew.station.results()
        crew.start(encoder=encoder)
        assert crew.send("add", 1, 2).get_result(backend=results, block=True, timeout=20_000) == 3
        with pytest.raises(ResultFailure, match="ValueError: broken"):
            crew.send("broken").get_result(backend=results, block=True, timeout=20_000)
    finally:
        dramatiq.set_encoder(before)


def test_dead_letters_are_listed_and_replayed_by_the_command(crew: Workers) -> None:
    pytest.importorskip("typer")
    crew.start()
    sent = crew.send("broken")
    eventually(lambda: crew.broker.get_queue_message_counts("default") == (0, 0, 1))

    def pgqrs(*arguments: str) -> str:
        command = [sys.executable, "-c", "from pgqrs_native.command import main; main()", *arguments]
        environment = {**crew.environment, "DATABASE_URL": crew.station.dsn}
        return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout

    (letter,) = json.loads(pgqrs("--json", "dead", "list", "default"))
    assert letter["headers"] == {"actor": "broken", "message_id": sent.message_id}
    assert letter["error"]["type"] == "ValueError"
    assert "raise ValueError" in letter["error"]["traceback"]

    (died,) = crew.station.sql("select due_at from pgqrs.q_default")

    pgqrs("dead", "replay", "default", "--all")

    # It ran, and died, once more.
    again = "select 1 from pgqrs.q_default where lane = -100 and due_at > %s"
    eventually(lambda: crew.station.sql(again, died[0]))


def test_forks_run_beside_the_workers(crew: Workers) -> None:
    process = crew.start(forks="1")

    crew.wait_for("fork")
    crew.send("say", "word")
    crew.wait_for("word")

    process.stop()


def test_prometheus_counts_by_queue(crew: Workers, tmp_path: object) -> None:
    pytest.importorskip("prometheus_client")
    crew.environment.update(dramatiq_prom_port="19191", dramatiq_prom_db=f"{tmp_path}/prom")
    crew.start(prometheus="1")
    crew.send("say", "word")
    crew.send("say", "later", delay=200)
    crew.wait_for("word", "later")

    def metrics() -> str:
        with urllib.request.urlopen("http://127.0.0.1:19191/metrics") as answer:
            return answer.read().decode()

    eventually(lambda: 'dramatiq_messages_total{actor_name="say",queue_name="default"} 2.0' in metrics())
    assert 'dramatiq_messages_inprogress{actor_name="say",queue_name="default"} 0.0' in metrics()
    # Nothing waits in a worker's memory.
    delayed = [line for line in metrics().splitlines() if line.startswith("dramatiq_delayed_messages_inprogress")]
    assert all(line.endswith(" 0.0") for line in delayed)


def test_greenlets_run_messages_too(crew: Workers) -> None:
    pytest.importorskip("gevent")
    script = crew.directory / "gevent_main.py"
    script.write_text(
        "import sys\nfrom gevent import monkey\nmonkey.patch_all()\n"
        "from dramatiq.cli import make_argument_parser, main\nsys.exit(main(make_argument_parser().parse_args()))\n"
    )
    crew.environment["PYTHONPATH"] += os.pathsep + str(crew.directory)
    crew.command = "gevent_main"
    worker = crew.start(threads=20)
    for number in range(40):
        crew.send("work", f"{number}", 0.5)
    crew.send("fail", "failing")

    eventually(lambda: done(crew, 40, "end"))
    eventually(lambda: len(times_of(crew, "failing")) == 12)
    crew.broker.join("default", timeout=20_000)
    worker.stop()


def test_a_worker_does_not_grow_with_what_is_delayed(crew: Workers) -> None:
    process = crew.start()
    crew.send("say", "first")
    crew.wait_for("first")

    def memory() -> int:
        return sum(child.memory_info().rss for child in psutil.Process(process.process.pid).children(recursive=True))

    before = memory()
    crew.station.sql(
        "insert into pgqrs.q_default (lane, due_at, body) "
        "select -1, now() + interval '1 day', convert_to(repeat('x', 200), 'utf8') from generate_series(1, 100000)"
    )
    crew.send("say", "second", delay=300)
    crew.wait_for("second")

    assert memory() - before < 8_000_000
