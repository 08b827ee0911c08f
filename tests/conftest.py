"""The fixtures are in modules of their own."""

pytest_plugins = ["pgqrs_core.testing.postgres"]
