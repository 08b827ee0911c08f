"""Mutation tests of the core: change one thing at a time, and see whether a test notices.

``python tests/mutants.py`` mutates what decides about messages: the operations that enqueue, claim and settle, the
low-water marks, and the statements of ``queries.sql``. It needs a server (``PGQRS_TEST_DSN``), takes an hour or two, and
prints every mutant that no test killed. ``--only marks`` chooses files by name, ``--every 5`` takes each fifth mutant,
``--list`` runs none, and ``--quick`` leaves out the tests that take minutes, so survivors cost less and are more.

It works in a copy of the project, so an interrupted run leaves nothing behind.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
COPIED = ("pgqrs_core", "adapters", "plugins", "tests", "pyproject.toml", "README.md")

#: The tests that should notice. Those of the tests themselves are left out.
OPERATIONS = "tests/core/test_operations.py"
MARKS = "tests/core/test_marks.py -k not(broken)"
SQL_TEXT = "tests/core/test_sql.py"
SIMULATION = "tests/model/test_simulation.py -k not(seeded)and(not(twenty))"
KEYS = "tests/postgres/test_keys.py -k sync"
MACHINE = "tests/model/test_machine.py -k sync"
ENGINE = "tests/postgres/test_engine.py -k sync"
PLANS = "tests/postgres/test_plans.py"

#: Left out when it has to be quick.
SLOW = {ENGINE, PLANS}

#: What is mutated, and which tests are asked, the quickest first.
TARGETS = {
    "pgqrs_core/marks.py": [MARKS, SIMULATION],
    "pgqrs_core/operations/claim.py": [OPERATIONS, SIMULATION, ENGINE],
    "pgqrs_core/operations/settle.py": [OPERATIONS, SIMULATION, ENGINE],
    "pgqrs_core/operations/enqueue.py": [OPERATIONS, KEYS, ENGINE],
    "pgqrs_core/sql/queries.sql": [SQL_TEXT, KEYS, MACHINE, ENGINE, PLANS],
}


class Mutant(NamedTuple):
    """One change: where, what was there, and what is there instead."""

    line: int
    start: int
    end: int
    old: str
    new: str

    def __str__(self) -> str:
        return f"{self.line}: {self.old!r} -> {self.new!r}"

    def apply(self, text: str) -> str:
        return text[: self.start] + self.new + text[self.end :]


COMPARISONS = {"<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "==", "is": "is not", "is not": "is"}
WORDS = {
    "and": "or",
    "or": "and",
    "not ": "",
    "True": "False",
    "False": "True",
    "any(": "all(",
    "all(": "any(",
    "max(": "min(",
    "min(": "max(",
    "sorted(": "list(",
    "break": "pass",
    " + ": " - ",
    " - ": " + ",
}
PYTHON = re.compile(
    r"(?<![\w.])(?:and|or|not |True|False|any\(|all\(|max\(|min\(|sorted\(|break\b)(?!\w)?| [+-] |"
    r"(?<= )(?:<=|>=|==|!=|<|>|is not|is)(?= )|(?<![\w.\"'])\d+(?:\.\d+)?(?![\w.\"'])"
)
SQL_WORDS = {
    " and ": " or ",
    " or ": " and ",
    "<=": "<",
    ">=": ">",
    " < ": " <= ",
    " > ": " >= ",
    " = ": " <> ",
    " + ": " - ",
    " - ": " + ",
    "not exists": "exists",
    "skip locked": "",
    "greatest(": "least(",
    " is null": " is not null",
    "is not null": "is null",
    "statement_timestamp()": "to_timestamp(0)",
    "union all": "union",
}
SQL = re.compile(
    "|".join(re.escape(word) for word in sorted(SQL_WORDS, key=len, reverse=True)) + r"|(?<![\w'.{(-])\d+(?![\w'.}])"
)


class Places:
    """From lines and columns of a syntax tree to places in the text."""

    def __init__(self, text: str) -> None:
        self._starts = [0]
        for line in text.splitlines(keepends=True):
            self._starts.append(self._starts[-1] + len(line))

    def of(self, node: ast.expr | ast.stmt) -> tuple[int, int]:
        last, column = node.end_lineno or node.lineno, node.end_col_offset or 0
        return self._starts[node.lineno - 1] + node.col_offset, self._starts[last - 1] + column


def dull(tree: ast.AST) -> Iterator[ast.expr | ast.stmt]:
    """Texts, types, decorators and imports: to change those is not to change what is decided."""
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, (str, bytes))):
            yield node
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield from node.decorator_list
            if isinstance(node, ast.FunctionDef) and node.returns is not None:
                yield node.returns
        elif isinstance(node, (ast.arg, ast.AnnAssign)) and node.annotation is not None:
            yield node.annotation
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node


def python_mutants(text: str) -> Iterator[Mutant]:
    """One mutant for each operator, word and number, and one without each statement."""
    tree, places = ast.parse(text), Places(text)
    hidden = [places.of(node) for node in dull(tree)] + [found.span() for found in re.finditer(r"#.*", text)]
    for found in PYTHON.finditer(text):
        if any(start <= found.start() < end for start, end in hidden):
            continue
        old = found[0]
        new = {**WORDS, **COMPARISONS}.get(old) or (str(int(old) + 1) if old.isdigit() else f"({old} * 2)")
        yield Mutant(text.count("\n", 0, found.start()) + 1, *found.span(), old, "" if old == "not " else new)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Expr, ast.Assign, ast.AugAssign, ast.Raise)) and node.col_offset:
            start, end = places.of(node)
            if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
                yield Mutant(node.lineno, start, end, text[start:end].split("\n")[0], "pass")


def sql_mutants(text: str) -> Iterator[Mutant]:
    """One mutant for each operator, condition and number outside of comments."""
    hidden = [(m.start(), m.end()) for m in re.finditer(r"--.*", text)]
    for found in SQL.finditer(text):
        if not any(start <= found.start() < end for start, end in hidden):
            old = found[0]
            new = SQL_WORDS[old] if old in SQL_WORDS else str(int(old) + 1)
            yield Mutant(text.count("\n", 0, found.start()) + 1, found.start(), found.end(), old, new)


def mutants_of(path: str) -> list[Mutant]:
    text = (ROOT / path).read_text()
    return list(python_mutants(text) if path.endswith(".py") else sql_mutants(text))


def is_killed(folder: Path, tests: list[str], limit: float) -> bool:
    """Whether a test fails. One that hangs has noticed."""
    paths = [str(folder / name) for name in ("", "adapters", "plugins")]
    environment = {**os.environ, "PYTHONPATH": ":".join(paths), "PYTHONDONTWRITEBYTECODE": "1", "PGQRS_SCHEDULES": "5"}
    for test in tests:
        command = [sys.executable, "-m", "pytest", "-qx", "-p", "no:cacheprovider", *test.split()]
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            if process.wait(limit) != 0:
                return True
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()
            return True
    return False


def run(path: str, mutants: list[Mutant], tests: list[str], limit: float) -> list[Mutant]:
    """Try mutants of one file; return those that survive."""
    survivors: list[Mutant] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for item in COPIED:
            source = ROOT / item
            copy = shutil.copytree if source.is_dir() else shutil.copy
            copy(source, folder / item)
        text = (ROOT / path).read_text()
        if is_killed(folder, tests, limit):
            raise SystemExit(f"the tests of {path} fail without any mutant")
        for place, mutant in enumerate(mutants, 1):
            (folder / path).write_text(mutant.apply(text))
            if not is_killed(folder, tests, limit):
                survivors.append(mutant)
                print(f"  {place} of {len(mutants)} survives: {path}:{mutant}", flush=True)
    return survivors


def main() -> None:
    """Mutate, test, and print the score."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="part of a file's name")
    parser.add_argument("--every", type=int, default=1, help="take each n-th mutant")
    parser.add_argument("--offset", type=int, default=0, help="beginning with this one")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds for the tests of one file")
    parser.add_argument("--quick", action="store_true", help="leave out the tests that take minutes")
    parser.add_argument("--list", action="store_true", help="show the mutants and run none")
    arguments = parser.parse_args()
    for path in TARGETS:
        if arguments.only in path:
            mutants = mutants_of(path)[arguments.offset :: arguments.every]
            if arguments.list:
                print(f"{path}: {len(mutants)}", *mutants, sep="\n  ")
                continue
            began = time.monotonic()
            tests = [test for test in TARGETS[path] if not (arguments.quick and test in SLOW)]
            survivors = run(path, mutants, tests, arguments.limit)
            killed = len(mutants) - len(survivors)
            print(f"{path}: {killed} of {len(mutants)} killed in {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
