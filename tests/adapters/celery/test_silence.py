"""A worker beside a server that has gone silent ends within seconds when it is told to."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import pytest

from pgqrs_core.testing import Proxy, eventually
from tests.support.versions import needs_celery_57

from .celery_support import Workers


@needs_celery_57  # Before, it sends its last events several times, and each waits for the server.
@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_cold_stop_beside_a_server_that_has_gone_silent_takes_seconds(
    make_crew: Callable[[str], Workers], pgqrs_dsn: str, pool: str
) -> None:
    with Proxy(pgqrs_dsn) as proxy:
        crew = make_crew(proxy.dsn)
        worker = crew.start(pool, "-c", "1", "-E")
        crew.tasks.say.delay("before")
        crew.wait_for("say before")
        proxy.freeze()
        proxy.refuses = True
        # Into the midst of a heartbeat, which it sends every two seconds.
        since = time.monotonic()
        eventually(lambda: time.monotonic() > since + 2.5)
        began = time.monotonic()

        os.kill(worker.process.pid, signal.SIGQUIT)
        worker.process.wait(60)

        assert time.monotonic() - began < 30
        # The application of the test itself has connections that hang.
        proxy.cut()
