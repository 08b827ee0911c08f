"""Compression by Zstandard, from a size on; nothing is ever expanded beyond a limit."""

from pgqrs_zstd.codec import ZstdCodec

__all__ = ["ZstdCodec"]
