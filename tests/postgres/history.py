"""A history of what several processes did, and the checker that finds broken promises in it.

Events are dicts. Times are those of the machine's monotonic clock, the same in all its processes: ``began`` before a
call and ``ended`` after it. What a killed process did not come to note is missing, and the checker allows for that.

=============  ===============================================================================
``sending``    ``key``                                   an enqueue begins
``sent``       ``key id``                                it was acknowledged
``aborted``    ``key``                                   its transaction was rolled back
``claimed``    ``key id token attempt lease began ended``
``settling``   ``what id token began``                   ack, archive, nack or release begins
``settled``    ``what id token ok began ended``          and its answer
``died``       ``claims``                                a process was killed; up to so many claims are not noted
=============  ===============================================================================
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

__all__ = ["check", "read"]

Event = dict[str, Any]

FINAL = {"ack", "archive"}
GIVING_BACK = {"nack", "release"}


def read(folder: Path) -> list[Event]:
    """Read the histories of all processes; a line that a killed process did not finish is no event."""
    lines = [line for path in folder.glob("*.jsonl") for line in path.read_text().splitlines(keepends=True)]
    return [json.loads(line) for line in lines if line.endswith("\n")]


def check(history: Iterable[Event], left: Iterable[str] = ()) -> list[str]:
    """Return what is wrong, one line each; ``left`` are the keys that are still in the queue or dead at the end."""
    return _Checker(list(history), Counter(left)).verdicts()


class _Checker:
    def __init__(self, history: list[Event], left: Counter[str]) -> None:
        self.left = left
        self.by_kind: dict[str, list[Event]] = defaultdict(list)
        for event in history:
            self.by_kind[event["op"]].append(event)
        self.claims: dict[str, list[Event]] = defaultdict(list)
        for event in sorted(self.by_kind["claimed"], key=lambda event: float(event["ended"])):
            self.claims[event["key"]].append(event)
        self.settling: dict[tuple[int, int], list[Event]] = defaultdict(list)
        for event in self.by_kind["settling"]:
            self.settling[event["id"], event["token"]].append(event)
        self.settled: dict[tuple[int, int], list[Event]] = defaultdict(list)
        for event in self.by_kind["settled"]:
            self.settled[event["id"], event["token"]].append(event)
        self.unnoted = sum(event["claims"] for event in self.by_kind["died"])

    def verdicts(self) -> list[str]:
        return [
            *self.lost(),
            *self.unexpected(),
            *self.doubled(),
            *self.stale(),
            *self.resurrected(),
            *self.attempts(),
        ]

    def lost(self) -> list[str]:
        """Acknowledged, and neither settled for good, nor perhaps settled by a process that died, nor still there."""
        over = {
            key
            for key, claims in self.claims.items()
            for claim in claims
            for event in self.settling[claim["id"], claim["token"]]
            if event["what"] in FINAL and self._may_have_worked(claim, event)
        }
        sent = {event["key"] for event in self.by_kind["sent"]}
        return [f"LOST {key}" for key in sorted(sent - over - self.left.keys())]

    def _may_have_worked(self, claim: Event, asked: Event) -> bool:
        answers = [
            event
            for event in self.settled[claim["id"], claim["token"]]
            if event["what"] == asked["what"] and event["began"] == asked["began"]
        ]
        return not answers or any(event["ok"] for event in answers)

    def unexpected(self) -> list[str]:
        tried = {event["key"] for event in self.by_kind["sending"]}
        aborted = {event["key"] for event in self.by_kind["aborted"]}
        twice = [f"STORED TWICE {key}" for key, count in self.left.items() if count > 1]
        ids = defaultdict(set)
        for key, claims in self.claims.items():
            ids[key].update(claim["id"] for claim in claims)
        twice += [f"STORED TWICE {key}" for key, found in ids.items() if len(found) > 1]
        seen = self.claims.keys() | self.left.keys()
        never = [f"UNEXPECTED {key}" for key in sorted(seen - tried)]
        return twice + never + [f"PHANTOM {key}" for key in sorted(seen & aborted)]

    def doubled(self) -> list[str]:
        """Claimed by a second one while the first one's lease ran for certain, and he had not begun to give it back."""
        found = []
        for key, claims in self.claims.items():
            for first, second in pairwise(claims):
                given_back = any(
                    event["what"] in GIVING_BACK and event["began"] <= second["ended"]
                    for event in self.settling[first["id"], first["token"]]
                )
                if second["ended"] < first["began"] + first["lease"] and not given_back:
                    found.append(f"DOUBLED {key}: attempts {first['attempt']} and {second['attempt']}")
        return found

    def stale(self) -> list[str]:
        """A lease took effect after another one had been given out for the same message, or took effect twice."""
        found = []
        for key, claims in self.claims.items():
            for place, claim in enumerate(claims):
                worked = [event for event in self.settled[claim["id"], claim["token"]] if event["ok"]]
                later = [other["ended"] for other in claims[place + 1 :] if other["token"] != claim["token"]]
                if any(ended < event["began"] for ended in later for event in worked):
                    found.append(f"STALE LEASE ACCEPTED {key}: attempt {claim['attempt']}")
                if len(worked) > 1:
                    found.append(f"SETTLED TWICE {key}: attempt {claim['attempt']}")
        return found

    def resurrected(self) -> list[str]:
        found = []
        for key, claims in self.claims.items():
            over = [
                event["ended"]
                for claim in claims
                for event in self.settled[claim["id"], claim["token"]]
                if event["ok"] and event["what"] in FINAL
            ]
            if over and (self.left[key] or any(claim["began"] > min(over) for claim in claims)):
                found.append(f"RESURRECTED {key}")
        return found

    def attempts(self) -> list[str]:
        """Each claim counts one up, unless the one before was released; claims that nobody noted count as well."""
        found, missing = [], 0
        for key, claims in self.claims.items():
            expected = 1
            for claim in claims:
                step = claim["attempt"] - expected
                if step < 0:
                    found.append(f"ATTEMPTS {key}: {claim['attempt']} where {expected} was due")
                missing += max(step, 0)
                released = any(
                    event["what"] == "release" and event["ok"] for event in self.settled[claim["id"], claim["token"]]
                )
                # A release whose answer its process did not live to see may have counted or not.
                unclear = any(
                    event["what"] == "release" and self._may_have_worked(claim, event)
                    for event in self.settling[claim["id"], claim["token"]]
                )
                expected = claim["attempt"] + (0 if released or unclear else 1)
        if missing > self.unnoted:
            found.append(f"ATTEMPTS: {missing} claims that nobody noted, {self.unnoted} explained by deaths")
        return found
