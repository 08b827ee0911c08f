"""The database of one result backend: operations on it, alone or together in one transaction."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from typing_extensions import ParamSpec

from pgqrs_celery.errors import translated
from pgqrs_celery.listener import Listener
from pgqrs_celery.sql import COMPONENT, MIGRATIONS
from pgqrs_core.config import Config
from pgqrs_core.effects import Op
from pgqrs_core.engine import Engine
from pgqrs_core.forks import begin_anew_in_children
from pgqrs_core.kept import open_kept, seal_kept
from pgqrs_core.operations import schema

__all__ = ["Store"]

T = TypeVar("T")
P = ParamSpec("P")


class Store:
    """Runs operations for one backend. Thread-safe; survives a fork.

    Args:
        config: where, and how many connections.
        create_schema: install pgqrs at the first use if nothing of it is there.
    """

    def __init__(self, config: Config, *, create_schema: bool) -> None:
        self.engine = Engine(config)
        #: Where this process waits for results.
        self.listener = Listener(self.engine)
        self._create_schema = create_schema
        # Celery closes no backend; its connections end with it, and at the latest with the process.
        self.close = weakref.finalize(self, self.engine.close)
        self.begin_anew()
        begin_anew_in_children(self)

    def begin_anew(self) -> None:
        """In a forked child: no thread of it is in a transaction, and the tables are checked again."""
        self._ready = False
        self._checking = threading.Lock()
        self._local = threading.local()

    def run(self, make: Callable[P, Op[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run an operation: within this thread's transaction if it has one, else each statement for itself.

        Raises:
            SchemaError: the tables are missing or do not fit.
            BackendUnavailable: the server cannot be reached.
        """
        with translated():
            self._prepare()
            connection = getattr(self._local, "connection", None)
            if connection is not None:
                return self.engine.run_in(connection, make, *args, **kwargs)
            return self.engine.run(make, *args, **kwargs)

    @contextmanager
    def transaction(self) -> Iterator[Any]:
        """Let everything that this thread runs in the block commit together; one within another joins it.

        Yields:
            The connection.

        Raises:
            BackendUnavailable: the server cannot be reached, or was lost.
        """
        with translated():
            self._prepare()
            connection = getattr(self._local, "connection", None)
            if connection is not None:
                yield connection
                return
            with self.engine.transaction() as connection:
                self._local.connection = connection
                try:
                    yield connection
                finally:
                    self._local.connection = None

    def seal(self, value: bytes, content_type: str, purpose: str, **identity: object) -> bytes:
        """Return what is to be kept as the plugins protect it, see `pgqrs_core.kept`."""
        return seal_kept(self.engine.plugins.hooks.codecs, value, content_type, purpose, **identity)

    def open(self, stored: bytes, content_type: str, purpose: str, **identity: object) -> bytes:
        """Return what was kept.

        Raises:
            DecodeError: it is not sealed as it must be, or is not what was kept for this.
            DecoderMissing: a codec or key is not loaded here.
        """
        return open_kept(self.engine.plugins.hooks.codecs, stored, content_type, purpose, **identity)

    @property
    def in_transaction(self) -> bool:
        """Whether this thread is in a transaction; what fails there must be tried again as a whole."""
        return getattr(self._local, "connection", None) is not None

    def _prepare(self) -> None:
        """Check the tables once in each process, and install them where that is wanted and nothing is there."""
        if self._ready:
            return
        with self._checking:
            if self._ready:
                return
            self.engine.run(
                schema.prepare,
                self.engine.installation,
                self.engine.plugins,
                create=self._create_schema,
                component=COMPONENT,
                migrations=MIGRATIONS,
            )
            self._ready = True
