"""A web-like producer: what it enqueues is sent if, and only if, its own transaction commits.

Needs a worker, see tasks.py.

Prints::

    order 1 costs [3, 4, 5]
    its items were priced: True
    with tax a pear is 5
    order 1 is due
    it was reminded in time: True
    the reminder of order 2 was never sent: True
    a dead letter: RuntimeError: order 1 was never paid
"""

import contextlib
import time

import dramatiq
import psycopg
from dramatiq.results import ResultMissing
from pgqrs_native import Client
from tasks import DATABASE, broker, price, priced, refund, remind, with_tax

TABLE = "create table if not exists orders (order_id int primary key, priced bool not null default false)"


def place_order(connection, order_id, items, *, fail=False):
    """Handle one request: the order and everything that is to be done for it, in one transaction."""
    with connection.transaction(), broker.transaction(connection):
        connection.execute("insert into orders (order_id) values (%s)", [order_id])
        # Kept by the database until it is due, not by a worker.
        reminder = remind.send_with_options(args=[order_id], delay=2000)
        group = dramatiq.group(price.message(item) for item in items)
        group.add_completion_callback(priced.message(order_id))
        orders.append((group.run(), reminder))
        if fail:
            raise ValueError("the card was refused")


orders = []
with psycopg.connect(DATABASE, autocommit=True) as connection, Client(DATABASE) as client:
    connection.execute(TABLE)
    began = time.time()
    place_order(connection, 1, ["apple", "pear", "plum"])
    with contextlib.suppress(ValueError):
        place_order(connection, 2, ["apple"], fail=True)

    (group, reminder), (_, lost) = orders
    print(f"order 1 costs {list(group.get_results(block=True, timeout=30_000))}")
    broker.join("default", timeout=30_000)
    print(f"its items were priced: {connection.execute('select priced from orders').fetchall() == [(True,)]}")

    pipeline = (price.message("pear") | with_tax.message()).run()
    print(f"with tax a pear is {pipeline.get_result(block=True, timeout=30_000)}")

    print(reminder.get_result(block=True, timeout=30_000))
    print(f"it was reminded in time: {time.time() - began >= 2}")
    with contextlib.suppress(ResultMissing):
        lost.get_result()
        raise SystemExit("the order was rolled back, and its reminder was not")
    print("the reminder of order 2 was never sent: True")

    refund.send(1)
    broker.join("default", timeout=30_000)
    (dead,) = client.admin.list_dead("default")
    print(f"a dead letter: {dead.error['type']}: {dead.error['message']}")
    client.admin.purge_dead("default")
    connection.execute("drop table orders")
broker.close()
