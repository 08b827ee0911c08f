"""A consumer process that waits on ten queues and does nothing else: what the scenario ``idle`` looks at.

    python -m benchmarks.idle_consumer threads|worker DSN QUEUE...

Prints a line when everything waits, and ends with its standard input. Imports no more than an application would.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence

from pgqrs_native import Client


def _wait_in_threads(client: Client, queues: Sequence[str]) -> None:
    def wait(queue: str) -> None:
        while True:
            for message in client.consumer.read_batch(queue, count=10, wait=3600):
                client.consumer.dequeue(message)

    for queue in queues:
        threading.Thread(target=wait, args=(queue,), daemon=True).start()


def _run_worker(client: Client, queues: Sequence[str]) -> None:
    import pgqrs_native

    worker = pgqrs_native.Worker(client)
    for queue in queues:
        worker.handler(queue)(lambda message: None)
    threading.Thread(target=worker.run, daemon=True).start()


def main(kind: str, dsn: str, *queues: str) -> None:
    """Wait until standard input ends."""
    client = Client(dsn)
    (_wait_in_threads if kind == "threads" else _run_worker)(client, queues)
    print("waiting", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
