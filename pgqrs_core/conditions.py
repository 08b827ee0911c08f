"""A condition variable that survives exceptions which strike at any instruction.

Time limits of Dramatiq and Celery, and Ctrl-C, raise in a thread wherever it is. `threading.Condition` takes its lock in a
method written in Python: an exception between taking the lock and returning leaves it taken for good, and with it every
thread that needs it.
"""

from __future__ import annotations

import threading
from typing import Any

__all__ = ["Condition"]


class Condition(threading.Condition):
    """A `threading.Condition` for ``with``, which enters and leaves by the lock's own methods; these are written in C."""

    _lock: Any

    # Looked up before the lock is taken, and called by the interpreter itself.
    __enter__ = property(lambda self: self._lock.__enter__)
    __exit__ = property(lambda self: self._lock.__exit__)
