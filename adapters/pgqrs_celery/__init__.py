"""Celery's results on PostgreSQL: the backend ``pgqrs://``.

Celery finds it by its entry point: ``Celery(..., backend="pgqrs://user:password@host:5432/database")``. Nothing here
needs to be imported by an application. With a Celery that is too old that fails, with what to install.
"""
