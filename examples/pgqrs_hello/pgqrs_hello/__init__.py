"""CSV payloads, and a journal of what became of messages."""

from pgqrs_hello.csv_rows import CsvRows, Rows

__all__ = ["CsvRows", "Rows"]
