"""Celery's results on PostgreSQL: the backend ``pgqrs://``.

Celery finds it by its entry point: ``Celery(..., backend="pgqrs://user:password@host:5432/database")``. Nothing here
needs to be imported by an application. With a Celery that is too old the import fails, with what to install.
"""

from __future__ import annotations

from pgqrs_core.requirements import is_installed, require

# Where there is none, the plugin in this package says so.
if is_installed("celery"):
    require("celery", "celery")
