"""The codec: frames of Zstandard that state their size and carry a checksum."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from pgqrs_core.codecs import Encoded, Envelope, Stage
from pgqrs_core.errors import DecodeError

if TYPE_CHECKING:
    import zstandard

__all__ = ["DEFAULT_MAX_BYTES", "DEFAULT_MIN_BYTES", "ZstdCodec"]

DEFAULT_MIN_BYTES: Final = 1024
DEFAULT_MAX_BYTES: Final = 16 * 1024 * 1024
#: The most memory that a frame may claim for looking back; ours stay far below.
_MAX_WINDOW: Final = 8 * 1024 * 1024


class ZstdCodec:
    """Compresses bodies that become smaller by it.

    Args:
        queues: whether messages of a queue are compressed where their producer did not choose; None for none.
        level: 1 (fast) to 19 (small).
        min_bytes: bodies below this are left alone.
        max_bytes: the largest size to expand to; larger bodies are left alone, and dead-lettered when they come.
    """

    name = "zstd"
    stage: Stage = "compress"

    def __init__(
        self,
        queues: Callable[[str], bool] | None = None,
        *,
        level: int = 3,
        min_bytes: int = DEFAULT_MIN_BYTES,
        max_bytes: int = DEFAULT_MAX_BYTES,
    ) -> None:
        self.active = queues is not None
        self._queues = queues or (lambda queue: False)
        self._level = level
        self._min_bytes = min_bytes
        self._max_bytes = max_bytes
        # Contexts of the library must not be shared by threads.
        self._local = threading.local()

    def wants(self, queue: str, size: int) -> bool:
        """Return whether it is large enough, in one of the queues."""
        return size >= self._min_bytes and self._queues(queue)

    def required(self, queue: str) -> bool:
        """Return False: a body that does not become smaller stays as it is."""
        return False

    def encode(self, body: bytes, around: Envelope) -> Encoded | None:
        """Return the body as one frame; None if it would not be smaller, or would be refused when it comes back."""
        if len(body) > self._max_bytes:
            return None
        frame = self._compressor().compress(body)
        return (frame, {}) if len(frame) < len(body) else None

    def decode(self, body: bytes, around: Envelope, facts: dict[str, Any]) -> bytes:
        """Return what the frame holds. The buffer is as large as the frame says, and at most ``max_bytes``.

        Raises:
            DecodeError: It says nothing, or too much; it holds more than it says; it is damaged.
        """
        import zstandard

        try:
            size = zstandard.frame_content_size(body)
            if size > self._max_bytes:
                reason = f"zstd: {size:,} bytes when expanded; plugins.zstd.max_bytes allows {self._max_bytes:,}"
                raise DecodeError(around.content_type, reason)
            if size < 0:
                raise DecodeError(around.content_type, "zstd: the frame does not say how large it is when expanded")
            return self._decompressor().decompress(body, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise DecodeError(around.content_type, f"zstd: {error}") from error

    def _compressor(self) -> zstandard.ZstdCompressor:
        found: zstandard.ZstdCompressor | None = getattr(self._local, "compressor", None)
        if found is None:
            import zstandard

            found = self._local.compressor = zstandard.ZstdCompressor(level=self._level, write_checksum=True)
        return found

    def _decompressor(self) -> zstandard.ZstdDecompressor:
        found: zstandard.ZstdDecompressor | None = getattr(self._local, "decompressor", None)
        if found is None:
            import zstandard

            found = self._local.decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW)
        return found
