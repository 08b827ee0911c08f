"""What not every supported version of a framework has. Tests of it run where it is."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any, Final

import celery
import kombu
import psycopg
import pytest

__all__ = ["IS_SQLALCHEMY_2", "needs_batches", "needs_celery_57", "sqlalchemy_engine"]

needs_celery_57 = pytest.mark.skipif(
    tuple(celery.VERSION)[:2] < (5, 7), reason=f"Celery {celery.__version__} does not have this; 5.7 does"
)
needs_batches = pytest.mark.skipif(
    not hasattr(kombu.Producer, "batch"), reason=f"Kombu {kombu.__version__} has no Producer.batch(); 5.7 does"
)
#: Before, nobody's dialect has an asynchronous side for psycopg 3.
IS_SQLALCHEMY_2: Final = not version("sqlalchemy").startswith("1.")


def sqlalchemy_engine(dsn: str, **options: Any) -> Any:
    """Return an engine that connects by psycopg, whose connections have ``commit()``, as all have since SQLAlchemy 2."""
    from sqlalchemy import create_engine

    if not IS_SQLALCHEMY_2:
        options["future"] = True
    return create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(dsn), **options)
