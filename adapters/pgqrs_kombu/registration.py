"""Makes ``pgqrs://`` known to Kombu. Imports nothing but Kombu's own table of transports, and never raises.

Kombu has no entry-point group for transports. It loads that of serializers, however, whenever it is imported, and this
module stands there: so `Celery(broker="pgqrs://…")` finds the transport with nothing but the package installed.
"""

from __future__ import annotations

from typing import Any

__all__ = ["SCHEME", "register", "serializer"]

SCHEME = "pgqrs"
_TRANSPORT = "pgqrs_kombu.entry:Transport"


def register() -> None:
    """Add the scheme to Kombu's table, unless somebody else has taken it. Repeating it changes nothing."""
    # Whatever is wrong with this package, programs that use Kombu for something else must not feel it.
    try:
        from kombu.transport import TRANSPORT_ALIASES

        TRANSPORT_ALIASES.setdefault(SCHEME, _TRANSPORT)
    except Exception:  # noqa: S110
        pass


def _refuse(value: Any) -> Any:
    raise NotImplementedError("pgqrs is a transport; it brings no serializer for Kombu")


register()

#: What Kombu expects of an entry point of its group: encode, decode, content type, encoding. Nobody uses it.
serializer = (_refuse, _refuse, "application/x-pgqrs-transport", "binary")
