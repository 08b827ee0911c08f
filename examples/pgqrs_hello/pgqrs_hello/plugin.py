"""What the entry point names: the hooks. It is imported by every process that uses pgqrs, so it imports little."""

from __future__ import annotations

from typing import Any

from pgqrs_core.hookspecs import MigrationSource, hookimpl
from pgqrs_core.plugin_settings import PluginSettings, Setting
from pgqrs_core.serializers import Serializer
from pgqrs_hello.csv_rows import CsvRows
from pgqrs_hello.journal import Journal

#: The version of the plugin interface that this was written for.
pgqrs_api = 1

_SETTINGS = {"greeting": Setting("text", "a header that every message of ours gets", "hello", low=1, high=100)}


class Hello(Journal):
    """The plugin with its settings; each engine that has other settings has another one.

    Of the hooks that count, `Journal` keeps the last.
    """

    def __init__(self, greeting: str) -> None:
        self.greeting = greeting
        super().__init__()

    @hookimpl
    def pgqrs_serializers(self) -> list[Serializer]:
        """Add CSV."""
        return [CsvRows()]

    @hookimpl
    def pgqrs_before_enqueue(self, batch: Any) -> None:
        """Greet whoever gets our rows."""
        for draft in batch.drafts:
            if draft.content_type == CsvRows.content_type:
                draft.headers = {**(draft.headers or {}), "greeting": self.greeting}

    @hookimpl
    def pgqrs_migrations(self) -> MigrationSource:
        """Bring the table of the journal."""
        return MigrationSource("hello", "pgqrs_hello.migrations")

    @hookimpl
    def pgqrs_cli(self, app: Any) -> None:
        """Add ``pgqrs hello``."""
        from pgqrs_hello.command import add_to

        add_to(app)


@hookimpl
def pgqrs_configure(settings: PluginSettings) -> Hello:
    """Take ``plugins.hello.greeting``."""
    return Hello(**settings.read(_SETTINGS))
