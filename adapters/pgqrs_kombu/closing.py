"""Steps of closing, which may find a server that has gone silent: each is given up after a few seconds."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

from pgqrs_core.logs import get_logger
from pgqrs_core.supervision import is_interpreter_ending, start_thread

__all__ = ["Closing"]

_log = get_logger("pgqrs.kombu")

#: Seconds for which a step is waited for.
_PATIENCE: Final = 3.0


class Closing:
    """Runs the steps of closing of one broker.

    A step that is not over in time goes on by itself: it ends when its statement does, or with the process. While one hangs
    the next are not waited for, so that closing takes a few seconds altogether. What they would have given back comes back
    when its leases end.
    """

    def __init__(self) -> None:
        self._hanging: threading.Event | None = None

    @property
    def is_hanging(self) -> bool:
        """Whether a step is not over that was given up."""
        return self._hanging is not None and not self._hanging.is_set()

    def run(self, step: Callable[[], object]) -> None:
        """Run a step.

        Raises:
            whatever it raises, if it does so in time.
        """
        over = threading.Event()
        raised: list[BaseException] = []

        def take() -> None:
            try:
                step()
            except BaseException as error:
                raised.append(error)
            finally:
                over.set()

        was_hanging = self.is_hanging
        try:
            start_thread(take, name="pgqrs-kombu-closing", restart=False)
        except RuntimeError as error:
            if not is_interpreter_ending(error):
                raise
            if not was_hanging:
                step()
            return
        if not over.wait(0.0 if was_hanging else _PATIENCE) and not self.is_hanging:
            self._hanging = over
            _log.warning("the server does not answer within %g s, and is not waited for any more in closing", _PATIENCE)
        if raised:
            raise raised[0]
