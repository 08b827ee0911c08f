"""Coverage-guided fuzzing of one parser: ``python tests/fuzz/fuzz.py address --seconds 120``.

Needs ``pip install atheris``, of which there are wheels for some versions of Python on Linux. What it finds is written to
``crash-…`` beside the corpus and printed with its traceback; ``--corpus DIR`` keeps what was learnt for the next time.
Put what was found into the seeds of `targets`, where every test run plays it.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from pathlib import Path

import atheris

ROOT = Path(__file__).parents[2]
#: Whose branches the fuzzer sees: what is ours, and the parsers in Python that we lean on.
SEEN = ["pgqrs_core", "pgqrs_kombu", "pgqrs_celery", "pgqrs_dramatiq", "pgqrs_zstd", "pgqrs_crypto", "yaml", "json"]
#: Seconds that one input may take, and megabytes that the process may.
LIMITS = ["-timeout=10", "-rss_limit_mb=2048", "-max_len=4096"]

sys.path[:0] = [str(Path(__file__).parent), *(str(ROOT / folder) for folder in ("", "adapters", "plugins"))]

with atheris.instrument_imports(include=SEEN):
    from targets import TARGETS


def main() -> None:
    """Fuzz until the time is over or something is found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=sorted(TARGETS))
    parser.add_argument("--seconds", type=int, default=120)
    parser.add_argument("--corpus", type=Path, default=None)
    given = parser.parse_args()
    target = TARGETS[given.target]
    logging.disable()
    corpus = given.corpus or Path(tempfile.mkdtemp(prefix=f"fuzz-{given.target}-"))
    corpus.mkdir(parents=True, exist_ok=True)
    for place, seed in enumerate(target.seeds):
        (corpus / f"seed-{place}").write_bytes(seed)
    more = [f"-max_total_time={given.seconds}", f"-artifact_prefix={corpus}/", "-print_final_stats=1", *LIMITS]
    atheris.Setup([sys.argv[0], *more, str(corpus)], target.play)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
