"""A shop's tasks.

Start a worker and beat in this folder::

    export SHOP_DATABASE=postgresql://app:secret@localhost/shop
    celery -A tasks worker --concurrency 2
    celery -A tasks beat
"""

import os

import psycopg
from celery import Celery

DATABASE = os.environ["SHOP_DATABASE"]
# The same server, as Celery's addresses spell it.
PGQRS = DATABASE.replace("postgresql://", "pgqrs://", 1)

app = Celery("shop", broker=PGQRS, backend=PGQRS)
app.conf.beat_schedule = {"every-second": {"task": "tasks.count_orders", "schedule": 1.0}}
app.conf.task_acks_late = True

PRICES = {"apple": 3, "pear": 4, "plum": 5}


@app.task
def price(item):
    """Look up what an item costs."""
    return PRICES[item]


@app.task
def save_total(prices, order_id):
    """Write the sum into the row of the order."""
    with psycopg.connect(DATABASE) as connection:
        connection.execute("update orders set total = %s where order_id = %s", [sum(prices), order_id])
    return sum(prices)


@app.task
def remind(order_id):
    """Say that the time has come."""
    return f"order {order_id} is due"


@app.task
def count_orders():
    """Write down how many orders there are."""
    with psycopg.connect(DATABASE) as connection:
        connection.execute("insert into counts select count(*) from orders")
