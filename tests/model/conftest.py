"""Lets the tests import the helpers beside them and those of the tests against a server."""

import sys
from pathlib import Path

for folder in (Path(__file__).parent, Path(__file__).parents[1] / "postgres"):
    sys.path.insert(0, str(folder))
