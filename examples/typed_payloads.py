r"""Send and receive dataclasses, Structs, TypedDicts, plain JSON and bytes; see what happens when they do not fit.

Needs DATABASE_URL. Prints::

    Email(to='ada@example.org')
    Order(number=7)
    {'text': 'hello'}
    {'any': [1, 2.5, None]}
    b'\x00\xff'
    the payload does not fit Email: field 'to': Expected `str`, got `int`
    nothing to read, dead for field 'to'
"""

from dataclasses import dataclass
from typing import TypedDict

import msgspec
from pgqrs_native import Client

QUEUE = "example_typed_payloads"


@dataclass
class Email:
    """A dataclass; of several handlers of one queue, its name finds the one to call."""

    to: str


class Order(msgspec.Struct):
    """A Struct: like a dataclass, several times as fast."""

    number: int


class Note(TypedDict):
    """A TypedDict: a plain dict at run time, checked when it is read."""

    text: str


with Client() as client:
    client.admin.install()
    client.admin.create_queue(QUEUE)
    sent = Email("ada@example.org"), Order(7), Note(text="hello"), {"any": [1, 2.5, None]}, b"\x00\xff"
    client.producer.batch_enqueue(QUEUE, sent)
    for kind in (Email, Order, Note, dict, bytes):
        with client.consumer.lease(QUEUE, kind) as message:
            print(message.payload)

    # The reader chooses: have the misfit returned …
    client.producer.enqueue(QUEUE, {"to": 5})
    misfit = client.consumer.read(QUEUE, Email, mismatch="return")
    print(misfit.error)
    client.consumer.release(misfit)
    # … or buried, so that the rest of a batch is delivered.
    assert client.consumer.read_batch(QUEUE, Email) == []
    print(f"nothing to read, dead for field {client.admin.list_dead(QUEUE)[0].error['field']!r}")
    client.admin.delete_queue(QUEUE)
