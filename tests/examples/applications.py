"""What the tests of the example applications share: a shop, and the processes that work for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

from psycopg.conninfo import conninfo_to_dict

__all__ = ["environment_of", "run_shop", "start", "stop"]


def environment_of(folder: Path, dsn: str) -> dict[str, str]:
    """What the programs in ``folder`` need to find each other and their database."""
    parameters = {name: str(value) for name, value in conninfo_to_dict(dsn).items()}
    query = "&".join(f"{name}={quote(value, safe='')}" for name, value in parameters.items())
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PGQRS_")}
    path = os.pathsep.join([str(folder), *filter(None, sys.path)])
    return {**kept, "SHOP_DATABASE": f"postgresql://?{query}", "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}


def start(arguments: list[str], log: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start ``python -m …`` beside its log."""
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", *arguments],
            cwd=log.parent,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def stop(*processes: subprocess.Popen[bytes]) -> None:
    """End processes, by force if need be."""
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def run_shop(folder: Path, environment: dict[str, str], directory: Path) -> subprocess.CompletedProcess[str]:
    """Run the producer to its end."""
    return subprocess.run(
        [sys.executable, "-W", "error", str(folder / "shop.py")],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=directory,
        env=environment,
        check=False,
    )
