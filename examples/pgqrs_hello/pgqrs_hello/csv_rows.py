"""A serializer: rows of texts as CSV."""

from __future__ import annotations

import csv
import io
from typing import Any

from pgqrs_core.errors import DecodeError, EncodeError, PayloadMismatch

__all__ = ["CsvRows", "Rows"]


class Rows(list[list[str]]):
    """A payload: rows of texts."""


class CsvRows:
    """Writes `Rows` as CSV. Any thread may use it: it keeps nothing."""

    content_type = "text/csv"

    def handles(self, payload: Any) -> bool:
        """Take `Rows` and nothing else; a plain list stays JSON."""
        return isinstance(payload, Rows)

    def encode(self, payload: Any) -> bytes:
        """Return the rows, each ended by a newline."""
        if not isinstance(payload, Rows) or not all(isinstance(cell, str) for row in payload for cell in row):
            raise EncodeError(self.content_type, "only Rows of texts can be written")
        text = io.StringIO()
        csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL).writerows(payload)
        return text.getvalue().encode()

    def decode(self, body: bytes, type_: Any = Any) -> Any:
        """Return `Rows`; errors say what is wrong with the message, so that its dead letter does."""
        if type_ is not Any and type_ is not Rows:
            raise PayloadMismatch(getattr(type_, "__name__", str(type_)), "$", "CSV is read as Rows only")
        try:
            return Rows(csv.reader(io.StringIO(body.decode(), newline=""), strict=True))
        except (UnicodeDecodeError, csv.Error) as error:
            raise DecodeError(self.content_type, str(error)) from error
