"""What a mutant is: one operator, word, number or statement of a file changed, or one condition of an SQL statement."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import NamedTuple


class Mutant(NamedTuple):
    """One change: where, what was there, and what is there instead."""

    line: int
    start: int
    end: int
    old: str
    new: str

    def __str__(self) -> str:
        return f"{self.line}: {self.change}"

    @property
    def change(self) -> str:
        return f"{self.old.strip()} -> {self.new.strip()}".strip()

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
    r"(?<![\w.])(?:(?:and|or|True|False|break)\b|not |(?:any|all|max|min|sorted)\()| [+-] |"
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
    "message_id limit": "message_id desc limit",
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
        new = {**WORDS, **COMPARISONS}.get(old, "")
        if old[-1].isdigit():
            new = str(int(old) + 1) if old.isdigit() else str(float(old) * 2 or 1.0)
        yield Mutant(text.count("\n", 0, found.start()) + 1, *found.span(), old, new)
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


def mutants_of(text: str, *, is_python: bool) -> list[Mutant]:
    """All mutants of a file, in the order of their places."""
    return sorted(python_mutants(text) if is_python else sql_mutants(text), key=lambda mutant: mutant.start)
