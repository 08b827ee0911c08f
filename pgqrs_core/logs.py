"""Loggers that say which message they talk about: queue, message id, attempt, worker. Never a body, never a header.

With `logging` they are attributes of the record, as ``extra`` makes them, so any formatter can show them. Where structlog
is used they are bound to its logger.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, Final

from pgqrs_core.interrupts import is_failure

__all__ = [
    "Logger",
    "MessageLogger",
    "bound_logger",
    "describe",
    "error_text",
    "get_logger",
    "message_fields",
    "worker_name",
]

_HOST: Final = os.uname().nodename


def worker_name() -> str:
    """Return what this process is called in logs: host and process id."""
    return f"{_HOST}:{os.getpid()}"


def error_text(error: object) -> str:
    """Return the text of an error, whatever it does when it is asked for it; it can be stored and printed."""
    try:
        text = str(error)
    except (Exception, SystemExit):
        text = f"<{type(error).__name__} whose text cannot be had>"
    return text.encode("utf-8", "replace").decode()


def describe(error: BaseException) -> str:
    """Return an error as a line of a log shows it: its kind and its text, in one line."""
    return " ".join(f"{type(error).__name__}: {error_text(error)}".split())


class Logger:
    """A logger of `logging` whose calls never raise: a handler, filter or record factory may fail.

    A failure is printed on standard error, once for each logger.
    """

    __slots__ = ("_complained", "_logger")

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)
        self._complained = False

    def log(self, level: int, message: str, *args: object, **options: Any) -> None:
        """Log at a level of `logging`."""
        self._log(level, message, args, options)

    def debug(self, message: str, *args: object, **options: Any) -> None:
        """Log for developers."""
        self._log(logging.DEBUG, message, args, options)

    def info(self, message: str, *args: object, **options: Any) -> None:
        """Log what happened as it should."""
        self._log(logging.INFO, message, args, options)

    def warning(self, message: str, *args: object, **options: Any) -> None:
        """Log what may need attention."""
        self._log(logging.WARNING, message, args, options)

    def error(self, message: str, *args: object, **options: Any) -> None:
        """Log what needs attention."""
        self._log(logging.ERROR, message, args, options)

    def exception(self, message: str, *args: object) -> None:
        """Log an error with the traceback of the exception that is being handled."""
        self._log(logging.ERROR, message, args, {"exc_info": True})

    def _log(self, level: int, message: str, args: tuple[object, ...], options: dict[str, Any]) -> None:
        try:
            if not self._logger.isEnabledFor(level):
                return
            try:
                self._logger.log(level, message, *args, stacklevel=3, **options)
            except KeyError:
                # A record factory has set one of our fields, which `logging` refuses to overwrite.
                self._logger.log(level, message, *args, stacklevel=3, **{**options, "extra": None})
        except (Exception, SystemExit) as error:
            if not is_failure(error):
                raise
            self._complain(error, message, args)

    def _complain(self, error: BaseException, message: str, args: tuple[object, ...]) -> None:
        if self._complained or sys.stderr is None:
            return
        self._complained = True
        with contextlib.suppress(Exception):
            said = " ".join([message, *map(error_text, args)])
            sys.stderr.write(
                f"pgqrs: logging failed ({type(error).__name__}: {error_text(error)}); "
                f"further failures of logger {self._logger.name!r} are not shown. The line was: {said}\n"
            )


def get_logger(name: str) -> Logger:
    """Return the logger that code of pgqrs uses for its own lines."""
    return Logger(name)


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
