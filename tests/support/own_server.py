"""A server that one test has for itself: its log can be read, and it can be restarted."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pgqrs_core.cluster import Cluster
from pgqrs_core.testing import throw_away_cluster

_LINE = re.compile(r"\b(?:ERROR|FATAL|PANIC):.*")


class OwnServer:
    """A throw-away server."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.dsn = cluster.dsn
        self._read_from = 0

    def errors(self) -> list[str]:
        """The errors that the server has logged since the last call."""
        text = self._cluster.log.read_text(encoding="utf-8", errors="replace")
        found = _LINE.findall(text[self._read_from :])
        self._read_from = len(text)
        return found

    def restart(self) -> None:
        """Break off all connections, and come back at the same address."""
        self._cluster.stop("fast")
        self._cluster.start()


@contextmanager
def own_server(bindir: Path) -> Iterator[OwnServer]:
    """Run a server for the time of a block."""
    with throw_away_cluster(bindir) as cluster:
        yield OwnServer(cluster)
