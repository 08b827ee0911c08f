"""What the driver makes of the server's errors."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import psycopg
import pytest

from pgqrs_core.drivers.faults import translate
from pgqrs_core.drivers.replication import Doubt
from pgqrs_core.errors import ServerError, TimedOut, Unavailable


class DiskFull(psycopg.errors.DiskFull):
    """As a server sends it; psycopg's own has its fields from a result only."""

    severity = "ERROR"

    @property
    def diag(self) -> Any:
        return SimpleNamespace(
            severity_nonlocalized=self.severity, message_primary="no space left on device", source_function="mdextend"
        )


def test_a_refused_statement_is_a_definite_failure() -> None:
    error = translate(DiskFull(), target="db", broken=False)

    assert isinstance(error, ServerError)
    assert error.sqlstate == "53100"


@pytest.mark.parametrize("severity", ["FATAL", "PANIC"])
def test_a_session_that_ends_with_its_error_leaves_the_outcome_open(
    severity: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DiskFull, "severity", severity)

    error = translate(DiskFull(), target="db", broken=False)

    assert isinstance(error, Unavailable)
    assert error.in_flight


def test_a_statement_that_was_cancelled_is_a_definite_failure() -> None:
    error = translate(psycopg.errors.QueryCanceled(), target="db", broken=False)

    assert isinstance(error, TimedOut)
    assert not error.in_flight


def test_a_doubt_is_told_once() -> None:
    doubt = Doubt()
    doubt(SimpleNamespace(source_function="SyncRepWaitForLSN"))  # type: ignore[arg-type]

    with pytest.raises(Unavailable, match="standby"):
        doubt.resolve("db")
    doubt.resolve("db")


def test_other_notices_raise_no_doubt() -> None:
    doubt = Doubt()
    doubt(SimpleNamespace(source_function="exec_stmt_raise"))  # type: ignore[arg-type]

    doubt.resolve("db")
