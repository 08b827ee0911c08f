"""Send, read and settle messages with the blocking client.

Needs DATABASE_URL. Prints::

    sent 3 messages
    ada@example.org, attempt 1
    bob@example.org, attempt 1
    eve@example.org: address refused
    ready 0, dead 1, archived 1
"""

from dataclasses import dataclass

from pgqrs_native import Client


@dataclass
class Email:
    """What travels in the queue."""

    to: str


def deliver(email: Email, attempt: int) -> None:
    """Stand in for real work."""
    if email.to.startswith("eve"):
        raise ValueError("address refused")
    print(f"{email.to}, attempt {attempt}")


with Client() as client:
    client.admin.install()
    client.admin.create_queue("example_native_sync", max_attempts=1)

    emails = [Email(f"{name}@example.org") for name in ("ada", "bob", "eve")]
    ids = client.producer.batch_enqueue("example_native_sync", emails)
    print(f"sent {len(ids)} messages")

    # By hand: what is neither acked nor archived comes back when its lease ends.
    first = client.consumer.read("example_native_sync", Email, lock_time=30, wait=5)
    if first is not None:
        deliver(first.payload, first.attempt)
        client.consumer.archive(first)

    # As a block: acked at its end, nacked when it raises, and the lease renews itself meanwhile.
    for _ in range(2):
        try:
            with client.consumer.lease("example_native_sync", Email) as message:
                if message is not None:
                    deliver(message.payload, message.attempt)
        except ValueError as error:
            print(f"eve@example.org: {error}")

    found = client.admin.queue_metrics("example_native_sync")
    print(f"ready {found.ready}, dead {found.dead}, archived {found.archived}")
    client.admin.delete_queue("example_native_sync")
