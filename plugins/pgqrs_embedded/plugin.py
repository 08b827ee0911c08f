"""The entry point of the embedded server. It implements no hook: the server is started on request only."""

__all__: list[str] = []
