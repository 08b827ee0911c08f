"""Texts with passwords in them, kept out of tracebacks.

Error reporters such as Sentry send the local variables of every frame of a traceback, as their ``repr`` shows them. So an
address is hidden as soon as it is given to pgqrs, up to libpq; and where it is taken apart, or handed to a library whose
frames hold its parts in the clear, an error leaves without those frames.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

from typing_extensions import ParamSpec

__all__ = ["Hidden", "forget_frames", "hidden", "without_frames"]

E = TypeVar("E", bound=BaseException)
P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class Hidden(str):
    """A text like any other, but for its ``repr``, which does not show it. Parts that are cut out of it are plain texts."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"


def hidden(value: T) -> T:
    """Return a text so that its ``repr`` does not show it; anything else as it is."""
    return Hidden(value) if isinstance(value, str) else value  # type: ignore[return-value]


def forget_frames(error: E) -> E:
    """Return an error without its traceback, and so the errors that it came from."""
    known: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is not None and id(one) not in known:
            known.add(id(one))
            one.__traceback__ = None
            waiting += [one.__cause__, one.__context__]
    return error


def without_frames(function: Callable[P, R]) -> Callable[P, R]:
    """Let the errors of a function leave without the frames in which they arose; their sentences say what is wrong."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except Exception as error:
            problem: Any = forget_frames(error)
        # This frame stays, and must not hold what was given either.
        del args, kwargs
        raise problem

    return call
