"""Tables as hostile programs wish them: without the constraints that keep rows within bounds."""

from __future__ import annotations

import psycopg

__all__ = ["without_constraints"]

_DROP = """
do $$
declare statement text;
begin
  for statement in
    select format('alter table %s drop constraint %I', conrelid::regclass, conname)
    from pg_constraint where contype = 'c' and connamespace = 'pgqrs'::regnamespace
  loop execute statement; end loop;
end $$
"""


def without_constraints(dsn: str) -> None:
    """Drop every CHECK constraint of the tables in schema ``pgqrs``, as where an installation is older than they are."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(_DROP)
