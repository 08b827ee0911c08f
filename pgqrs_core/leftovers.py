"""Options of other brokers that an application which was moved here still has: named together, once, and without effect."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from pgqrs_core.logs import get_logger

__all__ = ["find_leftovers", "tell_leftovers"]

_log = get_logger("pgqrs.config")

_REDIS: Final = """
    visibility_timeout unacked_key unacked_index_key unacked_mutex_key unacked_mutex_expire
    unacked_restore_limit ack_emulation do_restore fanout_prefix fanout_patterns global_keyprefix key_prefix
    socket_timeout socket_connect_timeout socket_keepalive socket_keepalive_options socket_read_size
    retry_on_timeout retry_on_error retry_policy health_check_interval queue_order_strategy priority_steps sep
    master_name sentinel_kwargs min_other_sentinels sentinels credential_provider protocol db username
    password ssl_cert_reqs ssl_ca_certs ssl_certfile ssl_keyfile result_chord_ordered
    result_chord_join_timeout connection_class connection_class_ssl cluster_mode
    max_retries_on_connection_error deadletter_queue body_encoding
"""
_RABBITMQ: Final = """
    confirm_publish read_timeout write_timeout login_method client_properties connect_timeout
    connection_timeout heartbeat frame_max channel_max on_blocked on_unblocked fail_if_busy
"""
_SQS: Final = """
    region predefined_queues wait_time_seconds queue_name_prefix polling_interval is_secure port endpoint_url
    sts_role_arn backoff_policy backoff_tasks sqs-creation-attributes fetch_message_attributes
"""
_OTHERS: Final = frozenset(f"{_REDIS} {_RABBITMQ} {_SQS}".split())

_told: set[tuple[str, tuple[str, ...]]] = set()


def find_leftovers(names: Iterable[str], known: Iterable[str]) -> list[str]:
    """Return those of ``names`` that belong to Redis, RabbitMQ or SQS and are none of the ``known`` ones."""
    ours = set(known)
    return sorted(name for name in names if name in _OTHERS and name not in ours)


def tell_leftovers(where: str, names: Iterable[str]) -> None:
    """Warn of them in one line, once in the life of the process.

    Args:
        where: the setting that holds them.
        names: the options.
    """
    left = tuple(names)
    if left and (where, left) not in _told:
        _told.add((where, left))
        _log.warning(
            "%s of another broker or backend %s no effect with pgqrs and can go: %s",
            where,
            "has" if len(left) == 1 else "have",
            ", ".join(left),
        )
