"""A broker in files: Kombu's, but a message is written whole before anybody can see it."""

from __future__ import annotations

import os
import time
import uuid
from pathlib import Path
from typing import Any

from kombu.transport import TRANSPORT_ALIASES, filesystem
from kombu.utils.json import dumps

__all__ = ["Transport"]


class Channel(filesystem.Channel):
    """Writes beside the queue and moves: Kombu's own lets consumers read what is half written."""

    def _put(self, queue: str, payload: Any, **kwargs: Any) -> None:
        name = f"{time.monotonic_ns():020}_{uuid.uuid4()}.{queue}.msg"
        folder = Path(self.data_folder_out)
        hidden = folder / f".{name}.part"
        hidden.write_text(dumps(payload), encoding="utf-8")
        os.rename(hidden, folder / name)


class Transport(filesystem.Transport):
    """``files://``."""

    Channel = Channel


TRANSPORT_ALIASES["files"] = f"{__name__}:Transport"
