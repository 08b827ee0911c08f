"""Registers the native API, as any adapter registers."""

from __future__ import annotations

from pgqrs_core.hookspecs import AdapterInfo, hookimpl

__all__ = ["pgqrs_adapters"]


@hookimpl
def pgqrs_adapters() -> AdapterInfo:
    """Describe the native API. It needs nothing beyond the core."""
    return AdapterInfo(
        name="native",
        version="0.1.0",
        summary="Client, AsyncClient and Worker for plain Python code, and the pgqrs command",
        check=lambda: None,
    )
