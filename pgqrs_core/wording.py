"""How values are shown in messages to people."""

from __future__ import annotations

from datetime import date

__all__ = ["show_number", "show_value"]

_LONGEST = 80


def show_number(value: float) -> str:
    """Show a number in full: ``315,360,000`` and ``0.1``, never ``3.1536e+08``."""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.15g}"


def show_value(value: object) -> str:
    """Show what somebody passed, in at most 80 characters: no class reprs, no addresses in memory, no whole bodies."""
    try:
        text = _text(value)
    except Exception:
        # An integer of thousands of digits, or a class whose repr fails: that it is one must do.
        text = f"this {type(value).__name__}"
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}…"


def _text(value: object) -> str:
    if isinstance(value, str) and value.endswith("bytes"):
        return value
    if isinstance(value, date):
        return value.isoformat()
    text = repr(value)
    if text.startswith("<"):
        # A class, a function, or an object without a repr of its own.
        name = getattr(value, "__qualname__", None)
        return name if isinstance(name, str) else f"a value of type {type(value).__qualname__}"
    return text
