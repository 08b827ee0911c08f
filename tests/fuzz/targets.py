"""What is fuzzed: our parsers of bytes that anybody may have written. Each returns, or refuses with an error of its own.

A target takes bytes, fails by any other exception, and has a few seeds to begin with. They are played in every test run
(`test_targets`); `fuzz` lets a fuzzer loose on them. A message is given as its content type, its headers and its body, the
first two ended by a line feed each.
"""

from __future__ import annotations

import base64
import contextlib
import json
import re
from collections import deque
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

from celery.exceptions import ImproperlyConfigured
from dramatiq.errors import DecodeError
from pgqrs_celery.address import configuration
from pgqrs_crypto.codecs import EncryptionCodec, SignatureCodec
from pgqrs_crypto.keyring import Keyring
from pgqrs_dramatiq.envelope import decode, undecodable
from pgqrs_kombu.compression import expand
from pgqrs_kombu.envelope import Message
from pgqrs_kombu.options import Options
from pgqrs_kombu.url import config_of
from pgqrs_zstd.codec import ZstdCodec

from pgqrs_core import config_file
from pgqrs_core.codecs import CodecStack
from pgqrs_core.config import Config
from pgqrs_core.config_address import masked, parse, split_schema
from pgqrs_core.errors import ConfigurationError
from pgqrs_core.events import ConsumeBatch
from pgqrs_core.messages import Delivery
from pgqrs_core.testing.by_hand import NOON
from pgqrs_core.testing.codecs import sent
from pgqrs_core.wakeups import Shared

__all__ = ["SECRET", "TARGETS", "Target"]

#: A password by which leaks are found: it is in the seeds.
SECRET = "S3CR3T"

#: What is compressed may be made to expand to this and no more.
_MEGABYTE = 1_048_576
_KEYS = Keyring([f"k:{base64.b64encode(bytes(32)).decode()}"])
_CODECS = CodecStack(
    [
        ("zstd", ZstdCodec(lambda queue: True, min_bytes=0, max_bytes=_MEGABYTE)),
        ("crypto", SignatureCodec(_KEYS, lambda queue: queue == "signed")),
        ("crypto", EncryptionCodec(_KEYS, lambda queue: queue == "sealed")),
    ]
)


class Target(NamedTuple):
    """A parser, and what to begin with."""

    play: Callable[[bytes], object]
    seeds: tuple[bytes, ...]


def delivery(data: bytes) -> Delivery:
    """A message as somebody may have put it into a queue's table."""
    content_type, _, rest = data.partition(b"\n")
    headers, _, body = rest.partition(b"\n")
    return Delivery(0, 1, 1, 0, NOON, content_type.decode("utf-8", "ignore"), headers.decode("utf-8", "ignore"), body)


def message(content_type: str, headers: Any, body: bytes) -> bytes:
    """The bytes that `delivery` reads."""
    return b"\n".join([content_type.encode(), json.dumps(headers).encode(), body])


def kombu(data: bytes) -> None:
    """The envelope never fails: Kombu asks for the payload later, and is told then what is wrong with it."""
    row = delivery(data)

    def expand_little(body: bytes, compression: object, _limit: int) -> bytes:
        return expand(body, compression, _MEGABYTE)

    with mock.patch("pgqrs_kombu.envelope.expand", expand_little):
        found = Message(row, None, 1, "jobs")
    repr(found)
    with contextlib.suppress(Exception):
        found.accept = {"application/json", "text/plain", "application/data"}
        found.decode()


def dramatiq(data: bytes) -> None:
    """A message that workers can handle, or Dramatiq's own error with a reason that can be stored."""
    try:
        found = decode(data, "jobs")
    except DecodeError as error:
        json.dumps(undecodable(error)).encode()
    else:
        assert found.queue_name == "jobs"
        assert isinstance(found.options, dict)
        assert "eta" not in found.options


def codecs(data: bytes) -> None:
    """A body in the clear, or a burial with its reason."""
    row = delivery(data)
    batch = ConsumeBatch("jobs", "fuzz", [row])
    _CODECS.decode(batch)
    assert len(batch.deliveries) + len(batch.buried) == 1
    assert len(row.body) <= max(len(data), _MEGABYTE)
    for _, reason in batch.buried:
        # It is stored, and logged.
        assert reason.isprintable()
        assert len(reason) < 1000


def notification(data: bytes) -> None:
    """A payload is a number, or nothing."""
    rung: list[int] = []
    watch = SimpleNamespace(rang=rung.append, renew=rung.append)
    listener: Any = SimpleNamespace(_arrived=deque([data.decode("utf-8", "replace")]), watch=watch)
    listener._heed = partial(Shared._heed, listener)
    server: Any = SimpleNamespace(consume_input=lambda: None, notifies=lambda: None)
    Shared._take(listener, server)
    assert all(type(number) is int for number in rung)
    assert not listener._arrived


