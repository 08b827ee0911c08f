"""Mutation tests of the core: change one thing at a time, and see whether a test notices.

``python tests/mutants.py`` mutates what decides about messages: the operations that enqueue, claim and settle, the
low-water marks, and the statements of ``queries.sql``. It needs a server (``PGQRS_TEST_DSN``), takes the better part of
an hour on two cores, and prints every mutant that no test killed; it fails if there is any. ``--only marks`` chooses
files by name, ``--every 5`` takes each fifth mutant, ``--lines 40-60`` those of some lines, ``--list`` runs none,
``--quick`` asks the quickest tests only, so more survive, and ``--killers`` tells which test killed each.

Mutants that cannot be told from the original, or only by its speed, are listed in ``mutation/excused.yaml``, each with
its reason; they are not run.

It works in copies of the project, so an interrupted run leaves nothing behind.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue

import yaml

sys.path.insert(0, str(Path(__file__).parent / "mutation"))

from changes import Mutant, mutants_of

ROOT = Path(__file__).parents[1]
COPIED = ("pgqrs_core", "adapters", "plugins", "tests", "pyproject.toml", "README.md")
EXCUSED = Path(__file__).parent / "mutation" / "excused.yaml"

#: The tests that should notice. Those of the tests themselves are left out, and so is the asynchronous half of those that
#: run on both engines: the operations and statements are the same ones.
OPERATIONS = "tests/core/test_operations.py"
CLAIM = f"{OPERATIONS} -k (Claim)or(Receive)"
SETTLE = f"{OPERATIONS} -k (Settle)or(Replace)or(Nack)"
ENQUEUE = f"{OPERATIONS} -k (Enqueue)or(Doorbell)and(not(fits))"
MARKS = "tests/core/test_marks.py -k not(broken)"
STATEMENTS = "tests/postgres/test_statements.py"
SQL_TEXT = "tests/core/test_sql.py"
SIMULATION = "tests/model/test_simulation.py -k (once)or(hundreds)"
KEYS = "tests/postgres/test_keys.py -k not(async)"
MACHINE = "tests/model/test_machine.py -k not(async)"
ENGINE = "tests/postgres/test_engine.py -k not(async)"
PLANS = "tests/postgres/test_plans.py -k not(async)"

#: Tests that wait for something, and may fail on a busy machine whatever is mutated: they have to fail twice.
WAITING = {ENGINE}

#: What is mutated, and which tests are asked, the quickest first.
TARGETS = {
    "pgqrs_core/marks.py": [MARKS, CLAIM, SIMULATION],
    "pgqrs_core/operations/claim.py": [CLAIM, SIMULATION, ENGINE],
    "pgqrs_core/operations/settle.py": [SETTLE, SIMULATION, ENGINE],
    "pgqrs_core/operations/enqueue.py": [ENQUEUE, KEYS, ENGINE],
    "pgqrs_core/sql/queries.sql": [STATEMENTS, SQL_TEXT, MACHINE, KEYS, PLANS, ENGINE],
}


def excuses_of(path: str) -> set[tuple[str, str]]:
    """Lines of one file, and changes there, that need not be noticed. Each has to fit some mutant, and to have a reason."""
    groups = yaml.safe_load(EXCUSED.read_text()).get(path, [])
    found = {(line, change) for group in groups for line, changes in group["mutants"].items() for change in changes}
    text = (ROOT / path).read_text()
    lines = text.splitlines()
    left = found - {place_of(mutant, lines) for mutant in mutants_of(text, is_python=path.endswith(".py"))}
    if left or not all(group["because"] for group in groups):
        raise SystemExit(f"{EXCUSED}: {path}: no such mutant any more, or no reason given: {left}")
    return found


def place_of(mutant: Mutant, lines: list[str]) -> tuple[str, str]:
    """What an excuse knows a mutant by: its number would change with every line above it."""
    return lines[mutant.line - 1].strip(), mutant.change


def first_failure(folder: Path, test: str, limit: float) -> str | None:
    """Run tests until one fails; return its name, or None if all pass. One that hangs has noticed."""
    paths = [str(folder / name) for name in ("", "adapters", "plugins", "tests/mutation")]
    environment = {**os.environ, "PYTHONPATH": ":".join(paths), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-qx",
        "--tb=no",
        "-p",
        "no:cacheprovider",
        "-p",
        "no_shrinking",
        *test.split(),
    ]
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return f"{test.split()[0]} hangs"
    if process.returncode == 0:
        return None
    named = re.search(r"^(?:FAILED|ERROR) (\S+)", output, re.MULTILINE)
    return named[1] if named else test.split()[0]


def killer_of(folder: Path, tests: list[str], limit: float) -> str | None:
    """Return the name of a test that fails, or None."""
    for test in tests:
        failed = first_failure(folder, test, limit)
        if failed and test in WAITING:
            failed = first_failure(folder, failed.split()[0], limit) or first_failure(folder, test, limit)
        if failed:
            return failed
    return None


@contextmanager
def copies(number: int) -> Iterator[SimpleQueue[Path]]:
    """Copies of the project, for whoever takes one and puts it back."""
    free: SimpleQueue[Path] = SimpleQueue()
    with tempfile.TemporaryDirectory() as name:
        for place in range(number):
            folder = Path(name) / str(place)
            folder.mkdir()
            for item in COPIED:
                source = ROOT / item
                copy = shutil.copytree if source.is_dir() else shutil.copy
                copy(source, folder / item)
            free.put(folder)
        yield free


def run(path: str, mutants: list[Mutant], tests: list[str], *, jobs: int, limit: float, killers: bool) -> int:
    """Try mutants of one file, tell of those that survive, and return how many they are."""
    text = (ROOT / path).read_text()
    with copies(jobs) as free, ThreadPoolExecutor(jobs) as pool:
        folder = free.get()
        if failed := killer_of(folder, tests, limit):
            raise SystemExit(f"the tests of {path} fail without any mutant: {failed}")
        free.put(folder)

        def try_one(mutant: Mutant) -> str | None:
            folder = free.get()
            try:
                (folder / path).write_text(mutant.apply(text))
                return killer_of(folder, tests, limit)
            finally:
                (folder / path).write_text(text)
                free.put(folder)

        survivors = 0
        for mutant, killer in zip(mutants, pool.map(try_one, mutants)):
            survivors += killer is None
            if killers or killer is None:
                print(f"  {path}:{mutant} {'survives' if killer is None else 'is killed by ' + killer}", flush=True)
    return survivors


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="part of a file's name")
    parser.add_argument("--every", type=int, default=1, help="take each n-th mutant")
    parser.add_argument("--offset", type=int, default=0, help="beginning with this one")
    parser.add_argument("--lines", default="1-1000000", help="take the mutants of these lines")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds for the tests of one file")
    parser.add_argument("--jobs", type=int, default=2, help="how many mutants to try at a time")
    parser.add_argument("--killers", action="store_true", help="show which test killed each")
    parser.add_argument("--quick", action="store_true", help="ask the quickest tests only")
    parser.add_argument("--list", action="store_true", help="show the mutants and run none")
    return parser.parse_args()


def main() -> int:
    """Mutate, test, and print the score; return how many survive."""
    given = arguments()
    first, last = map(int, given.lines.split("-"))
    total = 0
    for path in (path for path in TARGETS if given.only in path):
        text, excuses = (ROOT / path).read_text(), excuses_of(path)
        lines = text.splitlines()
        found = mutants_of(text, is_python=path.endswith(".py"))[given.offset :: given.every]
        found = [mutant for mutant in found if first <= mutant.line <= last]
        mutants = [mutant for mutant in found if place_of(mutant, lines) not in excuses]
        excused = len(found) - len(mutants)
        if given.list:
            print(f"{path}: {len(mutants)}, and {excused} excused", *mutants, sep="\n  ")
            continue
        began = time.monotonic()
        tests = TARGETS[path][:1] if given.quick else TARGETS[path]
        survivors = run(path, mutants, tests, jobs=given.jobs, limit=given.limit, killers=given.killers)
        total += survivors
        print(
            f"{path}: {len(found)} mutants, {len(mutants) - survivors} killed, {excused} excused, {survivors} survive, "
            f"in {time.monotonic() - began:.0f} s",
            flush=True,
        )
    return total


if __name__ == "__main__":
    sys.exit(1 if main() else 0)
