"""The serializer of models. A model can exist only once pydantic is imported, so nothing here imports it before."""

from __future__ import annotations

import sys
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, get_args

from pgqrs_core.errors import DecodeError, EncodeError, PayloadMismatch
from pgqrs_core.payload_types import reason_of, shown
from pgqrs_core.serializers import JsonSerializer, type_name

if TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError

__all__ = ["CONTENT_TYPE", "PydanticSerializer"]

CONTENT_TYPE: Final = "application/vnd.pydantic+json"
_JSON: Final = JsonSerializer()


class PydanticSerializer:
    """Models in JSON, as pydantic writes them. Models can be read from plain JSON, and as plain JSON, as well."""

    content_type = CONTENT_TYPE
    reads = (CONTENT_TYPE, JsonSerializer.content_type)

    def handles(self, payload: Any) -> bool:
        """Return whether ``payload`` is a model."""
        return _is_model(type(payload))

    def knows(self, type_: Any) -> bool:
        """Return whether ``type_`` is a model, or made of one: ``list[Mail]``, ``Mail | Note``."""
        return _is_model(type_) or any(map(self.knows, get_args(type_)))

    def type_name(self, cls: type) -> str | None:
        """Return the model's ``__message_type__``, if it has one of its own, else its name; None for other classes."""
        return (type_name(cls) or cls.__name__) if _is_model(cls) else None

    def encode(self, payload: Any) -> bytes:
        """Return the model as JSON, by its aliases.

        Raises:
            EncodeError: It is no model, or pydantic cannot write it.
        """
        if not _is_model(type(payload)):
            raise EncodeError(CONTENT_TYPE, f"it is of type {type(payload).__name__}, not a pydantic model")
        try:
            text: str = payload.model_dump_json(by_alias=True)
            return text.encode()
        except Exception as error:
            raise EncodeError(CONTENT_TYPE, reason_of(error)) from error

    def decode(self, body: bytes, type_: Any = Any) -> Any:
        """Return the payload, as ``type_`` if that is made of models, else as plain JSON gives it.

        Raises:
            DecodeError: The body is not JSON.
            PayloadMismatch: It does not validate; names the first field that is wrong, and never its value.
            InvalidArgument: Nothing can be decoded as ``type_``.
        """
        if not self.knows(type_):
            return _JSON.decode(body, type_)
        from pydantic import ValidationError

        try:
            return _adapter(type_).validate_json(body)
        except ValidationError as error:
            problem = _translated(error, type_)
        # Pydantic's own error would show the value.
        raise problem


def _is_model(type_: Any) -> bool:
    pydantic = sys.modules.get("pydantic")
    return pydantic is not None and isinstance(type_, type) and issubclass(type_, pydantic.BaseModel)


@lru_cache(maxsize=1024)
def _adapter(type_: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(type_)


def _translated(error: ValidationError, type_: Any) -> DecodeError | PayloadMismatch:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    if first["type"] == "json_invalid":
        return DecodeError(CONTENT_TYPE, first["msg"])
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).lstrip(".")
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return PayloadMismatch(shown(type_), path or "$", first["msg"] + more)
