"""Imports what the consumers of `herd` need, once for all of them."""

from __future__ import annotations

import contextlib
import importlib

__all__: list[str] = []

for name in ("benchmarks.herd", "pgqrs_native", "pgqrs_kombu.transport", "pgqrs_dramatiq.broker"):
    with contextlib.suppress(ImportError):
        importlib.import_module(name)
