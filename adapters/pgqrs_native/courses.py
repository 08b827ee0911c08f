"""Courses: what the blocking and the asynchronous halves do alike, written once.

A course is a generator. It yields what a call that takes time gave it – of a blocking engine the answer, of an
asynchronous one something to await – and is sent the answer back. So one text serves both::

    queue = yield engine.queue(name)

`follow` is the driver of blocking code, for which all has been done when it is yielded; `follow_async` awaits.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, TypeAlias, TypeVar

__all__ = ["Course", "follow", "follow_async"]

T = TypeVar("T")
Course: TypeAlias = Generator[Any, Any, T]


def follow(course: Course[T]) -> T:
    """Follow a course whose calls have blocked; return its result."""
    answer: Any = None
    try:
        while True:
            answer = course.send(answer)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]


async def follow_async(course: Course[T]) -> T:
    """Follow a course, awaiting what its calls gave; what that raises is raised in the course, cancellation included."""
    try:
        step = next(course)
        while True:
            try:
                answer = await step
            except BaseException as error:
                step = course.throw(error)
            else:
                step = course.send(answer)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
