"""The fixtures are in modules of their own."""

import signal
from collections.abc import Iterator
from importlib.metadata import version

import pytest

from pgqrs_core import installations

pytest_plugins = ["pgqrs_core.testing.postgres"]

# Whoever starts the tests in the background of a script lets them, and every program they start, ignore Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

if version("sqlalchemy").startswith("1."):
    from sqlalchemy.dialects import registry

    registry.register("postgresql.psycopg", "tests.support.sqlalchemy_14", "Dialect")


@pytest.fixture(autouse=True)
def _no_installation_is_known() -> Iterator[None]:
    """Let this process know of no tables: tests share databases, and remove in one what was made in another."""
    installations.forget_all()
    yield
    installations.forget_all()
