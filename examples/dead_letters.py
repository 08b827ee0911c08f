"""See why messages died, repair the cause, replay them.

Needs DATABASE_URL. Prints::

    2 attempts each, then dead
    message 1: ZeroDivisionError: division by zero, in `divide`
    message 2: ZeroDivisionError: division by zero, in `divide`
    replayed 1, purged 1
    after the repair: 10 / 0 = inf
"""

import math

from pgqrs_native import Client

QUEUE = "example_dead_letters"


def divide(by: float) -> float:
    """Fail for some messages."""
    return 10 / by


with Client() as client:
    client.admin.install()
    client.admin.create_queue(QUEUE, max_attempts=2, backoff_base=0)
    client.producer.batch_enqueue(QUEUE, [{"by": 0}, {"by": 0}])

    attempts = 0
    while client.admin.queue_metrics(QUEUE).dead < 2:
        try:
            with client.consumer.lease(QUEUE, wait=5) as message:
                if message is not None:
                    attempts += 1
                    divide(message.payload["by"])
        except ZeroDivisionError:
            pass  # the handle has noted it
    print(f"{attempts // 2} attempts each, then dead")

    dead = sorted(client.admin.list_dead(QUEUE), key=lambda one: one.id)
    for number, one in enumerate(dead, 1):
        where = "divide" if "in divide" in one.error["traceback"] else "?"
        print(f"message {number}: {one.error['type']}: {one.error['message']}, in `{where}`")

    replayed = client.admin.replay_dead(QUEUE, [dead[0].id])
    purged = client.admin.purge_dead(QUEUE)
    print(f"replayed {replayed}, purged {purged}")

    message = client.consumer.read(QUEUE)
    by = message.payload["by"]
    print(f"after the repair: 10 / {by} = {divide(by) if by else math.inf}")
    client.consumer.dequeue(message)
    client.admin.delete_queue(QUEUE)
