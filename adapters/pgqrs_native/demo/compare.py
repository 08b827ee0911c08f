"""What counts as right: every file once in the result table, with the counts of the serial run. Pure."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pgqrs_native.demo.counting import FileCount
    from pgqrs_native.demo.tables import Row

__all__ = ["Comparison", "compare", "percentile"]

_SHOWN = 3


class Comparison(msgspec.Struct, frozen=True):
    """How the result table differs from a serial run over the same files."""

    #: Files with a result.
    handled: int
    #: Deliveries beyond the first of each file, as far as they led to a result.
    redelivered: int
    #: Files without a result.
    lost: list[str]
    #: Files with more than one result.
    doubled: list[str]
    #: Files whose result is another than the serial run's.
    differing: list[str]
    #: Results for files that were never sent.
    unasked: list[str]
    #: How often each name occurs, by the result table and by the serial run.
    names: Counter[str]
    serial_names: Counter[str]

    def problems(self) -> list[str]:
        """Say what does not match, one sentence for each kind."""
        kinds = {
            "lost (no result)": self.lost,
            "doubled (several results)": self.doubled,
            "other names than in the serial run": self.differing,
            "results for files never sent": self.unasked,
        }
        found = [f"{kind}: {_some(paths)}" for kind, paths in kinds.items() if paths]
        if self.names != self.serial_names:
            found.append(
                f"the result table holds {self.names.total():,} names, "
                f"the serial run counted {self.serial_names.total():,}"
            )
        return found


def compare(sent: Sequence[str], serial: Mapping[str, FileCount], rows: Sequence[Row]) -> Comparison:
    """Compare the result table with a serial run over the files that were sent."""
    results = Counter(row.count.path for row in rows)
    asked = frozenset(sent)
    differing = {
        row.count.path for row in rows if row.count.path in asked and not _same(row.count, serial[row.count.path])
    }
    return Comparison(
        handled=len(asked & results.keys()),
        redelivered=sum(row.attempt - 1 for row in rows),
        lost=[path for path in sent if path not in results],
        doubled=[path for path in sent if results[path] > 1],
        differing=sorted(differing),
        unasked=sorted(results.keys() - asked),
        names=_sum(row.count for row in rows),
        serial_names=_sum(serial[path] for path in sent),
    )


def percentile(values: Sequence[float], percent: float) -> float | None:
    """Return the smallest of ``values`` that ``percent`` of them do not exceed; None if there are none."""
    if not values:
        return None
    ordered = sorted(values)
    place = -(-len(ordered) * percent // 100)
    return ordered[max(int(place), 1) - 1]


def _same(one: FileCount, other: FileCount) -> bool:
    # The errors' texts may quote what a database cannot hold; that there is one is enough.
    return one.names == other.names and (one.error is None) == (other.error is None)


def _sum(counts: Iterable[FileCount]) -> Counter[str]:
    names: Counter[str] = Counter()
    for count in counts:
        names.update(count.names)
    return names


def _some(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - _SHOWN:,} more" if len(paths) > _SHOWN else ""
    return f"{len(paths):,} – {', '.join(paths[:_SHOWN])}{more}"
