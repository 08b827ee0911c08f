"""What an operation may ask of its driver: run a statement, run a part of it in one transaction, or wait.

An operation is a generator. It yields effects, is sent replies, and returns its result; it never blocks,
reads a clock or sees a connection. The drivers in :mod:`pgqrs_core.drivers` perform the effects, one
blocking and one on asyncio, and so the same operation runs on a pool, on one connection, or inside the
caller's transaction.

==========  ==========================================  ==========================================
effect      the driver                                  its reply
==========  ==========================================  ==========================================
`Execute`   runs one statement                          the rows, a sequence of tuples
`Transact`  runs another operation in one transaction   what that operation returned
`Wait`      waits for news of a queue, or for time      the patience that is left, in seconds; a
            to pass                                     queue not yet watched is watched from now
                                                        on and the reply comes at once; so it does
                                                        where there was news since the last wait
==========  ==========================================  ==========================================
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias, TypeVar

import msgspec

if TYPE_CHECKING:
    from pgqrs_core.marks import Marks
    from pgqrs_core.messages import Queue
    from pgqrs_core.sql import Query

__all__ = ["Effect", "Execute", "Op", "Rows", "Transact", "Wait"]

Rows: TypeAlias = "Sequence[tuple[Any, ...]]"


class Execute(msgspec.Struct, frozen=True):
    """Run one statement and reply with its rows.

    ``queue`` names the tables that the statement's ``{queue}``, ``{archive}`` and ``{view}`` stand for.
    ``queues`` repeats a one-queue statement for several queues, joined by UNION ALL; ``special`` puts another statement
    of the same columns in its place for some of them, by number. ``names`` are further identifiers, by placeholder.
    ``once`` says that the statement is not worth preparing: its plan would stay in the server's memory for nothing.
    ``tells`` says that the second column of the reply tells whether consumers of ``queue`` sleep, and that they are to
    hear of what was stored: inside the caller's transaction the operation cannot ring, and the driver may after the commit.
    ``hand`` is where the driver puts the rows of a claim before the operation gets them: if that is interrupted, nobody has
    received these messages, and they are given back.
    """

    query: Query
    params: Mapping[str, object] = {}
    queue: Queue | None = None
    queues: Sequence[Queue] = ()
    special: Mapping[int, Query] = {}
    names: Mapping[str, str] = {}
    tells: bool = False
    once: bool = False
    hand: list[Any] | None = None


class Transact(msgspec.Struct, frozen=True):
    """Run the operation that ``make`` returns in one transaction, and reply with its result.

    Use it to cut long work into transactions that each hold few locks. After a conflict, or when a table could not be
    locked in time, ``make`` is called again for another try. Within a transaction, ours or the caller's, it becomes a
    savepoint, and nothing is tried again.
    """

    hand: ClassVar[None] = None

    make: Callable[[], Generator[Any, Any, Any]]


class Wait(msgspec.Struct, frozen=True):
    """Wait until ``queue`` may hold something to claim, at most ``patience`` seconds.

    ``marks`` are the consumer's: the driver notes there which news it knows of. ``drained`` says that it has not looked
    since its last claim, which took all there was: then it waits only if nothing has happened meanwhile.
    """

    hand: ClassVar[None] = None

    queue: Queue
    patience: float
    marks: Marks | None = None
    drained: bool = False


T = TypeVar("T")
Effect: TypeAlias = "Execute | Transact | Wait"
Op: TypeAlias = Generator["Execute | Transact | Wait", Any, T]
