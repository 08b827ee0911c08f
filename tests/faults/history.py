"""A history of what several processes did, and the checker that finds broken promises in it.

Events are dicts. Times are those of the machine's monotonic clock, the same in all its processes: ``began`` before a
call and ``ended`` after it, ``at`` where one will do. What a killed process did not come to note is missing, and the
checker allows for that.

=============  ===============================================================================
``sending``    ``key at``                                an enqueue begins
``sent``       ``key id at``                             it was acknowledged
``aborted``    ``key``                                   it was rolled back, or refused for certain
``claimed``    ``key id token attempt lane lease began ended``; ``handled`` if a handler is to run before an ack
``extended``   ``lane id token ok lease began``             the lease runs for so long from ``began`` on
``started``    ``key attempt at``                        a handler begins
``finished``   ``key attempt at``                        and succeeds
``settling``   ``what lane id token began``              ack, archive, replace, nack or release begins
``settled``    ``what lane id token ok began ended``     and its answer
``unnoted``    ``claims``                                somebody died, or lost a reply: so many claims may be missing
``crashed``    ``began ended``                           the server lost what it had not flushed: claims, extensions
=============  ===============================================================================

An enqueue that is neither ``sent`` nor ``aborted`` is of unknown outcome: it may be delivered, and need not be.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

__all__ = ["check", "read"]

Event = dict[str, Any]

FINAL: Final = {"ack", "archive", "replace"}
GIVING_BACK: Final = {"nack", "release"}

#: Seconds for which a commit that does not wait for the disk may stay unwritten: three times wal_writer_delay, and some.
FLUSH: Final = 1.0


def read(folder: Path) -> list[Event]:
    """Read the histories of all processes; a line that a killed process did not finish is no event."""
    lines = [line for path in folder.glob("*.jsonl") for line in path.read_text().splitlines(keepends=True)]
    return [json.loads(line) for line in lines if line.endswith("\n")]


def check(
    history: Iterable[Event],
    left: Iterable[str] = (),
    dead: Iterable[str] = (),
    *,
    drained: bool = False,
    alone: bool = False,
) -> list[str]:
    """Return what is wrong, one line each.

    Args:
        history: the events, in any order.
        left: the keys that are still in the queue at the end.
        dead: the keys that are dead-lettered at the end.
        drained: all faults were healed and consumers ran until they found nothing: nothing may be left.
        alone: there was one consumer only, so that deliveries within a lane keep the order of enqueues.
    """
    checker = _Checker(list(history), Counter([*left, *dead]))
    found = checker.verdicts()
    if drained:
        found += [f"STUCK {key}" for key in left]
    if alone:
        found += checker.order()
    return found


def _lease(event: Event) -> tuple[int, int, int]:
    """Return what a lease names: two messages in two lanes may have the same id, and were perhaps claimed together."""
    return event["lane"], event["id"], event["token"]


def _insert(claims: list[Event], event: Event) -> None:
    """Append a claim; before those that it overlaps and whose attempts are later: its answer was long on its way."""
    place = len(claims)
    while place and event["began"] < claims[place - 1]["ended"] and event["attempt"] < claims[place - 1]["attempt"]:
        place -= 1
    claims.insert(place, event)


class _Checker:
    def __init__(self, history: list[Event], left: Counter[str]) -> None:
        self.left = left
        self.by_kind: dict[str, list[Event]] = defaultdict(list)
        for event in history:
            self.by_kind[event["op"]].append(event)
        self.claims: dict[str, list[Event]] = defaultdict(list)
        for event in sorted(self.by_kind["claimed"], key=lambda event: float(event["ended"])):
            _insert(self.claims[event["key"]], event)
        self.settling = self._by_lease("settling")
        self.settled = self._by_lease("settled")
        self.extended = self._by_lease("extended")
        self.unnoted = sum(event["claims"] for event in self.by_kind["unnoted"])

    def _by_lease(self, kind: str) -> dict[tuple[int, int, int], list[Event]]:
        found: dict[tuple[int, int, int], list[Event]] = defaultdict(list)
        for event in self.by_kind[kind]:
            found[_lease(event)].append(event)
        return found

    def verdicts(self) -> list[str]:
        return [
            *self.lost(),
            *self.unexpected(),
            *self.doubled(),
            *self.stale(),
            *self.resurrected(),
            *self.attempts(),
            *self.unhandled(),
            *self.rerun(),
        ]

    def lost(self) -> list[str]:
        """Acknowledged, and neither settled for good, nor perhaps settled by a process that died, nor still there."""
        over = {
            key
            for key, claims in self.claims.items()
            for claim in claims
            for event in self.settling[_lease(claim)]
            if event["what"] in FINAL and self._may_have_worked(claim, event)
        }
        sent = {event["key"] for event in self.by_kind["sent"]}
        return [f"LOST {key}" for key in sorted(sent - over - self.left.keys())]

    def _may_have_worked(self, claim: Event, asked: Event) -> bool:
        answers = [
            event
            for event in self.settled[_lease(claim)]
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
        """Claimed by a second one while the first one's lease ran for certain, and he had not begun to give it back.

        Two leases that overlap, and a second delivery that nothing explains, are the same.
        """
        found = []
        for key, claims in self.claims.items():
            for first, second in pairwise(claims):
                given_back = any(
                    event["what"] in GIVING_BACK and event["began"] <= second["ended"]
                    for event in self.settling[_lease(first)]
                )
                if second["ended"] < self._certain_end(first, second) and not given_back and not self._undone(first):
                    found.append(f"DOUBLED {key}: attempts {first['attempt']} and {second['attempt']}")
        return found

    def _certain_end(self, claim: Event, following: Event) -> float:
        """Return until when a lease ran at least, as known before the following claim."""
        renewals = [
            event["began"] + event["lease"]
            for event in self.extended[_lease(claim)]
            if event["ok"] and event["began"] <= following["began"] and not self._undone(event)
        ]
        return float(max([claim["began"] + claim["lease"], *renewals]))

    def _undone(self, event: Event) -> bool:
        """Tell whether a crash may have undone a claim or an extension: neither waits for the disk."""
        return any(
            event.get("ended", event["began"]) >= crash["began"] - FLUSH and event["began"] <= crash["ended"]
            for crash in self.by_kind["crashed"]
        )

    def stale(self) -> list[str]:
        """A lease took effect after another one had been given out for the same message, or took effect twice."""
        found = []
        for key, claims in self.claims.items():
            for place, claim in enumerate(claims):
                worked = [event for event in self.settled[_lease(claim)] if event["ok"]]
                later = [
                    other["ended"]
                    for other in claims[place + 1 :]
                    if other["token"] != claim["token"] and not self._undone(other)
                ]
                extended = [event for event in self.extended[_lease(claim)] if event["ok"]]
                if any(ended < event["began"] for ended in later for event in (*worked, *extended)):
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
                for event in self.settled[_lease(claim)]
                if event["ok"] and event["what"] in FINAL
            ]
            if over and (self.left[key] or any(claim["began"] > min(over) for claim in claims)):
                found.append(f"RESURRECTED {key}")
        return found

    def unhandled(self) -> list[str]:
        """A worker acked what no handler had finished: nobody will ever do it."""
        finished: dict[tuple[str, int], float] = {}
        for event in self.by_kind["finished"]:
            of = event["key"], event["attempt"]
            finished[of] = min(event["at"], finished.get(of, event["at"]))
        return [
            f"UNHANDLED {key}: attempt {claim['attempt']}"
            for key, claims in self.claims.items()
            for claim in claims
            if claim.get("handled")
            and any(
                event["what"] == "ack" and finished.get((key, claim["attempt"]), float("inf")) > event["began"]
                for event in self.settling[_lease(claim)]
            )
        ]

    def rerun(self) -> list[str]:
        """A handler began more often than its message was delivered; unless a crash undid the claim, made again then.

        A delivery that was released, and not counted, has the same number of attempt as the next one: Celery drops what it
        has written to a child that has not answered when the connection breaks, and it goes back.
        """
        begun = Counter((event["key"], event["attempt"]) for event in self.by_kind["started"])
        found = []
        for (key, attempt), count in begun.items():
            claims = [claim for claim in self.claims[key] if claim["attempt"] == attempt]
            if count > max(len(claims), 1) and not any(map(self._undone, claims)):
                found.append(f"RUN TWICE {key}: attempt {attempt}")
        return found

    def attempts(self) -> list[str]:
        """Each claim counts one up, unless the one before was released; claims that nobody noted count as well."""
        found, missing = [], 0
        for key, claims in self.claims.items():
            least = most = 1
            for claim in claims:
                if claim["attempt"] < least:
                    found.append(f"ATTEMPTS {key}: {claim['attempt']} where {least} was due")
                missing += max(claim["attempt"] - most, 0)
                counts = self._counts(claim)
                least, most = claim["attempt"] + min(counts), claim["attempt"] + max(counts)
        if missing > self.unnoted:
            found.append(f"ATTEMPTS: {missing} claims that nobody noted, {self.unnoted} explained by deaths")
        return found

    def _counts(self, claim: Event) -> set[int]:
        """Return by how much the attempt of the next claim may be higher."""
        lease = _lease(claim)
        if any(event["what"] == "release" and event["ok"] for event in self.settled[lease]):
            return {0}
        # A release whose answer its process did not live to see may have worked or not.
        unclear = any(
            event["what"] == "release" and self._may_have_worked(claim, event) for event in self.settling[lease]
        )
        return {0, 1} if unclear or self._undone(claim) else {1}

    def order(self) -> list[str]:
        """Delivered for the first time after what was enqueued when this one had been acknowledged already."""
        begun = {event["key"]: event["at"] for event in self.by_kind["sending"]}
        acknowledged = {event["key"]: event["at"] for event in self.by_kind["sent"]}
        lanes: dict[int, list[Event]] = defaultdict(list)
        # Within a claim the events stand in the order of delivery, and sorting keeps it.
        seen: set[str] = set()
        for event in sorted(self.by_kind["claimed"], key=lambda event: float(event["ended"])):
            if event["attempt"] == 1 and event["key"] not in seen:
                lanes[event["lane"]].append(event)
            seen.add(event["key"])
        found = []
        for claims in lanes.values():
            overtaken, when = "", float("inf")
            for claim in reversed(claims):
                key = claim["key"]
                if when < begun.get(key, 0.0):
                    found.append(f"ORDER {overtaken}: delivered after {key}")
                if acknowledged.get(key, float("inf")) < when:
                    overtaken, when = key, acknowledged[key]
        return found
