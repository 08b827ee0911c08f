"""Passwords in the settings that Celery shows: by ``celery report``, ``celery inspect conf`` and on Flower's worker page.

Celery takes passwords out of ``result_backend`` and other addresses as out of any URL: where they stand before
the host name. Ours may have them among the parameters, or with characters that should have been percent-encoded.
"""

from __future__ import annotations

import sys
from functools import wraps
from typing import Any, Final

from pgqrs_kombu.registration import SCHEME

__all__ = ["mask_settings"]

#: Where Celery's own way of masking is, of 5.7, and of older versions.
_PLACES: Final = ("celery.app.utils", "kombu.utils.url")


def mask_settings() -> None:
    """Have Celery mask our addresses by our rules. Without effect while Celery is not loaded; may be repeated."""
    for name in _PLACES:
        module = sys.modules.get(name)
        original = getattr(module, "sanitize_url", None)
        if original is not None and not hasattr(original, "__wrapped__"):
            module.sanitize_url = _by_our_rules(original)  # type: ignore[union-attr]


def _by_our_rules(original: Any) -> Any:
    @wraps(original)
    def sanitize_url(url: Any, mask: str = "**") -> Any:
        if isinstance(url, str) and url.startswith((f"{SCHEME}:", f"{SCHEME}+")):
            # Imported late: programs with another broker load this module, too.
            from pgqrs_core import config_address

            return config_address.masked(url, mask)
        return original(url, mask)

    return sanitize_url
