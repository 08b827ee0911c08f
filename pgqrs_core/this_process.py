"""Which process this is, in words that a person can use to find it."""

from __future__ import annotations

import os
import socket

from pgqrs_core.operations.maintenance import Process

__all__ = ["this_process"]


def this_process() -> Process:
    """Return the host's name and the id of this process; asked anew each time, since a fork changes the id."""
    host = "".join(char if char.isprintable() else "?" for char in socket.gethostname())
    return Process(host[:255] or "?", os.getpid())
