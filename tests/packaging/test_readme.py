"""The README keeps its word: every block in it runs."""

import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pgqrs_native
import psycopg
import pytest
from pgqrs_native import Client, Worker

from pgqrs_core import Plugins
from pgqrs_core.events import Draft, EnqueueBatch

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
PYTHON = [text for language, text in BLOCKS if language == "python" and "hookimpl" not in text]


def block(language: str, part: str) -> str:
    return next(text for kind, text in BLOCKS if kind == language and part in text)


class WorkerThatStops(Worker):
    """Runs like any worker, until its queues are empty."""

    def __init__(self, client: Client, **settings: Any) -> None:
        super().__init__(client, **settings)
        self.client = client

    def run(self, *, signals: bool = True) -> None:
        threading.Thread(target=self._stop_when_done, daemon=True).start()
        super().run(signals=signals)

    def _stop_when_done(self) -> None:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            left = [self.client.admin.queue_metrics(name) for name in ("emails", "events")]
            if all(one.ready + one.in_flight == 0 for one in left):
                break
            time.sleep(0.05)
        self.stop()


def test_the_python_blocks_run_one_after_the_other(pgqrs_dsn: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DATABASE_URL", pgqrs_dsn)
    monkeypatch.setattr(pgqrs_native, "Worker", WorkerThatStops)
    handled: list[Any] = []
    with psycopg.connect(pgqrs_dsn, autocommit=True) as connection, Client(pgqrs_dsn) as client:
        connection.execute("create table orders (item text)")
        client.admin.install()
        for name in ("emails", "orders", "events"):
            client.admin.create_queue(name)
        names: dict[str, Any] = {
            "client": client,
            "dsn": pgqrs_dsn,
            "order": {"item": "book"},
            "payload": {"to": "a@example.org", "subject": "s"},
            "payloads": [{"to": "b@example.org", "subject": "s"}] * 3,
            "psycopg": psycopg,
            "save": lambda payload: payload != "bad",
            "send": handled.append,
            "try_to_send": lambda payload: handled.append(payload) or True,
        }
        client.producer.batch_enqueue("events", ["good", "good"])

        for text in PYTHON:
            exec(compile(text.replace("postgresql://app:secret@localhost/app", pgqrs_dsn), "README.md", "exec"), names)
            names["client"] = client if names["client"] is not client and "Worker" not in text else names["client"]

        assert handled
        assert [row[0] for row in connection.execute("select item from orders")] == ["book"]
        assert client.admin.queue_metrics("orders").ready == 1
        names["worker"].client.close()


def test_the_quick_start_of_the_command_works_as_written(pgqrs_dsn: str, tmp_path: Path):
    text = block("sh", "queue create my_queue")
    lines = [line for line in text.splitlines() if line.startswith("pgqrs ")]
    assert len(lines) == 5
    environment = {
        **os.environ,
        "DATABASE_URL": pgqrs_dsn,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }

    done = subprocess.run(
        ["bash", "-ec", "\n".join(lines)], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    assert "process_data" in done.stdout


def test_the_plugin_works_as_written():
    source = block("python", "hookimpl")
    names: dict[str, Any] = {}
    exec(source, names)
    plugins = Plugins.core()
    plugins.register(
        type("audit", (), {"pgqrs_before_enqueue": staticmethod(names["pgqrs_before_enqueue"])})(), "audit"
    )
    batch = EnqueueBatch("q", "native", [Draft("q", b"", "application/octet-stream")])

    plugins.hooks.before_enqueue(batch)

    assert batch.drafts[0].headers == {"sent-by": "billing"}


@pytest.mark.parametrize("folder", ["docs", "examples", "pgqrs_core", "adapters", "plugins", "."])
def test_nothing_is_installed_from_the_index_by_a_name_that_is_not_this_projects(folder: str):
    """It names a clone, or the address of one."""
    depth = "*.md" if folder == "." else "**/*.*"
    pages = [page for page in (ROOT / folder).glob(depth) if page.suffix in (".md", ".py", ".sql")]
    found = [
        f"{page.name}: {line}"
        for page in pages
        for line in page.read_text(encoding="utf-8").splitlines()
        if re.search(r"pip install[^`]*pgqrs-py(?!\S* @)", line)
    ]

    assert pages
    assert found == []


def test_the_continuous_integration_runs_the_readmes_test_command():
    lines = [line for line in README.splitlines() if "-e '.[test]' && .venv/bin/pytest" in line]

    assert len(lines) == 1
    assert lines[0] in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert "readme_test_command" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "page", sorted(ROOT.glob("*.md")) + sorted(ROOT.glob("docs/**/*.md")), ids=lambda page: page.name
)
def test_the_links_of_a_page_lead_somewhere(page: Path):
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))

    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_queries_of_the_sql_page_run(pgqrs_dsn: str):
    page = (ROOT / "docs" / "sql.md").read_text(encoding="utf-8")
    statements = re.findall(r"^```sql\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    with Client(pgqrs_dsn) as client:
        client.admin.install()
        client.admin.create_queue("emails")
        client.producer.enqueue("emails", {"to": "ada@example.org"})

    with psycopg.connect(pgqrs_dsn) as connection:
        for statement in statements:
            connection.execute(statement.encode())

    assert len(statements) == 5
