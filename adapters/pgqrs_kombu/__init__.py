"""pgqrs as a broker for Kombu and Celery: the transport ``pgqrs://``.

Importing this package makes the scheme known; with the package installed Celery finds it without.
"""

from __future__ import annotations

from pgqrs_kombu.outbox import batch, in_transaction
from pgqrs_kombu.registration import register

__all__ = ["batch", "in_transaction"]

register()
