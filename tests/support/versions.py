"""What not every supported version of a framework has. Tests of it run where it is."""

from __future__ import annotations

import celery
import kombu
import pytest

__all__ = ["needs_batches", "needs_celery_57"]

needs_celery_57 = pytest.mark.skipif(
    tuple(celery.VERSION)[:2] < (5, 7), reason=f"Celery {celery.__version__} does not have this; 5.7 does"
)
needs_batches = pytest.mark.skipif(
    not hasattr(kombu.Producer, "batch"), reason=f"Kombu {kombu.__version__} has no Producer.batch(); 5.7 does"
)
