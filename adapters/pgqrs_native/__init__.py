"""pgqrs for plain Python code: clients, workers and the command."""

from __future__ import annotations

from pgqrs_native.async_client import AsyncClient
from pgqrs_native.async_worker import AsyncWorker
from pgqrs_native.client import Client
from pgqrs_native.message import Message
from pgqrs_native.roster import WorkerStopped
from pgqrs_native.routing import Reject, Retry
from pgqrs_native.worker import Worker

__all__ = ["AsyncClient", "AsyncWorker", "Client", "Message", "Reject", "Retry", "Worker", "WorkerStopped"]