def address(data: bytes) -> None:
    """An address is understood or refused, everywhere alike, and neither way shows a password."""
    url = data.decode("utf-8", "surrogateescape")
    client: Any = SimpleNamespace(
        hostname=url, ssl=None, connect_timeout=5, port=None, userid=None, password=None, virtual_host=None
    )
    parameters: dict[str, str] = {}
    attempts: list[Callable[[], object]] = [
        lambda: parameters.update(parse(split_schema(url)[0])),
        lambda: Config.load(url=url, env={}),
        lambda: configuration(url, {}),
        lambda: config_of(client, Options()),
    ]
    for attempt in attempts:
        try:
            shown = repr(attempt())
        except (ConfigurationError, ImproperlyConfigured) as error:
            shown = f"{error} {error.__cause__ or error.__context__ or ''}"
        secret = parameters.pop("password", "")
        assert not (SECRET in secret and SECRET in shown), "a password is shown"
        # What stands twice may stand where no password does; key=value pairs are not shown, masked or otherwise.
        if SECRET in secret and url.count(SECRET) == 1 and re.match(r"\s*\w+://", url):
            assert SECRET not in masked(url), "a password is not masked"


def configuration_file(data: bytes) -> None:
    """A file is understood, or refused with its line."""

    def read(path: str, *, named: bool) -> str:
        return data.decode("utf-8", "ignore")

    with mock.patch.object(config_file, "_read", read), contextlib.suppress(ConfigurationError):
        repr(Config.load("pgqrs.yaml", env={}))


def _sealed(queue: str, body: bytes, headers: dict[str, Any] | None = None) -> bytes:
    draft = sent(_CODECS, body, headers, queue=queue)
    return message(draft.content_type, draft.headers, draft.body)


_TASK = {"lang": "py", "task": "add", "id": "1", "eta": None, "retries": 0}
_ENVELOPE = {
    "content_encoding": "utf-8",
    "properties": {"delivery_info": {"exchange": "e", "routing_key": "k"}, "priority": 3, "correlation_id": "1"},
}
_CALL = {
    "queue_name": "default",
    "actor_name": "add",
    "args": [1, 2],
    "kwargs": {},
    "options": {"eta": 1, "retries": 1},
    "message_id": "1",
    "message_timestamp": 1,
}
_YAML = b"""
database: {host: db, port: 5432, username: u, password: 'S3CR3T', schema: pgqrs}
queue:
  default_lock_time_seconds: 1.5
  enable_listen_notify: true
plugins:
  blocked: [otel, "x"]
  zstd: {level: 3, queues: ["*"]}
"""

#: By name.
TARGETS = {
    "kombu": Target(
        kombu,
        (
            message("application/json", {**_TASK, "_kombu": _ENVELOPE}, b'[[1,2],{},{"chord":null}]'),
            message("text/plain", {"_kombu": {**_ENVELOPE, "content_encoding": "rot13"}}, b"x"),
            message("application/json", {"compression": "application/x-gzip"}, base64.b64decode("eJyLBgAAXQBe")),
            message("application/json", {"__type__": "datetime", "__value__": "2020-01-01T00:00:00"}, b"1"),
            b"",
        ),
    ),
    "dramatiq": Target(dramatiq, (json.dumps(_CALL).encode(), b"{}", b"[]", b'{"queue_name":1}', b"\xff")),
    "codecs": Target(
        codecs,
        (
            _sealed("jobs", b"a" * 100, {"a": 1}),
            _sealed("signed", b"b" * 100),
            _sealed("sealed", b"c" * 10),
            message("x", {"pgqrs_encoding": [{"codec": "zstd"}] * 3}, b"\x28\xb5\x2f\xfd"),
            message("x", {"pgqrs_encoding": {"codec": 1}}, b""),
            # Was written to the log as it is.
            message("\x1b[2J\r" * 1000, {"pgqrs_encoding": {"codec": 1}}, b""),
        ),
    ),
    "notification": Target(notification, (b"1", b"-1", b"", b"1_0", b" 7", b"9" * 5_000, "\u0663".encode(), b"nan")),
    "address": Target(
        address,
        (
            b"postgresql://user:S3CR3T@host:5432/db?sslmode=require&schema=s&connect_timeout=3",
            b"pgqrs://u:S3CR3T@[::1],b:1/d?target_session_attrs=any",
            b"host=a port=1 user=u password='S3CR3T' dbname=d",
            b"embedded://",
            b"postgresql://u:S3CR3T%40@h",
            b"postgresql:///?password=S3CR3T&user=u&host=/tmp",
            # Was shown as it is: libpq takes no host for the local socket.
            b"pgqrs://u:S3CR3T@",
            b"pgqrs:///d?user=u&pass%77ord=S3CR3T",
            # Was a UnicodeEncodeError where a host stands alone.
            b"h\xda",
            b"h\0",
        ),
    ),
    "configuration": Target(configuration_file, (_YAML, b"a: &a [*a]", b"? [a]\n: b", b"plugins: !!python/x", b"\\U")),
}
