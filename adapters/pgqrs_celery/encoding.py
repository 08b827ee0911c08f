"""Between what Celery keeps of a task and the columns of its row.

Results are encoded by the configured serializer and remember its content type, so that a reader with another one, or
after a change of it, can still read them, if it accepts that type.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from celery import states
from kombu.serialization import loads
from kombu.utils.encoding import bytes_to_str, ensure_bytes

from pgqrs_celery.compat import decompress_result
from pgqrs_core.errors import InvalidArgument
from pgqrs_core.messages import check_text

__all__ = ["MAX_ID", "decode", "id_of", "meta_of", "row_of", "small"]

#: The longest id of a task or group, in characters: what AMQP allows, and what an index and a notification can hold.
MAX_ID: Final = 255
_EXTENDED: Final = ("name", "args", "kwargs", "worker", "retries", "queue")
_ENCODED: Final = ("args", "kwargs")
#: In the order of the statement ``read_results``.
_COLUMNS: Final = (
    "task_id", "status", "result", "content_type", "traceback", "children", "date_done", "group_id", "parent_id",
    *_EXTENDED, "stamps",
)  # fmt: skip


def id_of(identity: object) -> str:
    """Return a task's or a group's id as text; Celery takes bytes and UUIDs too.

    Raises:
        InvalidArgument: it is empty, longer than 255 characters, or no text that PostgreSQL can hold. It is a ValueError,
            too.
    """
    text = str(bytes_to_str(identity))
    if len(text) > MAX_ID:
        raise InvalidArgument("the id of a task or group", f"{len(text):,} characters", f"at most {MAX_ID} characters")
    if not text:
        raise InvalidArgument("the id of a task or group", text, "a text that is not empty")
    check_text("the id of a task or group", text)
    return text


def row_of(backend: Any, task_id: object, meta: Mapping[str, Any], expires: float | None) -> dict[str, object]:
    """Return the parameters of ``store_result``.

    Args:
        backend: whose serializer encodes.
        task_id: the task's.
        meta: what ``_get_result_meta(..., format_date=False, encode=True)`` returned.
        expires: seconds to keep it; None for ever.
    """
    children, stamps = meta.get("children"), _stamps(meta)
    return {
        "task_id": id_of(task_id),
        "status": meta["status"],
        "result": ensure_bytes(backend.encode(meta["result"])),
        "content_type": backend.content_type,
        "traceback": _text(meta.get("traceback")),
        "children": ensure_bytes(backend.encode(children)) if children else None,
        "date_done": meta["date_done"],
        "group_id": _text(meta.get("group_id")),
        "parent_id": _text(meta.get("parent_id")),
        **{name: meta.get(name) if name in _ENCODED else _text(meta.get(name)) for name in _EXTENDED},
        "retries": small(meta.get("retries")),
        "stamps": ensure_bytes(backend.encode(stamps)) if stamps else None,
        "expires": expires,
        "slack": 1.0 if meta["status"] in states.READY_STATES else 1.2,
    }


def meta_of(backend: Any, row: Iterable[Any]) -> dict[str, Any]:
    """Return what Celery knows of a task, from its row.

    Raises:
        ContentDisallowed: the row's content type is not accepted here.
        SecurityError: it names something as an exception that is none.
    """
    found = dict(zip(_COLUMNS, row))
    content_type = found.pop("content_type")

    def load(value: bytes | None) -> Any:
        return decode(value, content_type, backend.accept, backend.options.max_result_bytes)

    meta = {name: found[name] for name in ("task_id", "status", "traceback", "date_done")}
    meta["result"] = load(found["result"])
    meta["children"] = load(found["children"])
    meta.update({name: found[name] for name in ("group_id", "parent_id") if found[name] is not None})
    if any(found[name] is not None for name in _EXTENDED):
        meta.update({name: load(found[name]) if name in _ENCODED else found[name] for name in _EXTENDED})
    if found["stamps"] is not None:
        stamps = load(found["stamps"])
        meta["stamped_headers"] = stamps["stamped_headers"]
        meta.update(stamps["stamps"])
    return dict(backend.meta_from_decoded(meta))


def decode(value: bytes | None, content_type: str, accept: Iterable[str] | None, limit: int) -> Any:
    """Return what was encoded as ``content_type``, compressed or not; expanded to at most ``limit`` bytes.

    Raises:
        DecodeError: it cannot be expanded, or to more than that.
        ContentDisallowed: its content type is not accepted.
    """
    if value is None:
        return None
    # The encoding matters only for types without a decoder, which then are text.
    return loads(decompress_result(value, limit), content_type=content_type, content_encoding="utf-8", accept=accept)


def small(value: object) -> int | None:
    """Return a whole number if a column of type ``int`` can hold it, else None. Headers of a task may hold anything."""
    return value if type(value) is int and -(2**31) <= value < 2**31 else None


def _stamps(meta: Mapping[str, Any]) -> dict[str, Any] | None:
    headers = meta.get("stamped_headers")
    if not headers:
        return None
    return {"stamped_headers": list(headers), "stamps": {name: meta[name] for name in headers if name in meta}}


def _text(value: Any) -> str | None:
    """Return a text as PostgreSQL can hold it: no NUL, no lone surrogates. Tracebacks may have either."""
    if value is None:
        return None
    return str(value).encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")
