"""The serial run that the workers are compared with: one process, no queue.

``python -m pgqrs_native.demo.serial`` reads paths from standard input as one JSON array, and writes one line
of JSON per file.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import msgspec
from typing_extensions import Self

from pgqrs_core.errors import PgqrsError
from pgqrs_native.demo.counting import FileCount, count_names

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["SerialRun", "main"]


class SerialRun:
    """Counts files in a process of its own, so that it may go on beside the workers.

    Attributes:
        counts: what is counted so far, by path.
        seconds: how long it took, once it has ended.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self.counts: dict[str, FileCount] = {}
        self.seconds = 0.0
        self._paths = paths
        self._process: subprocess.Popen[bytes] | None = None
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._failure: BaseException | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._reader.join()

    @property
    def started(self) -> bool:
        """Whether it has begun."""
        return self._process is not None

    @property
    def running(self) -> bool:
        """Whether it has begun and not ended yet."""
        return self._reader.is_alive()

    def start(self) -> None:
        """Begin, unless begun already."""
        if self._process is None:
            command = [sys.executable, "-m", "pgqrs_native.demo.serial"]
            self._process = subprocess.Popen(  # noqa: S603
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                # Control-C is for the command alone; it ends what it started.
                start_new_session=True,
            )
            self._reader.start()

    def check(self) -> None:
        """Raise unless every file was counted.

        Raises:
            PgqrsError: the process ended early.
        """
        if self._failure is not None or len(self.counts) != len(self._paths):
            raise PgqrsError(
                f"the serial run ended after {len(self.counts)} of {len(self._paths)} files"
            ) from self._failure

    def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        began = time.perf_counter()
        decoder = msgspec.json.Decoder(FileCount)
        try:
            with self._process.stdout as answers:
                with self._process.stdin as asking:
                    asking.write(msgspec.json.encode(self._paths))
                for line in answers:
                    count = decoder.decode(line)
                    self.counts[count.path] = count
        except (OSError, msgspec.MsgspecError) as error:
            self._failure = error
        self.seconds = time.perf_counter() - began


def main() -> None:
    """Count the files named on standard input."""
    encoder = msgspec.json.Encoder()
    for path in msgspec.json.decode(sys.stdin.buffer.read(), type=list[str]):
        sys.stdout.buffer.write(encoder.encode(count_names(path)) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
