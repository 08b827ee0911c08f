"""A plugin of somebody else, installed beside our wheel as its users do it."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HELLO = ROOT / "examples" / "pgqrs_hello"

PROGRAM = """
import pgqrs_core, pgqrs_hello, sys
from pgqrs_native import Client

assert all(module.__file__.startswith(sys.prefix) for module in (pgqrs_core, pgqrs_hello)), pgqrs_core.__file__
with Client(sys.argv[1]) as client:
    client.admin.install()
    client.admin.create_queue("jobs")
    client.producer.batch_enqueue("jobs", [pgqrs_hello.Rows([["a", "b"]]), 5])
    first, second = client.consumer.read_batch("jobs")
    print(type(first.payload).__name__, first.payload, first.headers, second.payload)
    client.consumer.dequeue(first)
    client.consumer.nack(second, bury=True)
"""


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with our wheel and the plugin, and for the rest what is installed here: it needs no network."""
    folder = tmp_path_factory.mktemp("hello") / "env"
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    packages = next((folder / "lib").glob("python*")) / "site-packages"
    (packages / "zz_shared.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    options = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", *options, str(wheel), str(HELLO)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return python


def run(python: Path, *arguments: str, dsn: str = "") -> str:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PGQRS_", "PYTHON"))}
    done = subprocess.run(
        [python, *arguments],
        capture_output=True,
        text=True,
        cwd=python.parent,
        timeout=120,
        check=False,
        env={**kept, "DATABASE_URL": dsn, "PGQRS_PLUGINS_HELLO_GREETING": "moin"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_plugin_of_somebody_else_works_with_our_wheel(python: Path, pgqrs_dsn: str) -> None:
    pytest.importorskip("typer")
    printed = run(python, "-W", "error", "-c", PROGRAM, pgqrs_dsn)
    pgqrs = str(python.parent / "pgqrs")
    # The program has ended and its journal is written; the command goes where the option says, before it or behind.
    journal = run(python, pgqrs, "hello", "--url", pgqrs_dsn)
    document = json.loads(run(python, pgqrs, "--url", pgqrs_dsn, "hello", "--json"))
    plugins = json.loads(run(python, pgqrs, "plugins", "--json", dsn=pgqrs_dsn))
    doctor = json.loads(run(python, pgqrs, "doctor", "--json", dsn=pgqrs_dsn))

    assert printed == "Rows [['a', 'b']] {'greeting': 'moin'} 5\n"
    assert journal == "jobs\tacked\t1\njobs\tdead\t1\n"
    assert document[0] == {"queue": "jobs", "outcome": "acked", "count": 1}
    [hello] = [one for one in plugins["loaded"] if one["name"] == "hello"]
    assert (hello["distribution"], hello["version"]) == ("pgqrs-hello", "1.0.0")
    assert plugins["broken"] == []
    assert any("text/csv" in one["summary"] for one in doctor["findings"])


def test_its_own_tests_run_the_conformance_suite_there(python: Path) -> None:
    printed = run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HELLO / "tests"))

    assert "13 passed" in printed
