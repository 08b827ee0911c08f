"""Compression, signatures and encryption: alone, together, in old and new messages, and against forgers."""

from __future__ import annotations

import base64
import io
import json
import logging
import pickle
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pgqrs_crypto import EncryptionCodec, Keyring, SignatureCodec
from pgqrs_crypto import plugin as crypto
from pgqrs_native import Client
from pgqrs_zstd import ZstdCodec
from pgqrs_zstd import plugin as zstd

from pgqrs_core.codecs import CHOICE, ENCODING, CodecStack, Envelope
from pgqrs_core.config import Config
from pgqrs_core.errors import ConfigurationError, DecodeError, InvalidArgument, PluginError
from pgqrs_core.plugins import Plugins
from pgqrs_core.testing.codecs import CodecConformance, received, sent

zstandard = pytest.importorskip("zstandard")
pytest.importorskip("cryptography")

SECRET = bytes(range(32))
KEY = base64.b64encode(SECRET).decode()
OTHER = base64.b64encode(b"k" * 32).decode()
LONG = b"to be or not to be, " * 200
JSON_LONG = {"text": "to be or not to be, " * 200}


def everywhere(queue: str) -> bool:
    return True


class TestZstd(CodecConformance):
    def make(self) -> ZstdCodec:
        return ZstdCodec(everywhere, min_bytes=0)


class TestEncryption(CodecConformance):
    binds = True

    def make(self) -> EncryptionCodec:
        return EncryptionCodec(Keyring([f"k1:{KEY}"]), everywhere)


class TestSignature(CodecConformance):
    binds = True

    def make(self) -> SignatureCodec:
        return SignatureCodec(Keyring([f"k1:{KEY}"]), everywhere)


def stack(*codecs: Any) -> CodecStack:
    return CodecStack([(f"plugin{place}", one) for place, one in enumerate(codecs)])


def reason(batch: Any) -> str:
    [(_, found)] = batch.buried
    return str(found)


def why_left(batch: Any) -> str:
    [(_, found)] = batch.postponed
    return str(found)


def encryption(*keys: str, **options: Any) -> EncryptionCodec:
    return EncryptionCodec(Keyring(keys or [f"k1:{KEY}"]), everywhere, **options)


# Together


@pytest.mark.parametrize("turned", [False, True])
def test_codecs_are_applied_by_stage_in_whatever_order_they_were_loaded(turned: bool) -> None:
    codecs = [ZstdCodec(everywhere), SignatureCodec(Keyring([f"k1:{KEY}"]), everywhere), encryption()]
    together = stack(*(reversed(codecs) if turned else codecs))

    draft = sent(together, LONG, {"message_type": "mail"})

    assert [entry["codec"] for entry in draft.headers[ENCODING]] == ["zstd", "hmac-sha256", "aes-256-gcm"]  # type: ignore[index]
    assert len(draft.body) < len(LONG) / 10
    [delivery] = received(together, draft).deliveries
    assert (delivery.body, delivery.headers) == (LONG, {"message_type": "mail"})


def test_a_message_is_decoded_as_it_was_encoded_whatever_is_configured_today() -> None:
    yesterday, today = (
        stack(ZstdCodec(everywhere), encryption()),
        stack(ZstdCodec(), EncryptionCodec(Keyring([f"k1:{KEY}"]))),
    )

    for draft in (sent(yesterday, LONG), sent(today, LONG)):
        assert received(today, draft).deliveries[0].body == LONG
        assert received(yesterday, draft).deliveries[0].body == LONG


def test_a_producer_chooses_for_one_message() -> None:
    both = stack(ZstdCodec(everywhere), EncryptionCodec(Keyring([f"k1:{KEY}"])))

    plain = sent(both, LONG, {CHOICE: {"zstd": False}})
    asked = sent(both, b"short", {CHOICE: {"aes-256-gcm": True, "zstd": False}, "a": 1})

    assert (plain.body, plain.headers) == (LONG, None)
    assert asked.headers == {"a": 1, ENCODING: [{"codec": "aes-256-gcm", "key": "k1"}]}
    assert received(both, asked).deliveries[0].body == b"short"


@pytest.mark.parametrize("choice", [{"rot13": True}, {"zstd": 1}, ["zstd"], None])
def test_a_choice_that_means_nothing_is_refused(choice: Any) -> None:
    with pytest.raises(InvalidArgument, match="pgqrs_codecs"):
        sent(stack(ZstdCodec(everywhere)), b"x", {CHOICE: choice})


