"""Lets the tests import the helpers beside them, and those of the tests against a server."""

import sys
from pathlib import Path

HERE = Path(__file__).parent

for folder in (HERE, HERE.parent / "postgres"):
    sys.path.insert(0, str(folder))
