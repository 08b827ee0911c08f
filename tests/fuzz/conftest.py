"""Lets the tests import the targets beside them."""

import sys
from pathlib import Path

import pytest

# Each target is a parser of an adapter or a plugin.
for name in ("celery", "dramatiq", "cryptography", "zstandard"):
    pytest.importorskip(name)

sys.path.insert(0, str(Path(__file__).parent))
