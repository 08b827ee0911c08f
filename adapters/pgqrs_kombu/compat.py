"""Where the supported versions of Kombu, from 5.4 on, differ: what came later is made up for here, and nowhere else."""

from __future__ import annotations

from kombu.exceptions import KombuError

__all__ = ["BatchPublishError"]

try:
    # Since 5.7, with `Producer.batch()`.
    from kombu.exceptions import BatchPublishError
except ImportError:

    class BatchPublishError(KombuError):  # type: ignore[no-redef,misc]
        """It is not known whether a batch was published."""
