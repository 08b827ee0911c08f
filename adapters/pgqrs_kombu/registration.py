"""Makes ``pgqrs://`` known to Kombu, and to what Celery shows. Imports nothing that is large, and never raises.

Kombu has no entry-point group for transports. It loads that of serializers, however, whenever it is imported, and this
module stands there: so `Celery(broker="pgqrs://…")` finds the transport with nothing but the package installed.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.abc import MetaPathFinder
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


class _WhenImported(MetaPathFinder):
    """Masks the addresses that Celery shows as soon as its module for that is imported, which comes after Kombu.

    `celery report` shows ``result_backend`` without making the backend, so nothing else of pgqrs is there to do it.
    """

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        """Find Celery's module as others do, and see that it is changed once it has run."""
        if fullname != "celery.app.utils":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None and hasattr(spec.loader, "exec_module"):
            run = spec.loader.exec_module

            def exec_module(module: Any) -> None:
                run(module)
                mask_settings()

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def mask_settings() -> None:
    """Have Celery mask our addresses, if it is there."""
    # See `register`.
    try:
        from pgqrs_kombu.shown import mask_settings

        mask_settings()
    except Exception:  # noqa: S110
        pass


def _refuse(value: Any) -> Any:
    raise NotImplementedError("pgqrs is a transport; it brings no serializer for Kombu")


register()
if "celery.app.utils" in sys.modules:
    mask_settings()
else:
    sys.meta_path.insert(0, _WhenImported())

#: What Kombu expects of an entry point of its group: encode, decode, content type, encoding. Nobody uses it.
serializer = (_refuse, _refuse, "application/x-pgqrs-transport", "binary")
