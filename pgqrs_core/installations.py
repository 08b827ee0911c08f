"""Which installations this process has used.

Tables that a process has used and that are gone mean an outage: the database is being replaced, or restored. Tables
that are made anew meanwhile make the restore fail, so a process makes them only where it has never seen them.
"""

from __future__ import annotations

from typing import Final

from pgqrs_core.errors import SchemaUnavailable

__all__ = ["Installation", "forget_all"]

#: By server and database, schema, and component. It outlives engines, and children inherit it.
_used: Final[set[tuple[str, str, str]]] = set()
#: By server and database, and schema: those that were found missing, and not complete since.
_awaited: Final[set[tuple[str, str]]] = set()


class Installation:
    """The tables of one schema in one database, as far as this process knows of them.

    Args:
        target: the server and database, as errors name them.
        schema: the schema.
    """

    def __init__(self, target: str, schema: str) -> None:
        self.target = target
        self.schema = schema

    def was_used(self, component: str = "") -> bool:
        """Tell whether this process has found the tables of a component complete, by default the core's."""
        return (self.target, self.schema, component) in _used

    def note_used(self, component: str = "") -> None:
        """Note that the tables of a component, by default the core's, are complete."""
        _used.add((self.target, self.schema, component))
        _awaited.discard((self.target, self.schema))

    @property
    def is_awaited(self) -> bool:
        """Whether tables were found missing, and not found complete since: a restore may be half done."""
        return (self.target, self.schema) in _awaited

    def forget(self) -> None:
        """Note that the tables were removed on purpose."""
        _used.difference_update([key for key in _used if key[:2] == (self.target, self.schema)])
        _awaited.discard((self.target, self.schema))

    def unavailable(self, reason: str) -> SchemaUnavailable:
        """Return the error for tables that were there and are not any more. From now on they are awaited."""
        _awaited.add((self.target, self.schema))
        return SchemaUnavailable(self.schema, reason, target=self.target)


def forget_all() -> None:
    """Know of no installation, as a process does that has just begun: for tests."""
    _used.clear()
    _awaited.clear()
