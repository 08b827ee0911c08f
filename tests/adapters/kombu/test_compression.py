"""Compressed bodies expand to a limit, whoever compressed them."""

from __future__ import annotations

import pytest
from kombu.compression import compress, encoders
from pgqrs_kombu.compression import expand

from pgqrs_core.errors import DecodeError

KINDS = ["application/x-gzip", "application/x-bz2", "application/x-lzma", "application/zstd", "application/x-brotli"]


@pytest.mark.parametrize("name", KINDS)
def test_a_bomb_is_refused_and_what_is_small_enough_is_expanded(name: str) -> None:
    if name not in encoders():
        pytest.skip(f"{name} is not installed")
    body, content_type = compress(b"x" * 1_000_000, name)

    assert expand(body, content_type, 1_000_000) == b"x" * 1_000_000
    with pytest.raises(DecodeError, match="more than 999,999 bytes"):
        expand(body, content_type, 999_999)


@pytest.mark.parametrize("name", KINDS)
def test_what_is_cut_off_is_refused(name: str) -> None:
    if name not in encoders():
        pytest.skip(f"{name} is not installed")
    body, content_type = compress(bytes(range(256)) * 100, name)

    with pytest.raises(DecodeError):
        expand(body[:-3], content_type)