def test_to_ask_for_encryption_without_a_key_is_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"plugins\.crypto\.keys"):
        sent(stack(EncryptionCodec(Keyring())), b"x", {CHOICE: {"aes-256-gcm": True}})


def test_a_message_of_a_codec_that_is_not_loaded_is_left_to_others_with_its_name() -> None:
    assert "no codec 'zstd' is loaded; known are: none" in why_left(
        received(stack(), sent(stack(ZstdCodec(everywhere)), LONG))
    )


@pytest.mark.parametrize(
    "header",
    [
        "zstd",
        [],
        [5],
        [{}],
        {"codec": "zstd"},
        [{"codec": ["zstd"]}],
        [{"codec": "zstd"}] * 9,
        None,
        [{"codec": "zstd"}] * 5000,
    ],
    ids=lambda value: repr(value)[:20],
)
def test_a_header_that_somebody_else_wrote_buries_its_message_or_is_nothing(header: Any) -> None:
    batch = received(stack(ZstdCodec()), _forged(b"plain", header))

    assert len(batch.buried) + len(batch.deliveries) == 1
    assert not batch.deliveries or batch.deliveries[0].body == b"plain"


def test_a_body_of_very_many_layers_is_buried_before_any_is_undone() -> None:
    layers = [{"codec": "broken"}] * 9

    assert "9 layers; at most 8" in reason(received(stack(Broken(decoded=AssertionError())), _forged(b"x", layers)))


def _forged(body: bytes, header: Any) -> Any:
    draft = sent(stack(), body)
    draft.headers = {ENCODING: header}
    return draft


class Broken:
    """A codec with one fault."""

    name = "broken"
    stage = "transform"
    active = True

    def __init__(self, encoded: Any = (b"x", {}), decoded: Any = b"x") -> None:
        self.encoded, self.decoded = encoded, decoded

    def wants(self, queue: str, size: int) -> bool:
        return True

    def required(self, queue: str) -> bool:
        return False

    def encode(self, body: bytes, around: Envelope) -> Any:
        return self._give(self.encoded)

    def decode(self, body: bytes, around: Envelope, facts: dict[str, Any]) -> Any:
        return self._give(self.decoded)

    def _give(self, value: Any) -> Any:
        if isinstance(value, Exception):
            raise value
        return value


@pytest.mark.parametrize("encoded", [b"x", (b"x",), ("x", {}), (b"x", None), OSError("full")], ids=repr)
def test_a_codec_that_fails_to_encode_fails_the_enqueue_by_its_plugins_name(encoded: Any) -> None:
    with pytest.raises(PluginError, match=r"'plugin0'.*codec 'broken'"):
        sent(stack(Broken(encoded)), b"x")


def test_a_codec_that_fails_to_decode_buries_one_message_and_tells_the_kind_only() -> None:
    broken = stack(Broken(decoded=ValueError("hunter2")))

    found = reason(received(broken, sent(broken, b"x")))

    assert "codec 'broken' failed: ValueError" in found
    assert "hunter2" not in found


@pytest.mark.parametrize("decoded", ["text", None, ImportError("no library")], ids=repr)
def test_a_codec_that_lacks_its_library_or_returns_no_bytes_fails_the_batch_and_buries_nothing(decoded: Any) -> None:
    broken = stack(Broken(decoded=decoded))
    draft = sent(broken, b"x")

    with pytest.raises(PluginError, match="codec 'broken'"):
        received(broken, draft)


# Compression


def test_only_what_is_large_enough_and_becomes_smaller_is_compressed() -> None:
    import random

    noise = random.Random(1).randbytes(5000)
    small = stack(ZstdCodec(everywhere, min_bytes=1000))

    assert sent(small, b"a" * 999).body == b"a" * 999
    assert len(sent(small, b"a" * 1000).body) < 100
    assert sent(small, noise).body == noise
    assert sent(small, noise).headers is None


def bombs() -> Iterator[tuple[str, bytes]]:
    size = 64 * 1024 * 1024
    yield "honest", zstandard.ZstdCompressor().compress(bytes(size))
    sink = io.BytesIO()
    with zstandard.ZstdCompressor(write_content_size=False).stream_writer(sink, closefd=False) as writer:
        writer.write(bytes(size))
    yield "silent", sink.getvalue()
    frame = bytearray(zstandard.ZstdCompressor(write_checksum=False).compress(bytes(size)))
    # The size stands behind magic number and descriptor; let it say 100 bytes.
    position = frame.index(size.to_bytes(4, "little"))
    frame[position : position + 4] = (100).to_bytes(4, "little")
    yield "lying", bytes(frame)


