"""Benchmarks of pgqrs, each beside something measured in the same run. See README.md."""
