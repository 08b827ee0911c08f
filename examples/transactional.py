"""Commit messages and acks together with your own rows, through SQLAlchemy.

Needs DATABASE_URL and SQLAlchemy. Prints::

    rolled back: 0 orders, no message
    committed: 1 orders, message for order 1
    handled: invoice for order 1, nothing left
"""

import os

import psycopg
from pgqrs_native import Client
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

QUEUE = "example_transactional"
url = os.environ["DATABASE_URL"]
# Any way to connect will do; this one takes every form of DATABASE_URL.
engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(url))


def place_order(client: Client, session: Session, number: int) -> None:
    """Store an order and announce it: both or neither."""
    session.execute(text("insert into example_orders values (:number)"), {"number": number})
    client.producer.enqueue(QUEUE, {"order": number}, connection=session)


with Client(url) as client, Session(engine) as session:
    client.admin.install()
    client.admin.create_queue(QUEUE)
    for name in ("orders", "invoices"):
        session.execute(text(f"create table if not exists example_{name} (number int)"))
    session.commit()

    place_order(client, session, 1)
    session.rollback()
    count = session.scalar(text("select count(*) from example_orders"))
    print(f"rolled back: {count} orders,", "no message" if client.consumer.read(QUEUE) is None else "a message")

    place_order(client, session, 1)
    session.commit()
    message = client.consumer.read(QUEUE, wait=5)
    count = session.scalar(text("select count(*) from example_orders"))
    print(f"committed: {count} orders, message for order {message.payload['order']}")

    # Exactly once: the invoice and the ack happen together, or neither does.
    session.execute(text("insert into example_invoices values (:order)"), message.payload)
    client.consumer.dequeue(message, connection=session)
    session.commit()
    invoiced = session.scalar(text("select number from example_invoices"))
    print(f"handled: invoice for order {invoiced},", "nothing left" if not client.admin.peek(QUEUE) else "?")

    client.admin.delete_queue(QUEUE)
    session.execute(text("drop table example_orders, example_invoices"))
    session.commit()
engine.dispose()
