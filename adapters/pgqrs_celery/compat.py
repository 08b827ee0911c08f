"""Where the supported versions of Celery, from 5.4 on, differ: what came later is made up for here, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

import celery.backends.base
from celery.exceptions import BackendStoreError
from celery.utils.log import get_logger
from celery.utils.serialization import raise_with_context
from celery.utils.time import get_exponential_backoff_interval
from kombu.compression import compress
from pgqrs_kombu.compression import MAX_EXPANDED_BYTES, expand

__all__ = [
    "MAX_EXPANDED_BYTES",
    "Backend",
    "compress_result",
    "decompress_result",
    "drainer_timeout",
    "publish_callback",
    "setting",
]

_logger = get_logger(__name__)

#: How a result that Celery 5.7 or newer compressed begins; the content type of its compression and a NUL follow.
_COMPRESSED: Final = b"\0celery-compressed\0"


def setting(app: Any, name: str) -> Any:
    """Return a setting, None where this version of Celery has none of that name.

    ``result_failure_expires`` and ``result_chord_expires`` came with 5.7.
    """
    return app.conf.get(name)


def publish_callback(app: Any, publish: Callable[..., Any], *args: Any) -> None:
    """Publish the body of a chord; since 5.7 each of its messages is retried by itself, as its retry policy says."""
    retried = getattr(app.amqp, "_retry_publish", None)
    if retried is None:
        publish(*args)
    else:
        retried(publish, *args)


def compress_result(payload: bytes, compression: str) -> bytes:
    """Return an encoded result as ``result_compression`` (5.7) has it stored."""
    body, content_type = compress(payload, compression)
    return b"%s%s\0%s" % (_COMPRESSED, content_type.encode(), body)


def drainer_timeout(timeout: float | None) -> float | None:
    """Return what to tell a drainer of events; before 5.7 it takes 0 seconds for no limit."""
    return None if timeout is None else max(timeout, 1e-6)


def decompress_result(payload: bytes, limit: int) -> bytes:
    """Return an encoded result as it was before ``result_compression`` (5.7); older versions read such results, too.

    Raises:
        DecodeError: it is broken, expands to more than ``limit`` bytes, or its compression is not known here.
    """
    if not payload.startswith(_COMPRESSED):
        return payload
    compression, _, body = payload[len(_COMPRESSED) :].partition(b"\0")
    return expand(body, compression.decode("utf-8", "replace"), limit)


class _RetryingBackend(celery.backends.base.Backend):
    """Celery's base class of result backends as it is since 5.7, for older versions: one retry policy for all calls."""

    def _ensure_retryable(
        self,
        func: Callable[..., Any],
        *args: Any,
        fallback_exc: Callable[[str | None], Exception] | None = None,
        fallback_msg: str | None = None,
        max_retries: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """Call a function; with ``result_backend_always_retry`` try again what `exception_safe_to_retry` allows."""
        retries = 0
        limit = self.max_retries if max_retries is None else max_retries
        while True:
            try:
                return func(*args, **kwargs)
            except Exception as error:
                if not (self.always_retry and self.exception_safe_to_retry(error)):
                    raise
                if retries >= limit:
                    if fallback_exc is not None:
                        raise_with_context(fallback_exc(fallback_msg))
                    raise
                retries += 1
                _logger.warning("%s; retrying", error)
            pause = get_exponential_backoff_interval(
                self.base_sleep_between_retries_ms, retries, self.max_sleep_between_retries_ms, full_jitter=True
            )
            self._sleep(pause / 1000)

    def store_result(
        self, task_id: Any, result: Any, state: str, traceback: Any = None, request: Any = None, **kwargs: Any
    ) -> Any:
        """Store the state of a task, under the retry policy."""
        result = self.encode_result(result, state)
        self._ensure_retryable(
            partial(self._store_result, task_id, result, state, traceback, request=request, **kwargs),
            fallback_exc=partial(BackendStoreError, task_id=task_id, state=state),
            fallback_msg="failed to store result on the backend",
        )
        return result


Backend: Any = celery.backends.base.Backend
if not hasattr(Backend, "_ensure_retryable"):
    Backend = _RetryingBackend
