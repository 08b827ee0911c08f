"""Celery's results on PostgreSQL: the backend ``pgqrs://``.

Celery finds it by its entry point: ``Celery(..., backend="pgqrs://user:password@host:5432/database")``. Nothing here
needs to be imported by an application.
"""
