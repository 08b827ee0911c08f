"""pgqrs for plain Python code: clients, workers and the command."""

from __future__ import annotations

from pgqrs_native.async_client import AsyncClient
from pgqrs_native.client import Client
from pgqrs_native.message import Message

__all__ = ["AsyncClient", "Client", "Message"]
