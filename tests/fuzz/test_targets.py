"""The parsers stand what the fuzzer begins with and what it once found; and a fuzzer can be let loose on them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import targets
from targets import SECRET, TARGETS

PLAYED = [(name, seed) for name, target in TARGETS.items() for seed in target.seeds]


@pytest.mark.parametrize(("name", "seed"), PLAYED, ids=lambda value: value if isinstance(value, str) else "")
def test_every_seed_is_read_or_refused(name: str, seed: bytes) -> None:
    TARGETS[name].play(seed)


def test_a_password_that_is_shown_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "masked", lambda url: url)

    with pytest.raises(AssertionError, match="not masked"):
        targets.address(f"postgresql://user:{SECRET}@host/db".encode())


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_a_fuzzer_finds_nothing_within_seconds(name: str, tmp_path: Path) -> None:
    pytest.importorskip("atheris")
    command = [sys.executable, str(Path(__file__).with_name("fuzz.py")), name, "--seconds=10", f"--corpus={tmp_path}"]

    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
