"""Backups: pg_dump, pg_restore and psql of the server that the tests use, and databases that are replaced."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from pgqrs_core.testing.servers import find_bindir, with_database

__all__ = ["Backup", "program", "replace_database"]


def program(name: str, server: int) -> Path:
    """The path of one of PostgreSQL's programs of the server's major version, or of a later one."""
    bindir = find_bindir()
    found = bindir / name if bindir is not None else None
    if found is None or not found.exists():
        pytest.skip(f"needs {name} beside the server's programs")
    words = subprocess.run([found, "--version"], capture_output=True, text=True, check=True).stdout.split()
    if int(words[2].split(".")[0]) < server:
        pytest.skip(f"needs {name} of the server's version")
    return found


class Backup:
    """A dump of a database in a file.

    Args:
        dsn: the database.
        file: where to write it.
        plain: as a script for psql, else in the custom format.
        arguments: of pg_dump.
    """

    def __init__(self, dsn: str, file: Path, *arguments: str, plain: bool = False) -> None:
        with psycopg.connect(dsn) as connection:
            self._version = connection.info.server_version // 10_000
        self._file = file
        self._plain = plain
        form = "plain" if plain else "custom"
        self._run("pg_dump", "--dbname", dsn, "--format", form, "--file", str(file), *arguments)

    def restore(self, dsn: str, *arguments: str, first: str = "", fails: bool = False) -> str:
        """Restore it into a database, with these arguments of pg_restore or psql; return what that complained of.

        Of a script, ``first`` is run before.
        """
        if self._plain:
            before = ["-c", first] if first else []
            return self._run("psql", "-X", "-q", "-d", dsn, *before, "-f", str(self._file), *arguments, fails=fails)
        return self._run("pg_restore", "--dbname", dsn, *arguments, str(self._file), fails=fails)

    def _run(self, name: str, *arguments: str, fails: bool = False) -> str:
        done = subprocess.run(
            [program(name, self._version), *arguments], capture_output=True, text=True, check=False, timeout=60
        )
        assert (done.returncode != 0) == fails, done.stderr
        return done.stderr


def replace_database(dsn: str) -> None:
    """Drop a database with all sessions in it, and create an empty one in its place."""
    parameters: dict[str, Any] = conninfo_to_dict(dsn)
    name = sql.Identifier(parameters["dbname"])
    with psycopg.connect(with_database(dsn, "postgres"), autocommit=True) as connection:
        connection.execute(sql.SQL("drop database {} with (force)").format(name))
        connection.execute(sql.SQL("create database {} template template0").format(name))
