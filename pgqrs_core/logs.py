"""Loggers that say which message they talk about: queue, message id, attempt, worker. Never a body, never a header.

With `logging` they are attributes of the record, as ``extra`` makes them, so any formatter can show them. Where structlog
is used they are bound to its logger.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, Final

__all__ = ["MessageLogger", "bound_logger", "message_fields", "worker_name"]

_HOST: Final = socket.gethostname()


def worker_name() -> str:
    """Return what this process is called in logs: host and process id."""
    return f"{_HOST}:{os.getpid()}"


def message_fields(queue: str, message_id: int, attempt: int) -> dict[str, Any]:
    """Return what a line about a message should say of it."""
    return {"queue": queue, "message_id": message_id, "attempt": attempt, "worker": worker_name()}


if TYPE_CHECKING:
    _Adapter = logging.LoggerAdapter[logging.Logger]
else:
    # Before Python 3.11 it takes no parameters.
    _Adapter = logging.LoggerAdapter


class MessageLogger(_Adapter):
    """A logger whose records have fields of their own; ``extra`` of a call is added to them."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        """Add the fields."""
        kwargs["extra"] = {**(kwargs.get("extra") or {}), **(self.extra or {})}
        return msg, kwargs


def bound_logger(logger: Any, fields: Mapping[str, Any]) -> Any:
    """Return a logger that adds ``fields`` to whatever it logs.

    Args:
        logger: a logger of `logging` or of structlog, or a name. A name is one of structlog if the program has configured
            structlog; that it is merely installed says nothing, for unconfigured it would print to standard output.
        fields: what to add.
    """
    if isinstance(logger, str):
        structlog: Any = sys.modules.get("structlog")
        configured = structlog is not None and structlog.is_configured()
        logger = structlog.get_logger(logger) if configured else logging.getLogger(logger)
    if isinstance(logger, (logging.Logger, logging.LoggerAdapter)):
        return MessageLogger(logger, dict(fields))  # type: ignore[arg-type]
    return logger.bind(**fields)
