"""The numbered scripts of the transport's own tables."""
