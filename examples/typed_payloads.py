"""Send and receive dataclasses, Structs, TypedDicts, plain JSON and bytes; see what happens when they do not fit.

Needs DATABASE_URL. Prints::

    Email(to='ada@example.org', copies=1)
    Order(number=7, items=['tea', 'cup'])
    {'text': 'hello', 'stars': 5}
    {'any': [1, 2.5, None]}
    b'\\x00\\xff'
    Email does not fit: field 'to': Expected `str`, got `int`
    dead: field 'to'
"""

from dataclasses import dataclass
from typing import Any, TypedDict

import msgspec
from pgqrs_native import Client

from pgqrs_core.errors import PayloadMismatch

QUEUE = "example_typed_payloads"


@dataclass
class Email:
    to: str
    copies: int = 1


class Order(msgspec.Struct):
    number: int
    items: list[str]


class Note(TypedDict):
    text: str
    stars: int


with Client() as client:
    client.admin.install()
    client.admin.create_queue(QUEUE)
    kinds: list[Any] = [Email, Order, Note, dict, bytes]
    note: Note = {"text": "hello", "stars": 5}
    payloads = [Email("ada@example.org"), Order(7, ["tea", "cup"]), note, {"any": [1, 2.5, None]}, b"\x00\xff"]
    client.producer.batch_enqueue(QUEUE, payloads)
    for kind in kinds:
        message = client.consumer.read(QUEUE, kind)
        print(message.payload)
        client.consumer.dequeue(message)

    # The reader chooses: have the misfit returned …
    client.producer.enqueue(QUEUE, {"to": 5})
    misfit = client.consumer.read(QUEUE, Email, mismatch="return")
    if isinstance(misfit.error, PayloadMismatch):
        print(f"{misfit.error.type_name} does not fit: field {misfit.error.field!r}: {misfit.error.reason}")
    client.consumer.release(misfit)

    # … or buried, so that the rest of a batch is delivered.
    assert client.consumer.read_batch(QUEUE, Email) == []
    print(f"dead: field {client.admin.list_dead(QUEUE)[0].error['field']!r}")
    client.admin.delete_queue(QUEUE)
