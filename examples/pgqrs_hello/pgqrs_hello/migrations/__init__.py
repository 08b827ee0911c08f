"""The numbered scripts of the table."""
