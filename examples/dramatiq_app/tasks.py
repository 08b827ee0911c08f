"""A shop's actors.

Start a worker in this folder::

    export SHOP_DATABASE=postgresql://app:secret@localhost/shop
    dramatiq tasks --processes 1 --threads 4
"""

import os

import dramatiq
import psycopg
from dramatiq.middleware import CurrentMessage, GroupCallbacks
from dramatiq.rate_limits import ConcurrentRateLimiter
from dramatiq.results import Results
from pgqrs_dramatiq import PgqrsBroker, PgqrsRateLimiterBackend, PgqrsResultBackend

DATABASE = os.environ["SHOP_DATABASE"]

limits = PgqrsRateLimiterBackend(url=DATABASE)
broker = PgqrsBroker(url=DATABASE)
broker.add_middleware(Results(backend=PgqrsResultBackend(url=DATABASE)))
broker.add_middleware(GroupCallbacks(limits))
broker.add_middleware(CurrentMessage())
dramatiq.set_broker(broker)

PRICES = {"apple": 3, "pear": 4, "plum": 5}
ONE_AT_A_TIME = ConcurrentRateLimiter(limits, "warehouse", limit=1)


@dramatiq.actor(store_results=True)
def price(item):
    """Look up what an item costs."""
    return PRICES[item]


@dramatiq.actor(store_results=True)
def with_tax(amount):
    """Add a quarter."""
    return amount * 5 // 4


@dramatiq.actor
def priced(order_id):
    """All items of an order have a price."""
    with psycopg.connect(DATABASE) as connection:
        connection.execute("update orders set priced = true where order_id = %s", [order_id])


@dramatiq.actor(store_results=True, broker_priority=9, max_retries=3)
def remind(order_id):
    """Say that the time has come, at the second attempt."""
    with ONE_AT_A_TIME.acquire():
        if not CurrentMessage.get_current_message().options.get("retries"):
            raise dramatiq.Retry("the warehouse was busy", delay=100)
    return f"order {order_id} is due"


@dramatiq.actor(max_retries=0)
def refund(order_id):
    """Fail for good: what becomes of that is for people to decide."""
    raise RuntimeError(f"order {order_id} was never paid")
