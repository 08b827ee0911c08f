"""Commits that returned although no standby has confirmed them.

With synchronous replication a COMMIT waits for the standby. When that wait is cancelled – by an administrator, a pooler,
a client's time-out – PostgreSQL calls the commit a success and adds a mere warning. Failing over to the standby then
loses what was acknowledged, so such a commit is of unknown outcome here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pgqrs_core.errors import Unavailable

if TYPE_CHECKING:
    from psycopg.errors import Diagnostic

__all__ = ["Doubt"]

#: Where PostgreSQL gives the warning; its text is translated, and its SQLSTATE that of every warning.
_SOURCE: Final = "SyncRepWaitForLSN"


class Doubt:
    """Whether the last commit of one connection was confirmed; to be called with what the server notices."""

    def __init__(self) -> None:
        self.arisen = False

    def __call__(self, notice: Diagnostic) -> None:
        """Take a notice of the server."""
        if notice.source_function == _SOURCE:
            self.arisen = True

    def resolve(self, target: str) -> None:
        """Raise if the last commit was not confirmed.

        Raises:
            Unavailable: it is on this server; whether a standby has it is not known.
        """
        if self.arisen:
            self.arisen = False
            raise Unavailable(
                f"{target} has committed, but the wait for its synchronous standby was cancelled: a failover may undo it",
                target=target,
                in_flight=True,
            )
