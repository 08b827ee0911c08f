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


@dataclass
class Welcome:
    name: str


@dataclass
class Print:
    pages: int


client = Client()
client.admin.install()
client.admin.create_queue(QUEUE, max_attempts=5, lease_seconds=30)
# One handler at a time keeps this output in order; the default is 8.
worker = Worker(client, concurrency=1, shutdown_timeout=10)


@worker.handler(QUEUE, Welcome)
def welcome(message: Message[Welcome]) -> None:
    if message.payload.name == "Eve":
        raise Reject("no such user: Eve")  # dead at once
    print(f"welcome {message.payload.name}")


@worker.handler(QUEUE, Print)
def print_pages(message: Message[Print]) -> None:
    if message.attempt == 1:
        print("the printer is busy, attempt 1")
        raise Retry("busy", delay=0.2)  # any other exception retries too, with the queue's back-off
    print(f"printed {message.payload.pages} pages, attempt {message.attempt}")
    worker.stop()


client.producer.batch_enqueue(QUEUE, [Welcome("Ada"), Print(12), Welcome("Eve")])
worker.run()

for dead in client.admin.list_dead(QUEUE):
    print(f"dead: {dead.error['type']}: {dead.error['message']}")
client.admin.delete_queue(QUEUE)
client.close()