BOMBS = {
    "honest": "67,108,864 bytes when expanded; plugins.zstd.max_bytes allows 1,048,576",
    "silent": "does not say how large it is",
    "lying": "zstd: ",
}


@pytest.mark.parametrize(("kind", "body"), list(bombs()), ids=lambda value: value if isinstance(value, str) else "")
def test_a_bomb_is_buried_and_never_expanded(kind: str, body: bytes) -> None:
    import tracemalloc

    stacked = stack(ZstdCodec(everywhere, max_bytes=1024 * 1024))
    draft = _forged(body, [{"codec": "zstd"}])
    tracemalloc.start()
    try:
        batch = received(stacked, draft)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert BOMBS[kind] in reason(batch)
    assert peak < 2 * 1024 * 1024


def test_a_body_beyond_the_limit_is_not_compressed_for_it_could_not_be_read() -> None:
    assert sent(stack(ZstdCodec(everywhere, max_bytes=3000)), LONG).body == LONG


# Keys


def test_the_first_key_seals_and_all_open() -> None:
    old = stack(encryption(f"k1:{KEY}"))
    rotated = stack(encryption(f"k2:{OTHER}", f"k1:{KEY}"))
    retired = stack(encryption(f"k2:{OTHER}"))
    before, after = sent(old, b"a"), sent(rotated, b"a")

    assert after.headers == {ENCODING: [{"codec": "aes-256-gcm", "key": "k2"}]}
    assert received(rotated, before).deliveries[0].body == received(rotated, after).deliveries[0].body == b"a"
    assert "its key 'k1' is not in plugins.crypto.keys" in why_left(received(retired, before))
    assert "its key 'k2' is not" in why_left(received(old, after))


def test_the_wrong_key_under_the_right_id_opens_nothing() -> None:
    draft = sent(stack(encryption(f"k1:{OTHER}")), b"hunter2")

    assert "does not open with key 'k1'" in reason(received(stack(encryption()), draft))


def test_the_same_body_is_never_encrypted_to_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgqrs_crypto.codecs._MESSAGES_PER_SALT", 3)
    sealing = stack(encryption())

    bodies = [sent(sealing, b"x").body for _ in range(10)]

    assert len({body[16:28] for body in bodies}) == 10
    assert len({body[:16] for body in bodies}) == 4


ACTS: dict[str, Callable[[Any], None]] = {
    "content type": lambda draft: setattr(draft, "content_type", "text/html"),
    "message type": lambda draft: draft.headers.update(message_type="other"),
    "a new header": lambda draft: draft.headers.update(more=1),
    "the key's id": lambda draft: draft.headers[ENCODING][-1].update(key="k2"),
    "an inner codec": lambda draft: draft.headers.update({ENCODING: draft.headers[ENCODING][1:]}),
}


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("make", [EncryptionCodec, SignatureCodec])
def test_whatever_belongs_to_a_sealed_body_cannot_be_changed(act: str, make: Any) -> None:
    sealing = stack(ZstdCodec(everywhere), make(Keyring([f"k1:{KEY}", f"k2:{KEY}"]), everywhere))
    draft = sent(sealing, LONG, {"message_type": "mail"})

    ACTS[act](draft)

    assert "were changed" in reason(received(sealing, draft))


TEXT = st.text(st.characters(exclude_categories=()), max_size=5)
HEADERS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=10,
)


@settings(deadline=None)
@given(st.dictionaries(TEXT, HEADERS, max_size=4))
@example({"tuple": (1, 2), "keys": {10: 1, 9: 2}})  # type: ignore[dict-item]
def test_whatever_the_headers_hold_a_sealed_body_opens_beside_them(headers: dict[str, Any]) -> None:
    sealing = stack(SignatureCodec(Keyring([f"k1:{KEY}"]), everywhere), encryption())
    plain = {key: value for key, value in headers.items() if key not in (CHOICE, ENCODING)}

    [delivery] = received(sealing, sent(sealing, b"x", plain)).deliveries

    assert delivery.body == b"x"
    assert delivery.headers == json.loads(json.dumps(plain))


