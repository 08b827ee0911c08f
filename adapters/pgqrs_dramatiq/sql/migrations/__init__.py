"""The scripts of the adapter's tables."""
