"""Handle many messages per call, and answer for each of them.

Needs DATABASE_URL. Prints::

    stored 98 readings in batches of at most 40
    dead: reading 13: no number
    dead: reading 77: no number
"""

from collections.abc import Sequence

from pgqrs_native import Client, Message, Reject, Worker

QUEUE = "example_batch_worker"
stored: list[float] = []
sizes: list[int] = []

with Client() as client:
    client.admin.install()
    client.admin.create_queue(QUEUE)
    worker = Worker(client, concurrency=1, prefetch=200)

    @worker.batch_handler(QUEUE, dict, count=40)
    def store(messages: Sequence[Message[dict]]) -> list[Exception | None]:
        """Answer None to ack a message, an exception to fail it; the others are not touched by that."""
        sizes.append(len(messages))
        outcomes: list[Exception | None] = []
        for message in messages:
            value = message.payload["value"]
            if value is None:
                outcomes.append(Reject(f"reading {message.payload['id']}: no number"))
            else:
                stored.append(value)
                outcomes.append(None)
        if sum(sizes) == 100:
            worker.stop()
        return outcomes

    readings = [{"id": n, "value": None if n in (13, 77) else n / 10} for n in range(100)]
    client.producer.batch_enqueue(QUEUE, readings)
    worker.run()

    assert max(sizes) <= 40
    print(f"stored {len(stored)} readings in batches of at most 40")
    for dead in sorted(client.admin.list_dead(QUEUE), key=lambda dead: dead.id):
        print(f"dead: {dead.error['message']}")
    client.admin.delete_queue(QUEUE)
