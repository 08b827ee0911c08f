"""Registers the serializer."""

from __future__ import annotations

from pgqrs_core.hookspecs import hookimpl
from pgqrs_core.serializers import Serializer
from pgqrs_pydantic.serializer import PydanticSerializer

__all__ = ["pgqrs_serializers"]


@hookimpl
def pgqrs_serializers() -> list[Serializer]:
    """Add the serializer."""
    return [PydanticSerializer()]
