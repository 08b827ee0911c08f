"""A database with roles, and programs that log in as one of them."""

from __future__ import annotations

import secrets
from typing import Any

import psycopg
from pgqrs_native import Client
from psycopg import sql
from psycopg.conninfo import make_conninfo

from pgqrs_core.config import Config
from pgqrs_core.sql import DUTIES


class Estate:
    """An installation with roles, a queue ``jobs``, and one login for each role. Roles are the whole server's: drop them.

    Args:
        dsn: a database, as whoever may do everything there.
        duties: those that get a login.
    """

    def __init__(self, dsn: str, duties: tuple[str, ...] = DUTIES) -> None:
        self.dsn = dsn
        self.prefix = f"pgqrs_t{secrets.token_hex(4)}"
        self._password = secrets.token_hex(8)
        self._logins: list[str] = []
        self._clients: list[Client] = []
        self.owner = self.client(dsn)
        self.owner.admin.install(roles=True, role_prefix=self.prefix)
        self.owner.admin.create_queue("jobs", max_attempts=2, backoff_base=0.0)
        for duty in duties:
            self.login(f"{self.prefix}_a_{duty}", grant=self.role(duty))

    def role(self, duty: str) -> str:
        return f"{self.prefix}_{duty}"

    def login(self, name: str, *, grant: str | None = None, attributes: str = "") -> str:
        """Make a role that can log in; return its connection string."""
        self.run(f"create role {{}} login {attributes} password {{}}", name, sql.Literal(self._password))
        self._logins.append(name)
        if grant:
            self.run("grant {} to {}", grant, name)
        return self.as_user(name)

    def as_user(self, name: str) -> str:
        return make_conninfo(self.dsn, user=name, password=self._password)

    def url(self, duty: str) -> str:
        """The connection string of the program that has this duty."""
        return self.as_user(f"{self.prefix}_a_{duty}")

    def client(self, url: str, **settings: Any) -> Client:
        self._clients.append(Client(Config.load(url=url, env={}, **settings)))
        return self._clients[-1]

    def run(self, statement: str, *names: str | sql.Composable) -> list[tuple[Any, ...]]:
        """Run a statement as the owner; texts are identifiers."""
        parts = [sql.Identifier(name) if isinstance(name, str) else name for name in names]
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            cursor = connection.execute(sql.SQL(statement).format(*parts))  # type: ignore[arg-type]
            return cursor.fetchall() if cursor.description else []

    def close(self) -> None:
        """Leave nothing."""
        for client in self._clients:
            client.close()
        for name in (*self._logins, *map(self.role, DUTIES)):
            if self.run("select rolname from pg_roles where rolname = {}", sql.Literal(name)):
                self.run("drop owned by {} cascade", name)
                self.run("drop role {}", name)
