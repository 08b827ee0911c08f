"""Publishing a chord's body in the transaction that counts its header, where the broker is in the same database."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from celery.exceptions import ImproperlyConfigured

from pgqrs_celery.address import configuration, same_place
from pgqrs_core.config import Config

__all__ = ["publishing_in", "shares_database"]


def shares_database(app: Any, config: Config) -> bool:
    """Tell whether an application's broker keeps its messages beside these results.

    That is so when both addresses and schemas say so in the same words. A broker with alternatives is not meant.
    """
    url = app.conf.broker_write_url or app.conf.broker_url
    if not isinstance(url, str) or not url.startswith("pgqrs") or ";" in url or app.conf.task_always_eager:
        return False
    scheme, _, rest = url.partition("+")
    address = rest if scheme == "pgqrs" and rest else url
    options = app.conf.broker_transport_options or {}
    try:
        broker = configuration(address, {name: options[name] for name in ("schema",) if name in options})
    except ImproperlyConfigured:
        # The transport says it better.
        return False
    return same_place(broker, config)


def publishing_in(connection: object) -> AbstractContextManager[Any]:
    """Let what is published in the block belong to the transaction of ``connection``."""
    from pgqrs_kombu import in_transaction

    manager: AbstractContextManager[Any] = in_transaction(connection)
    return manager
