"""The result backend ``pgqrs://``: results in columns, waiting by LISTEN, chords counted by the database."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, Final
from weakref import WeakValueDictionary

from celery import states
from celery._state import get_current_worker_task
from celery.backends.asynchronous import AsyncBackendMixin
from celery.exceptions import SecurityError
from celery.exceptions import TimeoutError as ResultTimeout
from celery.result import result_from_tuple
from celery.utils.log import get_logger
from kombu.utils.encoding import ensure_bytes
from pgqrs_kombu.shown import mask_settings

from pgqrs_celery import housekeeping, operations
from pgqrs_celery.address import configuration, read_options, tell_settings_of_redis
from pgqrs_celery.chords import ChordsMixin
from pgqrs_celery.compat import Backend, compress_result, setting
from pgqrs_celery.consumer import ResultConsumer
from pgqrs_celery.encoding import decode, id_of, meta_of, row_of
from pgqrs_celery.listener import Listener
from pgqrs_celery.store import Store
from pgqrs_core.config_address import masked
from pgqrs_core.effects import Rows
from pgqrs_core.errors import PgqrsError
from pgqrs_core.forks import Lock
from pgqrs_core.secret import hidden

__all__ = ["PgqrsBackend", "housekeeping"]

logger = get_logger(__name__)

#: As what the structure of a group is kept, see `pgqrs_core.kept`.
_GROUP: Final = "group"
#: Seconds for which a task that has ended waits for a server that is away.
_OUTAGE: Final = 30.0

_shared: WeakValueDictionary[tuple[str, str], Store] = WeakValueDictionary()
_sharing = Lock()


class PgqrsBackend(ChordsMixin, AsyncBackendMixin, Backend):
    """Keeps the results of an application in PostgreSQL. Celery makes it from ``result_backend = "pgqrs://…"``.

    Args:
        app: the application.
        url: the address; see :mod:`pgqrs_celery.address`.
        create_schema, chord_claim_seconds, max_result_bytes, settings of the core: as in
            ``result_backend_transport_options``, before which they come.

    Raises:
        ImproperlyConfigured: the URL or an option is wrong.
    """

    supports_native_join = True
    supports_autoexpire = True
    supports_result_compression = True
    supports_failure_expires = True
    persistent = True

    def __init__(self, app: Any, url: str | None = None, **kwargs: Any) -> None:
        base = {name: kwargs.pop(name) for name in _BASE_ARGUMENTS if name in kwargs}
        url = hidden(url or "pgqrs://")
        super().__init__(app, url=url, **base)
        # One backend serves all threads, and with it one connection.
        self.thread_safe = True
        given = {**(app.conf.result_backend_transport_options or {}), **kwargs}
        self._given = kwargs
        self.options, settings = read_options(given)
        mask_settings()
        tell_settings_of_redis(app.conf)
        self.config = configuration(self.url, settings)
        #: Seconds for which results, failures and unfinished chords are kept; None: until they are forgotten.
        self.expires: float | None = self._seconds(self.prepare_expires(base.get("expires")), None)
        self.failure_expires = self._seconds(setting(app, "result_failure_expires"), self.expires)
        self.chord_expires = self._seconds(setting(app, "result_chord_expires"), self.expires)
        self.store = self._share()
        self.result_consumer = ResultConsumer(self, app, self.accept, self._pending_results, self._pending_messages)

    def __reduce__(self, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = {
            "url": self.url,
            "expires": self.expires,
            "serializer": self.serializer,
            **self._given,
            **(kwargs or {}),
        }
        return super().__reduce__(args, kwargs)

    def as_uri(self, include_password: bool = False) -> str:
        """Return the address, by default without passwords."""
        return str(self.url) if include_password else masked(self.url)

    @property
    def listener(self) -> Listener:
        """Where this process waits for results; shared by all backends of one database."""
        listener: Listener = self.store.listener
        return listener

    def close(self) -> None:
        """Close all connections of this backend, and of others of the same process to the same database."""
        self.listener.close()
        self.store.close()

    def exception_safe_to_retry(self, exc: Exception) -> bool:
        """Tell whether trying again may help: what is in the way passes, and we are not in the midst of a transaction."""
        return isinstance(exc, PgqrsError) and exc.retryable and not self.store.in_transaction

    def _ensure_retryable(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run an operation, tried again as configured; and where a task of a worker asks for it, for `_OUTAGE` seconds.

        Its result is not lost because the server restarts at the moment at which it ends. Others, such as the main process
        of a worker or an application that publishes, are told at once.
        """
        attempt = partial(super()._ensure_retryable, func, *args, **kwargs)
        if self.always_retry or not get_current_worker_task():
            return attempt()
        deadline = time.monotonic() + _OUTAGE
        pause = 0.05
        while True:
            try:
                return attempt()
            except PgqrsError as error:
                if not self.exception_safe_to_retry(error) or time.monotonic() + pause > deadline:
                    raise
                logger.warning("cannot reach the result backend, which is tried again: %s", error)
            self._sleep(pause)
            pause = min(2 * pause, 1.0)

    def exception_to_python(self, exc: Any) -> Exception | None:
        """Return the exception that a result tells of.

        Raises:
            SecurityError: it names something that is no exception, or one that would end whoever reads it, such as
                ``SystemExit``. No task fails with such: Celery's worker lets them pass.
        """
        error = super().exception_to_python(exc)
        if error is not None and not isinstance(error, Exception):
            raise SecurityError(f"a result names {type(error).__name__}, which no task can fail with, as its exception")
        return error

    def encode(self, data: Any) -> Any:
        """Return a value as it is stored: compressed if that is configured and it can be expanded again."""
        payload = self._encode(data)[2]
        # Came with Celery 5.7.
        compression = getattr(self, "compression", None)
        if not compression or len(payload) > self.options.max_result_bytes:
            return payload
        return compress_result(ensure_bytes(payload), compression)

    def on_task_call(self, producer: Any, task_id: str) -> dict[str, Any]:
        """Check the id, before the task is sent. More is not needed: only a wait for a result costs anything."""
        id_of(task_id)
        return {}

    def read_rows(self, task_ids: Iterable[str]) -> Rows:
        """Return the rows of those tasks that have one, tried again as configured."""
        rows: Rows = self._ensure_retryable(self.store.run, operations.read_results, list(task_ids))
        return rows

    def get_many(
        self,
        task_ids: Iterable[str],
        timeout: float | None = None,
        interval: float = 0.5,
        no_ack: bool = True,
        on_message: Any = None,
        on_interval: Any = None,
        max_iterations: int | None = None,
        READY_STATES: frozenset[str] = states.READY_STATES,  # noqa: N803 - Celery's name
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield id and state of tasks as they are done; all that are waited for are read by one statement.

        Raises:
            celery.exceptions.TimeoutError: some were not done after ``timeout`` seconds.
        """
        left = {id_of(task_id) for task_id in task_ids}
        deadline = None if timeout is None else time.monotonic() + timeout
        rounds = 0
        while left:
            for row in self.read_rows(sorted(left)):
                if row[1] in READY_STATES:
                    meta = meta_of(self, row)
                    left.discard(row[0])
                    if row[1] == states.SUCCESS:
                        self._cache[row[0]] = meta
                    if on_message is not None:
                        on_message(meta)
                    yield row[0], meta
            rounds += 1
            if not left or (max_iterations and rounds >= max_iterations):
                return
            remaining = None if deadline is None else deadline - time.monotonic()
            if remaining is not None and remaining <= 0:
                raise ResultTimeout(f"Operation timed out ({timeout})")
            if on_interval is not None:
                on_interval()
            time.sleep(interval or 0.5 if remaining is None else min(interval or 0.5, remaining))

    def iter_native(self, result: Any, no_ack: bool = True, **kwargs: Any) -> Iterator[Any]:
        """Yield the results of a set as they come; nothing for an empty one."""
        if result.results:
            yield from super().iter_native(result, no_ack=no_ack, **kwargs)

    def task_result_exists(self, task_id: str) -> bool:
        """Tell whether anything is stored for a task."""
        return bool(self.read_rows([id_of(task_id)]))

    def cleanup(self) -> None:
        """Remove what has expired. Workers do it by themselves; see :mod:`pgqrs_celery.housekeeping`."""
        self._ensure_retryable(self.store.run, operations.prune)

    def _store_result(
        self, task_id: object, result: Any, state: str, traceback: str | None = None, request: Any = None, **_: Any
    ) -> Any:
        meta = self._get_result_meta(
            result=result, state=state, traceback=traceback, request=request, format_date=False, encode=True
        )
        expires = self.failure_expires if state == states.FAILURE else self.expires
        self._keep(row_of(self, task_id, meta, expires))
        return result

    def _get_task_meta_for(self, task_id: object) -> dict[str, Any]:
        rows = self.store.run(operations.read_results, [id_of(task_id)])
        return meta_of(self, rows[0]) if rows else {"status": states.PENDING, "result": None}

    def _forget(self, task_id: object) -> None:
        self.store.run(operations.forget_result, id_of(task_id))

    def _save_group(self, group_id: object, result: Any) -> Any:
        value = ensure_bytes(self.encode(result.as_tuple()))
        value = self.store.seal(value, self.content_type, _GROUP, group=id_of(group_id))
        self.store.run(operations.save_group, id_of(group_id), value, self.content_type, self.expires)
        return result

    def _restore_group(self, group_id: object) -> dict[str, Any] | None:
        row = self.store.run(operations.read_group, id_of(group_id))
        if row is None:
            return None
        value, content_type, date_done = row
        opened = self.store.open(value, content_type, _GROUP, group=id_of(group_id))
        structure = decode(opened, content_type, self.accept, self.options.max_result_bytes)
        return {
            "taskset_id": id_of(group_id),
            "result": result_from_tuple(structure, self.app),
            "date_done": date_done,
        }

    def _delete_group(self, group_id: object) -> None:
        self.store.run(operations.delete_group, id_of(group_id))

    def _share(self) -> Store:
        """Return the one store of this process for this address: two threads may make the first backend at once."""
        key = str(self.config.conninfo()), repr((self.config, self.options))
        with _sharing:
            store = _shared.get(key)
            if store is None:
                store = _shared[key] = Store(self.config, create_schema=self.options.create_schema)
            return store

    def _seconds(self, value: Any, otherwise: float | None) -> float | None:
        """Return an expiry in seconds; None keeps for ever, as does 0."""
        if value is None:
            return otherwise
        return float(self.prepare_expires(value)) or None


#: What Celery's own base class takes; everything else is an option.
_BASE_ARGUMENTS = ("serializer", "max_cached_results", "accept", "expires", "expires_type")
