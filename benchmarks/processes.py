"""Processes that begin together: each prepares itself, waits at a gate, works, and reports."""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from threading import BrokenBarrierError
from typing import Any, Final

from benchmarks.measure import Cost, Meter, Timed

__all__ = ["CONTEXT", "Gate", "Job", "cost_of", "together"]

#: Every process is a fresh interpreter, as processes of an application are.
CONTEXT: Final = multiprocessing.get_context("spawn")

#: Seconds for all processes to get ready, and for each to finish.
_PATIENCE: Final = 600

#: What a job calls when it is ready; it returns when all are.
Gate = Callable[[], object]


@dataclass(frozen=True)
class Job:
    """A function to run in a process of its own: it gets the gate and then ``args``, and reports its result."""

    work: Callable[..., Any]
    args: tuple[Any, ...] = ()


def together(jobs: Sequence[Job], *, meanwhile: Callable[[], Any] = lambda: None) -> tuple[list[Any], Any]:
    """Run jobs at the same time; return what they report, and what ``meanwhile`` returned here after the start."""
    barrier = CONTEXT.Barrier(len(jobs) + 1)
    pipes: list[Connection] = []
    processes = []
    for job in jobs:
        ours, theirs = CONTEXT.Pipe(duplex=False)
        process = CONTEXT.Process(target=_child, args=(theirs, barrier, job), daemon=True)
        process.start()
        theirs.close()
        pipes.append(ours)
        processes.append(process)
    try:
        try:
            barrier.wait(_PATIENCE)
        except BrokenBarrierError:
            seen = None
        else:
            seen = meanwhile()
        results = _results([_receive(pipe) for pipe in pipes])
    finally:
        for process in processes:
            process.join(10)
            if process.is_alive():
                process.kill()
    return results, seen


def cost_of(meter: Meter, jobs: Sequence[Job], messages: int | None = None) -> tuple[Cost, list[Timed]]:
    """Measure jobs that report `Timed`, from the moment the gate opens until the last of them is done.

    ``messages`` counts them where they pass several processes; by default what the jobs report is added up.
    """
    reports, (wal, server) = together(jobs, meanwhile=lambda: (meter.wal(), meter.server_cpu()))
    after = meter.server_cpu()
    done: list[Timed] = reports
    return Cost(
        messages if messages is not None else sum(item.messages for item in done),
        max(item.ended for item in done) - min(item.began for item in done),
        meter.wal() - wal,
        sum(item.python for item in done),
        server=None if after is None or server is None else after - server,
    ), done


def _child(pipe: Connection, barrier: Any, job: Job) -> None:
    try:
        result = job.work(lambda: barrier.wait(_PATIENCE), *job.args)
    except BrokenBarrierError:
        pipe.send((False, None))
    except BaseException:
        barrier.abort()
        pipe.send((False, traceback.format_exc()))
    else:
        pipe.send((True, result))


def _receive(pipe: Connection) -> tuple[bool, Any]:
    if not pipe.poll(_PATIENCE):
        return False, f"a process did not finish within {_PATIENCE} s"
    try:
        answer: tuple[bool, Any] = pipe.recv()
    except EOFError:
        return False, "a process died"
    return answer


def _results(answers: list[tuple[bool, Any]]) -> list[Any]:
    # Those without a reason failed because another one did.
    for reason in (result for fine, result in answers if not fine and result is not None):
        raise RuntimeError(f"a process failed: {reason}")
    return [result for _, result in answers]
