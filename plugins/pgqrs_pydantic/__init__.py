"""Pydantic models as payloads: validated when they are read, told apart by the header ``message_type``."""

from pgqrs_pydantic.serializer import CONTENT_TYPE, PydanticSerializer

__all__ = ["CONTENT_TYPE", "PydanticSerializer"]
