"""The command ``python -m benchmarks``."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

#: In the order in which they run. Each is a module in ``scenarios``.
SCENARIOS: Final = {
    "storage": "What a message costs the server",
    "api": "The Python API beside PGMQ's client",
    "sustained": "Two producers and two consumers at once",
    "pinned": "While another transaction holds an old snapshot",
    "steady": "From minute to minute, while autovacuum comes by",
    "backlog": "A claim with a backlog in front",
    "producers": "Eight producers, consumers waiting",
    "pickup": "Latency of an idle consumer",
    "idle": "What an idle consumer process takes",
    "herd": "One message and many idle consumers",
    "celery": "Celery beside RabbitMQ, Redis, pgmq and SQLAlchemy",
    "observers": "What metrics and traces cost",
    "plugins": "What plugins cost",
    "dramatiq": "Dramatiq beside RabbitMQ, Redis and dramatiq-postgres",
}


def _arguments(given: Sequence[str] | None) -> argparse.Namespace:
    names = "\n".join(f"  {name:<10} {title}" for name, title in SCENARIOS.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure pgqrs beside other ways to do the same, in the same run.",
        epilog=f"scenarios:\n{names}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", action="append", choices=SCENARIOS, metavar="NAME", help="one scenario; repeatable")
    parser.add_argument("--repeats", type=int, metavar="N", help="repeats of each measurement (5; quick: 2)")
    parser.add_argument("--quick", action="store_true", help="a tenth of the work: checks the programs, not the speed")
    server = parser.add_mutually_exclusive_group()
    server.add_argument("--dsn", help="a server to measure; its role must be allowed to create databases")
    server.add_argument("--bindir", type=Path, help="PostgreSQL's programs for a server of our own")
    parser.add_argument(
        "--directory",
        type=Path,
        default=Path(tempfile.gettempdir()),
        help="where a server of our own keeps its data: on the disk to be measured",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures and samples there")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> int:
    """Run the scenarios; 1 if a target was missed."""
    options = _arguments(given)
    # A server of our own must not outlive us.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    _find_packages()
    # As in an installation without them; the scenarios about plugins choose their own.
    os.environ.setdefault("PGQRS_PLUGINS_BLOCKED", "prometheus,otel")
    from benchmarks import report, server

    repeats = options.repeats or (2 if options.quick else 5)
    found: dict[str, Sequence[report.Figure]] = {}
    with contextlib.ExitStack() as stack:
        dsn = options.dsn or stack.enter_context(server.own_server(options.bindir, options.directory))
        about = _about(server.describe(dsn), repeats, options.quick)
        print(_headline(about), flush=True)
        for name in options.only or SCENARIOS:
            scenario = importlib.import_module(f"benchmarks.scenarios.{name}")
            began = time.monotonic()
            with server.own_database(dsn, name, repeats=repeats, quick=options.quick) as setting:
                found[name] = scenario.run(setting)
            title = f"{name}: {SCENARIOS[name]} ({time.monotonic() - began:.0f} s)"
            print(report.table(title, found[name]), flush=True)
            if options.json:
                text = json.dumps(report.as_json(found, about), indent=1, ensure_ascii=False)
                options.json.write_text(text + "\n", encoding="utf-8")
    missed = [f"{name}: {figure.name}" for name in found for figure in found[name] if figure.verdict == "MISSED"]
    print("\n".join(["missed targets:", *missed]) if missed else "all targets met")
    return 1 if missed else 0


def _find_packages() -> None:
    """Make a checkout that is not installed importable, here and in the processes that are started."""
    root = Path(__file__).resolve().parent.parent
    places = [str(root), str(root / "adapters"), str(root / "plugins")]
    sys.path.extend(place for place in places if place not in sys.path)
    inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.environ["PYTHONPATH"] = os.pathsep.join([*filter(None, inherited), *places])


def _about(server: dict[str, Any], repeats: int, quick: bool) -> dict[str, Any]:
    import psycopg

    return {
        "server": server,
        "python": platform.python_version(),
        "psycopg": f"{psycopg.__version__} ({psycopg.pq.__impl__})",
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "repeats": repeats,
        "quick": quick,
    }


def _headline(about: dict[str, Any]) -> str:
    server = ", ".join(f"{name} {value}" for name, value in about["server"].items())
    quick = "\nA quick run: too short for its figures to mean much." if about["quick"] else ""
    return (
        f"{about['machine']}; Python {about['python']}, psycopg {about['psycopg']}\n{server}\n"
        f"medians of {about['repeats']} repeats; costs are per message, ours / beside{quick}\n"
    )


if __name__ == "__main__":
    sys.exit(main())
