"""What an adapter needs beside the core, said in the same words by all."""

from __future__ import annotations

import sys
from importlib.util import find_spec

__all__ = ["missing"]


def missing(module: str, extra: str) -> str | None:
    """Return the sentence that says how to get ``module``, or None if it is there. Imports nothing."""
    # Kombu and Celery put objects without a spec in the places of their modules, for which find_spec fails.
    if module in sys.modules or find_spec(module) is not None:
        return None
    return f"{module} is not installed: pip install 'pgqrs-py[{extra}]'"
