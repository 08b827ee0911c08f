"""Registers the codec. Unless queues are configured it compresses on request only, and expands whatever comes."""

from __future__ import annotations

from pgqrs_core.codecs import Codec
from pgqrs_core.hookspecs import hookimpl
from pgqrs_core.plugin_settings import PluginSettings, Setting, matcher
from pgqrs_core.requirements import missing
from pgqrs_zstd.codec import DEFAULT_MAX_BYTES, DEFAULT_MIN_BYTES, ZstdCodec

__all__ = ["pgqrs_configure"]

_SETTINGS = {
    "queues": Setting("names", "queues whose messages are compressed; `*` is any text", ()),
    "level": Setting("int", "1 (fast) to 19 (small)", 3, low=1, high=19),
    "min_bytes": Setting("int", "bodies below this are left alone", DEFAULT_MIN_BYTES, low=0, high=268_435_456),
    "max_bytes": Setting("int", "the largest size to expand to", DEFAULT_MAX_BYTES, low=1, high=1_073_741_824),
}


class _Compression:
    def __init__(self, codec: ZstdCodec) -> None:
        self._codec = codec

    @hookimpl
    def pgqrs_codecs(self) -> list[Codec]:
        return [self._codec]


@hookimpl
def pgqrs_configure(settings: PluginSettings) -> object:
    """Compress as configured."""
    given = settings.read(_SETTINGS)
    if given["queues"] and (problem := missing("zstandard", "zstd")):
        raise settings.refused("queues", f"cannot be compressed: {problem}")
    queues = matcher(given["queues"]) if given["queues"] else None
    sizes = {key: given[key] for key in ("level", "min_bytes", "max_bytes")}
    return _Compression(ZstdCodec(queues, **sizes))