@pytest.mark.parametrize("make", [EncryptionCodec, SignatureCodec])
def test_where_it_is_required_a_message_without_it_is_refused_on_both_sides(make: Any) -> None:
    strict = stack(make(Keyring([f"k1:{KEY}"]), lambda queue: queue == "jobs", required=True))
    forged = sent(stack(), b"{}")

    with pytest.raises(InvalidArgument, match="requires it"):
        sent(strict, b"x", {CHOICE: {make.name: False}})
    assert f"lacks what queue 'jobs' requires: {make.name}" in reason(received(strict, forged))
    assert received(strict, sent(stack(), b"{}", queue="open")).deliveries[0].body == b"{}"
    assert received(strict, sent(strict, b"x")).deliveries[0].body == b"x"


BAD_KEYS = [f"k1{KEY}", "k1:", "k1:hunter2hunter2", f":{KEY}", f"k1:{KEY}=", "k1:aHVudGVyMg=="]


@pytest.mark.parametrize("text", BAD_KEYS)
def test_a_malformed_key_is_a_configuration_error_that_does_not_show_it(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"plugins.crypto.keys entry 2") as caught:
        Plugins.core().register(crypto, "crypto", keys=[f"good:{KEY}", text])

    told = "".join(traceback.format_exception(caught.value))
    assert text.partition(":")[2][:8] not in told or not text.partition(":")[2]
    assert KEY not in told


