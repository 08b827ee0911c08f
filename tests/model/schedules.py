"""Schedules by their numbers: what a number decides, and how to repeat one.

``python tests/model/schedules.py 1234`` repeats schedule 1234; ``python tests/model/schedules.py 0 100000`` runs many.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from unittest import mock

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))

from actors import Cast
from judge import Judge, Violation
from world import Faults, World

from pgqrs_core import marks, watch
from pgqrs_core.operations import claim
from pgqrs_core.testing.by_hand import make_queue

__all__ = ["many", "play_schedule"]

CALM = Faults()
ROUGH = Faults(broken=0.02, killed=0.01, deaf=0.2, latency=0.01, commit=0.05)
ROUGHER = Faults(broken=0.08, killed=0.02, deaf=1.0, latency=0.05, commit=0.5)

#: Virtual seconds of trouble, and of peace in which everything must come to its end.
TROUBLE, PEACE = 12.0, 30.0


def play_schedule(seed: int, *, crowd: int | None = None) -> Judge:
    """Play one schedule to its end.

    Raises:
        Violation: a promise was broken; the message holds the seed.
    """
    # Apart from the chance within the schedule, so that its size does not change with its course.
    chance = random.Random(f"cast {seed}")
    calm = seed % 5 == 0 and crowd is None
    beside = seed % 4 == 3
    queue = make_queue(max_attempts=3)
    world = World(seed, queue, CALM if calm else chance.choice([ROUGH, ROUGH, ROUGHER]))
    judge = Judge(world)
    cast = Cast(world, judge)
    if calm:
        judge.last = {}
        world.start(cast.producer(calm=True), mortal=False)
        world.start(cast.consumer(), mortal=False)
    else:
        size = crowd or chance.randint(2, 6)
        for _ in range(size):
            world.start(cast.producer())
            world.start(cast.slow_producer())
            world.start(cast.consumer())
        if beside:
            world.start(cast.bystander(), mortal=False)
        world.start(cast.housekeeper(), mortal=False)
    world.start(cast.watchman(), mortal=False)
    # What the product draws by itself is drawn from the seed, too.
    tokens = mock.patch.object(claim.secrets, "randbits", world.chance.getrandbits)
    turns = mock.patch.object(watch, "random", world.chance)
    # Queues are short here, and the question who writes to them is to be asked beside bystanders.
    worth = mock.patch.object(marks, "WORTH", 1 if beside else marks.WORTH)
    try:
        with tokens, turns, worth:
            _play(world, cast)
        judge.verdict()
    except Violation as violation:
        raise Violation(f"schedule {seed}: {violation}") from violation
    return judge


def _play(world: World, cast: Cast) -> None:
    world.run(TROUBLE)
    cast.busy = False
    cast.judge.last = None
    world.faults = CALM
    for _ in range(2):
        world.start(cast.consumer(limit=10), mortal=False)
    world.run(TROUBLE + PEACE)


def many(seeds: range) -> int:
    """Play schedules; return how many messages were delivered in them."""
    return sum(play_schedule(seed).delivered.total() for seed in seeds)


if __name__ == "__main__":
    numbers = [int(text) for text in sys.argv[1:]]
    chosen = range(*numbers) if len(numbers) == 2 else range(numbers[0], numbers[0] + 1)
    print(f"{len(chosen)} schedules, {many(chosen):,} deliveries, nothing wrong")
