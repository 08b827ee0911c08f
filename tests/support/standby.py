"""A server, and a standby that follows it."""

from __future__ import annotations

import os
import signal
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgqrs_core.cluster import Cluster, programs
from pgqrs_core.cluster.datadir import give, make_directory
from pgqrs_core.testing import eventually

__all__ = ["Pair", "set_globally"]


def _ask(dsn: str, statement: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


class Pair:
    """A primary and its standby."""

    def __init__(self, primary: Cluster) -> None:
        self.primary = primary
        self.directory = primary.directory / "standby"
        make_directory(self.directory, primary.account)
        target = self.directory / "data"
        target.mkdir(mode=0o700)
        give(target, primary.account)
        done = programs.run(
            [
                *(primary.bindir / "pg_basebackup", "--dbname", primary.dsn_for("postgres"), "--pgdata", target),
                *("--write-recovery-conf", "--checkpoint=fast", "--no-sync"),
            ],
            primary.account,
            timeout=60,
        )
        assert done.returncode == 0, done.stdout
        self.standby = Cluster(
            primary.bindir, self.directory, password=primary.password, options=primary.options, durable=False
        )
        self.standby.start()
        eventually(lambda: self.replicating(), what="the standby follows")

    def replicating(self) -> bool:
        return bool(_ask(self.primary.dsn, "select 1 from pg_stat_replication where state = 'streaming'"))

    @property
    def dsn(self) -> str:
        """Both hosts, for whoever wants the one that takes writes."""
        first, second = (conninfo_to_dict(one.dsn) for one in (self.primary, self.standby))
        both = {key: f"{first[key]},{second[key]}" for key in ("host", "port")}
        return make_conninfo(**{**first, **both, "target_session_attrs": "read-write", "connect_timeout": 3})

    def wait_for_standby(self) -> None:
        """Let commits wait for the standby from now on."""
        set_globally(self.primary, "synchronous_standby_names", "*")
        eventually(
            lambda: _ask(self.primary.dsn, "select 1 from pg_stat_replication where sync_state = 'sync'"),
            what="the standby is synchronous",
        )

    def fail_over(self) -> None:
        """Kill the primary, and promote the standby."""
        self.primary.kill()
        _ask(self.standby.dsn, "select pg_promote()")
        eventually(
            lambda: not _ask(self.standby.dsn, "select pg_is_in_recovery()")[0][0], what="the standby is promoted"
        )

    def fall_behind(self) -> int:
        """Send the standby nothing any more; return the process that would."""
        sender: int = _ask(self.primary.dsn, "select pid from pg_stat_replication")[0][0]
        os.kill(sender, signal.SIGSTOP)
        return sender


def set_globally(cluster: Cluster, name: str, value: str) -> None:
    _ask(cluster.dsn, f"alter system set {name} = '{value}'")
    _ask(cluster.dsn, "select pg_reload_conf()")
