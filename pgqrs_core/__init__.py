"""The engine of pgqrs: a message queue on plain PostgreSQL. It knows nothing of the adapters that stand on it."""

from __future__ import annotations

from pgqrs_core.config import Config
from pgqrs_core.engine import AsyncEngine, Engine
from pgqrs_core.hookspecs import hookimpl
from pgqrs_core.messages import Lease, Metrics, Queue, QueueOptions
from pgqrs_core.plugins import Plugins

__all__ = ["AsyncEngine", "Config", "Engine", "Lease", "Metrics", "Plugins", "Queue", "QueueOptions", "hookimpl"]
