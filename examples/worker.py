"""Run handlers on threads: one per message type, with retries and rejections.

Needs DATABASE_URL. A real worker runs until SIGTERM or SIGINT; this one stops after its last message. Prints::

    welcome Ada
    the printer is busy, attempt 1
    printed 12 pages, attempt 2
    dead: Reject: no such user: Eve
"""

from dataclasses import dataclass

from pgqrs_native import Client, Message, Reject, Retry, Worker

QUEUE = "example_worker"
client = Client()
# One handler at a time keeps this output in order; the default is 8.
worker = Worker(client, concurrency=1, shutdown_timeout=10)


@dataclass
class Welcome:
    """Greet somebody."""

    name: str


@dataclass
class Print:
    """Print some pages."""

    pages: int


@worker.handler(QUEUE, Welcome)
def welcome(message: Message[Welcome]) -> None:
    """Reject what can never work: it is dead at once."""
    if message.payload.name == "Eve":
        raise Reject("no such user: Eve")
    print(f"welcome {message.payload.name}")


@worker.handler(QUEUE, Print)
def print_pages(message: Message[Print]) -> None:
    """Ask for another try; any other exception does that too, with the queue's back-off."""
    if message.attempt == 1:
        print("the printer is busy, attempt 1")
        raise Retry("busy", delay=0.2)
    print(f"printed {message.payload.pages} pages, attempt {message.attempt}")
    worker.stop()


with client:
    client.admin.install()
    client.admin.create_queue(QUEUE, max_attempts=5)
    client.producer.batch_enqueue(QUEUE, [Welcome("Ada"), Print(12), Welcome("Eve")])
    worker.run()
    print("dead: {type}: {message}".format(**client.admin.list_dead(QUEUE)[0].error))
    client.admin.delete_queue(QUEUE)
