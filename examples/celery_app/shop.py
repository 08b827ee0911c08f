"""A web-like producer: what it publishes is sent if, and only if, its own transaction commits.

Needs a worker and beat, see tasks.py.

Prints::

    order 1 costs 12, as its row says: 12
    order 1 is due
    it was reminded in time: True
    order 2 was rolled back; its reminder: PENDING
    beat has counted the orders: True
"""

import contextlib
import time
import uuid

import psycopg
from celery import chord
from pgqrs_kombu import in_transaction
from tasks import DATABASE, price, remind, save_total

TABLES = """
create table if not exists orders (order_id int primary key, total int);
create table if not exists counts (orders int)
"""


def place_order(connection, order_id, items, *, reminder, fail=False):
    """Handle one request: the order and everything that is to be done for it, in one transaction."""
    with connection.transaction():
        connection.execute("insert into orders values (%s)", [order_id])
        with in_transaction(connection):
            # Priced in parallel; the database counts, and sends the body with the last one.
            total = chord([price.s(item) for item in items], save_total.s(order_id)).delay()
            # Kept by the database until it is due, not by a worker.
            remind.apply_async([order_id], countdown=2, task_id=reminder)
        if fail:
            raise ValueError("the card was refused")
    return total


with psycopg.connect(DATABASE, autocommit=True) as connection:
    connection.execute(TABLES)
    kept, lost, began = uuid.uuid4().hex, uuid.uuid4().hex, time.time()

    total = place_order(connection, 1, ["apple", "pear", "plum"], reminder=kept)
    with contextlib.suppress(ValueError):
        place_order(connection, 2, ["apple"], reminder=lost, fail=True)

    cost = total.get(timeout=30)
    row = connection.execute("select total from orders where order_id = 1").fetchone()
    print(f"order 1 costs {cost}, as its row says: {row[0]}")
    print(remind.AsyncResult(kept).get(timeout=30))
    print(f"it was reminded in time: {time.time() - began >= 2}")
    print(f"order 2 was rolled back; its reminder: {remind.AsyncResult(lost).state}")
    while not (seen := connection.execute("select count(*) from counts where orders = 1").fetchone()[0]):
        time.sleep(0.1)
    print(f"beat has counted the orders: {seen > 0}")
    connection.execute("drop table orders, counts")