def test_nothing_shows_a_key_or_a_body(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    ring = Keyring([f"k1:{KEY}", f"k2:{OTHER}"])
    codec = EncryptionCodec(ring, everywhere)
    sealing = stack(codec)
    draft = sent(sealing, b"hunter2")
    draft.body = draft.body[:-1] + bytes([draft.body[-1] ^ 1])
    config = Config.load(env={"PGQRS_PLUGINS_CRYPTO_KEYS": f"k1:{KEY}"})

    with pytest.raises(DecodeError) as caught:
        codec.decode(draft.body, Envelope("jobs", "text/plain", {}), {"key": "k1"})
    with pytest.raises(TypeError, match="not to be pickled"):
        pickle.dumps(ring)

    shown = [
        reason(received(sealing, draft)),
        "".join(traceback.format_exception(caught.value)),
        *map(repr, (ring, codec, config, config.plugins, config.plugins.settings, config.describe())),
        caplog.text,
    ]
    for text in shown:
        assert "hunter2" not in text
        assert KEY not in text
        assert repr(SECRET)[2:20] not in text


# In a queue


def client_of(dsn: str, **settings: dict[str, Any]) -> Client:
    plugins = Plugins.core()
    for name, module in (("zstd", zstd), ("crypto", crypto)):
        plugins.register(module, name, **settings.get(name, {}))
    return Client(Config.load(url=dsn, env={}), plugins=plugins)


def test_messages_old_and_new_sealed_and_not_lie_in_one_queue(pgqrs_dsn: str) -> None:
    stages: list[dict[str, dict[str, Any]]] = [
        {},
        {"zstd": {"queues": ["*"]}},
        {"crypto": {"keys": [f"k1:{KEY}"], "encrypt": ["jobs"]}, "zstd": {"queues": ["jobs"]}},
        {"crypto": {"keys": [f"k2:{OTHER}", f"k1:{KEY}"], "encrypt": ["jobs"], "sign": ["jobs"]}},
    ]
    for number, chosen in enumerate(stages):
        with client_of(pgqrs_dsn, **chosen) as client:
            if not number:
                client.admin.install()
                client.admin.create_queue("jobs")
            client.producer.batch_enqueue("jobs", [JSON_LONG, {"short": number}])

    with client_of(pgqrs_dsn, **stages[-1]) as client:
        stored = client.admin.peek("jobs", count=100)
        found = client.consumer.read_batch("jobs", count=100)
        client.consumer.nack(found[-1], delay=0)
        again = client.consumer.read("jobs")

    kinds = [[entry["codec"] for entry in one.headers.get(ENCODING, [])] for one in stored]
    seals = ["hmac-sha256", "aes-256-gcm"]
    assert kinds == [[], [], ["zstd"], [], ["zstd", "aes-256-gcm"], ["aes-256-gcm"], seals, seals]
    assert [one.payload for one in found] == [item for n in range(4) for item in (JSON_LONG, {"short": n})]
    assert all(ENCODING not in one.headers and one.content_type == "application/json" for one in found)
    assert not any(b"short" in one.body for one in stored[4:])
    assert again is not None
    assert again.payload == {"short": 3}


def test_a_sealed_body_that_is_moved_to_another_queue_is_dead_with_the_reason(
    pgqrs_dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    with client_of(pgqrs_dsn, crypto={"keys": [f"k1:{KEY}"], "encrypt": ["*"]}) as client:
        client.admin.install()
        for queue in ("a", "b"):
            client.admin.create_queue(queue)
        client.producer.enqueue("a", "hunter2")
        with client.engine.transaction() as connection:
            connection.execute(  # type: ignore[attr-defined]
                "insert into pgqrs.q_b (lane, content_type, headers, body) "
                "select lane, content_type, headers, body from pgqrs.q_a"
            )
        client.producer.enqueue("b", "mine")

        found = client.consumer.read_batch("b", count=10)
        [dead] = client.admin.list_dead("b")
        kept = client.admin.show_dead("b", dead.id)
        original = client.consumer.read("a")

    assert [one.payload for one in found] == ["mine"]
    [line] = [one.getMessage() for one in caplog.records if one.name == "pgqrs.plugins"]
    assert line.startswith("queue 'b': 1 of 2 messages cannot be decoded and are refused; the first, 1: ")
    assert "its queue were changed" in dead.error["message"]
    assert "hunter2" not in json.dumps(dead.error)
    assert b"hunter2" not in kept.body
    assert original is not None
    assert original.payload == "hunter2"


# Configuration


def test_settings_come_from_file_and_environment(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "pgqrs.yaml"
    file.write_text("plugins:\n  zstd: {queues: [jobs], min_bytes: 10}\n  crypto:\n    encrypt: ['*']\n")
    env = {"PGQRS_PLUGINS_CRYPTO_KEYS": f"k1:{KEY}", "PGQRS_PLUGINS_ZSTD_MIN_BYTES": "5"}
    config = Config.load(file, env=env)

    plugins = Plugins.load(settings=config.plugins.settings)

    plugins.check()
    draft = sent(plugins.hooks.codecs, b"aaaaaaaaaa" * 5)
    assert [entry["codec"] for entry in draft.headers[ENCODING]] == ["zstd", "aes-256-gcm"]  # type: ignore[index]
    assert sent(plugins.hooks.codecs, b"", queue="other").headers == {ENCODING: [{"codec": "aes-256-gcm", "key": "k1"}]}


WRONG = [
    ({"plugins": {"zstd": {"level": 99}}}, "argument: plugins.zstd.level must be a whole number from 1 to 19, not 99"),
    ({"plugins": {"zstd": {"leve": 1}}}, "unknown key 'plugins.zstd.leve'; did you mean plugins.zstd.level?"),
    ({"plugins": {"zst": {"level": 1}}}, "'zst_level' is no setting of a plugin that is installed"),
    ({"plugins": {"msgpack": {"x": 1}}}, "unknown key 'plugins.msgpack.x'"),
    ({"plugins": {"crypto": {"encrypt": ["*"]}}}, "plugins.crypto.keys is missing"),
    ({"plugins": {"crypto": {"keys": 5}}}, "plugins.crypto.keys must be a list of names, not this number"),
]


@pytest.mark.parametrize(("given", "message"), WRONG, ids=[message for _, message in WRONG])
def test_an_engine_does_not_start_with_settings_that_are_wrong(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Client(Config.load(url="postgresql:///nowhere", env={}, **given))

    assert message in str(caught.value)


def test_a_variable_that_is_no_plugins_is_an_error_of_the_engine_that_names_it() -> None:
    config = Config.load(url="postgresql:///nowhere", env={"PGQRS_PLUGINS_ZTSD_LEVEL": "3"})

    with pytest.raises(ConfigurationError, match="environment variable PGQRS_PLUGINS_ZTSD_LEVEL: 'ztsd_level' is no"):
        Client(config)


def test_the_settings_of_a_blocked_plugin_are_left_alone() -> None:
    config = Config.load(url="postgresql:///nowhere", env={}, blocked=["zstd"], plugins={"zstd": {"what": "ever"}})

    with Client(config) as client:
        assert "zstd" not in client.engine.plugins.hooks.codecs.names


@pytest.mark.parametrize(
    ("module", "name", "settings", "extra"),
    [
        (zstd, "zstd", {"queues": ["*"]}, "zstd"),
        (crypto, "crypto", {"keys": [f"k1:{KEY}"], "encrypt": ["*"]}, "crypto"),
    ],
)
def test_without_its_library_a_plugin_that_is_to_be_used_says_what_to_install(
    module: Any, name: str, settings: Any, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "missing", lambda library, extra: f"{library} is missing: pgqrs-py[{extra}]")

    Plugins.core().register(module, name)
    with pytest.raises(ConfigurationError, match=rf"pgqrs-py\[{extra}\]"):
        Plugins.core().register(module, name, **settings)
