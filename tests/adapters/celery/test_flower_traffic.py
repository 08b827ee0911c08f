"""What Flower does all day: one receiver of events, and many short commands with replies, each by a queue of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pgqrs_core.testing import eventually
from tests.support.own_server import own_server

from .celery_support import Workers


def test_the_servers_log_stays_free_of_errors_beside_it(
    make_crew: Callable[[str], Workers], pgqrs_bindir: Path
) -> None:
    with own_server(pgqrs_bindir) as server:
        crew = make_crew(server.dsn)
        crew.start("threads", "-c", "2", "-E")
        app, events, stop, answers = crew.app, [], threading.Event(), []

        def on_event(event: Any) -> None:
            events.append(event["type"])
            receiver.should_stop = stop.is_set()

        def receive() -> None:
            receiver.capture(limit=None, timeout=None, wakeup=True)

        def ping() -> None:
            for _ in range(5):
                answers.append(app.control.ping(timeout=0.3))
                answers.append(app.control.inspect(timeout=0.3).active_queues())

        with app.connection() as connection:
            receiver = app.events.Receiver(connection, handlers={"*": on_event})
            threads = [threading.Thread(target=receive), *(threading.Thread(target=ping) for _ in range(4))]
            for thread in threads:
                thread.start()
            for thread in threads[1:]:
                thread.join()
            crew.tasks.say.delay("seen")
            # Half a dozen polls with nobody pinging any more.
            seen = len(events)
            eventually(lambda: "task-succeeded" in events and len(events) > seen + 3, 20)
            stop.set()
            threads[0].join(10)

        assert sum(map(bool, answers)) > len(answers) / 2
        assert server.errors() == []
