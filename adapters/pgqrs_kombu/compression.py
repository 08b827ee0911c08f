"""Bodies that their publisher compressed, and that may be bombs: nothing expands beyond a limit.

It is the largest body that the queue would take without compression; for results of Celery, their own option.
"""

from __future__ import annotations

import bz2
import importlib
import lzma
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final

from kombu.compression import get_decoder, get_encoder

from pgqrs_core.errors import DecodeError, InvalidArgument

__all__ = ["MAX_EXPANDED_BYTES", "check_expanded", "expand"]

#: Bytes to which something is expanded where nothing else is configured.
MAX_EXPANDED_BYTES: Final = 16 * 1024 * 1024

#: What is expanded piece by piece. What a program registers with Kombu by itself is its own affair.
_EXPANDERS: Final[dict[str, Callable[[], Any]]] = {
    "application/x-gzip": zlib.decompressobj,
    "application/x-bz2": bz2.BZ2Decompressor,
    "application/x-lzma": lzma.LZMADecompressor,
}


class _TooLarge(DecodeError):
    """It expands to more than is allowed."""


class _Brotli:
    """Brotli's decompressor, with the manners of the standard library's."""

    unused_data = b""

    def __init__(self, library: Any) -> None:
        self._inner = library.Decompressor()

    def decompress(self, body: bytes, most: int) -> bytes:
        """Return at most about ``most`` bytes; libraries before 1.2 have no limit, and are refused by their TypeError."""
        return bytes(self._inner.process(body, output_buffer_limit=most))

    @property
    def eof(self) -> bool:
        return bool(self._inner.is_finished())


def _optional() -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield what may be installed, in the order in which Kombu looks for it."""
    for content_type, names in (
        ("application/zstd", ("compression.zstd", "backports.zstd")),
        ("application/x-brotli", ("brotli", "brotlicffi")),
    ):
        for name in names:
            try:
                library = importlib.import_module(name)
            except ImportError:
                continue
            yield content_type, partial(_Brotli, library) if "brotli" in name else library.ZstdDecompressor
            break


_EXPANDERS.update(_optional())


def expand(body: bytes, compression: object, limit: int = MAX_EXPANDED_BYTES) -> bytes:
    """Return what was compressed.

    Args:
        body: as it was published.
        compression: the header of that name: a content type or an alias of Kombu's.
        limit: bytes beyond which it is not expanded.

    Raises:
        DecodeError: it is more than that, is broken, or nobody here knows the compression.
    """
    try:
        content_type = get_encoder(compression)[1]
        make = _EXPANDERS.get(content_type)
        return get_decoder(content_type)(body) if make is None else _expand(body, content_type, make, limit)
    except DecodeError:
        raise
    except Exception as error:
        raise DecodeError(str(compression)[:100], f"it cannot be expanded ({type(error).__name__}: {error})") from error


def check_expanded(queue: str, body: bytes, compression: object, limit: int) -> None:
    """Refuse a body that consumers of its queue would refuse.

    Raises:
        InvalidArgument: it expands to more than ``limit`` bytes.
    """
    too_large = False
    try:
        expand(body, compression, limit)
    except _TooLarge:
        too_large = True
    except DecodeError:
        # Consumers may know what this process does not.
        pass
    if too_large:
        expected = (
            f"one that expands to at most {limit:,} bytes in queue {queue!r}: its max_body_bytes, or the transport's"
        )
        raise InvalidArgument("body", "compressed", expected)


def _expand(body: bytes, content_type: str, make: Callable[[], Any], limit: int) -> bytes:
    found: list[bytes] = []
    room = limit
    while body:
        expander = make()
        piece = expander.decompress(body, room + 1)
        room -= len(piece)
        if room < 0:
            raise _TooLarge(content_type, f"it expands to more than {limit:,} bytes")
        if not expander.eof:
            raise DecodeError(content_type, "it ends too soon")
        found.append(piece)
        # Several compressed texts may follow each other; zlib, as Kombu uses it, stops after the first.
        body = b"" if make is zlib.decompressobj else expander.unused_data
    return b"".join(found)
