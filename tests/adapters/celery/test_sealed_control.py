"""Control messages of a worker that takes sealed ones only."""

from __future__ import annotations

import base64
import contextlib
import json
from typing import Any

import pytest

from pgqrs_core.testing import PATIENCE

from .celery_support import Workers

pytest.importorskip("cryptography")


@pytest.mark.parametrize(
    ("how", "queues"), [("SIGN", "*"), ("ENCRYPT", "*"), ("SIGN", "celery"), ("ENCRYPT", "celery")]
)
def test_a_worker_obeys_sealed_control_messages_alone(crew: Workers, how: str, queues: str) -> None:
    crew.environment.update(
        PGQRS_PLUGINS_CRYPTO_KEYS="k1:" + base64.b64encode(b"k" * 32).decode(),
        PGQRS_PLUGINS_CRYPTO_REQUIRED="true",
        **{f"PGQRS_PLUGINS_CRYPTO_{how}": queues},
    )
    worker = crew.start("solo")

    for exchange in ("celery.pidbox", "other", ""):
        order: dict[str, Any] = {"method": "shutdown", "arguments": {}, "destination": None}
        info = {"delivery_info": {"exchange": exchange, "routing_key": ""}}
        crew.sql(
            "insert into pgqrs.kombu_mail (queue_id, content_type, headers, body) "
            "select queue_id, 'application/json', %s::json, %s from pgqrs.kombu_queues where name like '%%.celery.pidbox'",
            json.dumps({"_kombu": {"properties": info, "content_encoding": "utf-8"}}),
            json.dumps(order).encode(),
        )

    assert "pong" in crew.command("inspect", "-t", str(PATIENCE / 3), "ping")
    assert worker.log.count("is discarded") == 3
    # It ends before it answers, which the command calls a failure.
    with contextlib.suppress(AssertionError):
        crew.command("control", "-t", "1", "shutdown")
    assert worker.process.wait(PATIENCE) == 0
