"""What tests of pgqrs, and of programs that use it, share. Nothing here imports pytest; the fixtures do.

The fixtures are in ``pgqrs_core.testing.postgres``: ``pytest_plugins = ["pgqrs_core.testing.postgres"]``.
"""

from pgqrs_core.testing.proxy import Proxy
from pgqrs_core.testing.servers import docker_server, find_bindir, throw_away_cluster, with_database
from pgqrs_core.testing.waiting import PATIENCE, eventually

__all__ = ["PATIENCE", "Proxy", "docker_server", "eventually", "find_bindir", "throw_away_cluster", "with_database"]
