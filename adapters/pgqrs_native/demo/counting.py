"""The work itself: find Python files, count the NAME tokens in one. All processes share it."""

from __future__ import annotations

import os
import sysconfig
import tokenize
from collections import Counter
from pathlib import Path

import msgspec

__all__ = ["FileCount", "count_names", "find_files", "standard_library"]

#: Where other people's packages are, within the directory of the standard library.
_FOREIGN = frozenset({"site-packages", "dist-packages"})


class FileCount(msgspec.Struct, frozen=True):
    """How often each name occurs in one file."""

    path: str
    names: dict[str, int]
    #: Why counting ended before the end of the file; None if it did not.
    error: str | None = None

    @property
    def total(self) -> int:
        """The number of NAME tokens."""
        return sum(self.names.values())


def standard_library() -> Path:
    """Return the directory of the running Python's standard library."""
    return Path(sysconfig.get_path("stdlib"))


def find_files(root: Path, limit: int | None = None) -> tuple[list[str], int]:
    """Find every ``.py`` file below ``root``, in a fixed order, other people's packages excepted.

    Returns:
        Their absolute paths, at most ``limit``; and the number of files left out because their names are not
        valid Unicode, which JSON cannot carry.
    """
    found: list[str] = []
    skipped = 0
    for directory, below, names in os.walk(os.path.abspath(root)):
        below[:] = sorted(set(below) - _FOREIGN)
        for name in sorted(names):
            path = os.path.join(directory, name)
            if not name.endswith(".py") or not os.path.isfile(path):
                continue
            try:
                path.encode()
            except UnicodeEncodeError:
                skipped += 1
                continue
            found.append(path)
    if limit is not None and limit < len(found):
        # Spread over the whole tree: the first files alone would all be of one package.
        found = [found[place * len(found) // limit] for place in range(limit)]
    return found, skipped


def count_names(path: str) -> FileCount:
    """Count the NAME tokens of a file, up to its end or to the first error.

    Some files are bad on purpose: wrong encodings, wrong indentation, unfinished brackets. The names before
    the error count, and the error is kept. A file that cannot be read counts as one without names.
    """
    names: Counter[str] = Counter()
    error: str | None = None
    try:
        with open(path, "rb") as file:
            for token in tokenize.tokenize(file.readline):
                if token.type == tokenize.NAME:
                    names[token.string] += 1
    except (tokenize.TokenError, SyntaxError, ValueError, OSError) as problem:
        error = f"{type(problem).__name__}: {problem}"
    return FileCount(path, dict(names), error)
