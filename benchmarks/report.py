"""What a scenario finds out: figures with their targets, as a table for people and as JSON for programs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Literal

from benchmarks.measure import Cost

__all__ = ["Figure", "Target", "as_json", "at_least", "at_most", "compare", "compare_costs", "single", "table"]


@dataclass(frozen=True)
class Target:
    """What a figure should be: its ratio to what stands beside it, or, without that, the figure itself."""

    way: Literal["≤", "≥"]
    limit: float

    def met(self, value: float) -> bool:
        """Tell whether ``value`` meets it."""
        return value <= self.limit if self.way == "≤" else value >= self.limit

    def __str__(self) -> str:
        return f"{self.way} {self.limit:g}"


def at_most(limit: float) -> Target:
    """Return the target that a figure is no larger."""
    return Target("≤", limit)


def at_least(limit: float) -> Target:
    """Return the target that a figure is no smaller."""
    return Target("≥", limit)


@dataclass(frozen=True)
class Figure:
    """One line of a report: the medians of ours and of what stands beside it, and what they say."""

    name: str
    unit: str
    ours: Sequence[float]
    beside: Sequence[float] = ()
    #: What stands beside it.
    against: str = ""
    target: Target | None = None
    #: Server CPU and WAL per message, ours and beside: ``{"server µs": (4.0, 8.1)}``.
    costs: dict[str, tuple[float | None, float | None]] = field(default_factory=dict)

    @property
    def value(self) -> float:
        """The median of ours."""
        return median(self.ours)

    @property
    def reference(self) -> float | None:
        """The median of what stands beside it."""
        return median(self.beside) if self.beside else None

    @property
    def ratio(self) -> float | None:
        """Ours divided by what stands beside it."""
        return self.value / self.reference if self.reference else None

    @property
    def verdict(self) -> str:
        """``ok`` or ``MISSED``; nothing without a target."""
        if self.target is None:
            return ""
        judged = self.ratio if self.beside else self.value
        return "ok" if judged is not None and self.target.met(judged) else "MISSED"

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "name": self.name,
            "unit": self.unit,
            "ours": self.value,
            "beside": self.reference,
            "against": self.against,
            "ratio": self.ratio,
            "target": str(self.target) if self.target else None,
            "verdict": self.verdict or None,
            "samples": {"ours": list(self.ours), "beside": list(self.beside)},
            "costs": {name: list(pair) for name, pair in self.costs.items()},
        }


def compare(
    name: str,
    unit: str,
    ours: Sequence[float],
    beside: Sequence[float],
    against: str,
    target: Target | None = None,
) -> Figure:
    """Return the figure of two samples."""
    return Figure(name, unit, ours, beside, against, target)


def single(name: str, unit: str, ours: Sequence[float], target: Target | None = None) -> Figure:
    """Return a figure that stands for itself."""
    return Figure(name, unit, ours, target=target)


def compare_costs(
    name: str,
    unit: str,
    ours: Sequence[Cost],
    beside: Sequence[Cost],
    against: str,
    target: Target | None = None,
    value: Callable[[Cost], float | None] = lambda cost: cost.rate,
) -> Figure:
    """Return the figure ``value`` of two samples of costs, by default the rate, with their other costs beside it."""
    costs = {
        "server µs": (_middle(ours, "server"), _middle(beside, "server")),
        "Python µs": (_middle(ours, "python"), _middle(beside, "python")),
        "WAL B": (median(cost.wal_bytes for cost in ours), median(cost.wal_bytes for cost in beside)),
    }
    values = [[seen for cost in costs_ if (seen := value(cost)) is not None] for costs_ in (ours, beside)]
    if not all(values):
        return Figure(name, unit, [float("nan")], [float("nan")], against, None, costs)
    return Figure(name, unit, values[0], values[1], against, target, costs)


def _middle(costs: Sequence[Cost], what: str) -> float | None:
    values = [seen for cost in costs if (seen := cost.micros(what)) is not None]
    return median(values) if values else None


_HEADS = ("", "ours", "beside", "", "unit", "ratio", "target", "", "server µs", "Python µs", "WAL B")


def table(title: str, figures: Sequence[Figure]) -> str:
    """Return a table: costs are per message, ours / beside."""
    rows = [_HEADS, *(_row(figure) for figure in figures)]
    widths = [max(len(row[place]) for row in rows) for place in range(len(_HEADS))]
    left = {0, 3, 4, 6, 7}
    lines = [
        "  ".join(
            cell.ljust(width) if place in left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([title, "-" * max(map(len, lines)), *lines, ""])


def _row(figure: Figure) -> tuple[str, ...]:
    return (
        figure.name,
        _number(figure.value),
        _number(figure.reference),
        figure.against,
        figure.unit,
        "" if figure.ratio is None else f"{figure.ratio:.2f}",
        str(figure.target) if figure.target else "",
        figure.verdict,
        *(_pair(figure.costs.get(name)) for name in _HEADS[-3:]),
    )


def _pair(pair: tuple[float | None, float | None] | None) -> str:
    return "" if pair is None or pair == (None, None) else " / ".join(_number(value) or "–" for value in pair)


def _number(value: float | None) -> str:
    if value is None:
        return ""
    if value != value:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def as_json(scenarios: dict[str, Sequence[Figure]], about: dict[str, Any]) -> dict[str, Any]:
    """Return all figures of a run as JSON values."""
    return {
        **about,
        "scenarios": {name: [figure.as_dict() for figure in figures] for name, figures in scenarios.items()},
    }
