"""Exceptions by which a host ends what runs, and which no guard may take for a failure.

Most are no ``Exception``: ``KeyboardInterrupt``, gevent's timeouts, Dramatiq's interrupts. Celery's soft time limit is one.
It strikes wherever the task happens to be, in a plugin's hook too. Adapters note such classes here.
"""

from __future__ import annotations

from typing import Final

__all__ = ["FAILURES", "is_failure", "is_interrupt", "note_interrupt"]

#: What the code of others may raise and mean that it has failed; see `is_failure`.
FAILURES: Final = (Exception, SystemExit)

_noted: set[type[Exception]] = set()


def note_interrupt(kind: type[Exception]) -> None:
    """Let exceptions of this class through all guards. May be repeated."""
    _noted.add(kind)


def is_interrupt(error: BaseException) -> bool:
    """Tell whether an exception ends what runs, whoever happens to run."""
    return not isinstance(error, Exception) or (bool(_noted) and isinstance(error, tuple(_noted)))


def is_failure(error: BaseException) -> bool:
    """Tell whether an exception means that what raised it has failed.

    ``sys.exit`` in a plugin, a handler or a logging handler does: it does not end a process that does other things, too.
    """
    return isinstance(error, SystemExit) or not is_interrupt(error)
