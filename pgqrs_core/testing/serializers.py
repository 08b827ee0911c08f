"""What every serializer must do, as a class of tests: derive from it and say what is to be serialized.

::

    class TestCsv(SerializerConformance):
        serializer = Csv()
        payloads = [Rows([["a", "b"]]), Rows([])]

Under pytest each test runs by itself; nothing here imports it.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from pgqrs_core.errors import DecodeError, EncodeError, PayloadError
from pgqrs_core.hookspecs import hookimpl
from pgqrs_core.plugins import Plugins
from pgqrs_core.serializers import Serializer

__all__ = ["SerializerConformance"]

_GARBAGE = (b"", b"\0", b"\xff\xfe\xfd", b"{", b"[" * 50_000, b"\x80\x05.", b"\xc1" * 9, bytes(range(256)))


class SerializerConformance:
    """The tests. Attributes of the class say what is tested.

    Attributes:
        serializer: The one to be tested.
        payloads: Values that it serializes; each comes back equal and of the same type.
        typed: Pairs of a payload and a type that a reader may ask for; the payload comes back as it was.
        misfits: Pairs of a payload and a type that it does not fit.
        unfit: Values that it must refuse to serialize.
        reads_anything: Whether any bytes are a body of its content type.
    """

    serializer: Serializer
    payloads: Sequence[Any] = ()
    typed: Sequence[tuple[Any, Any]] = ()
    misfits: Sequence[tuple[Any, Any]] = ()
    unfit: Sequence[Any] = (object(),)
    reads_anything = False

    def test_it_is_a_serializer_with_a_content_type(self) -> None:
        """It has the four members, and a media type in lower case."""
        kind = self.serializer.content_type
        assert isinstance(self.serializer, Serializer)
        assert kind == kind.strip().lower()
        assert kind.count("/") == 1

    def test_there_is_something_to_test(self) -> None:
        """A suite without payloads would pass whatever the serializer does."""
        assert self.payloads or self.typed

    def test_what_goes_in_comes_out(self) -> None:
        """Through the registry, as messages go."""
        registry = self._plugins().serializers
        for payload in self.payloads:
            kind, body = registry.encode(payload, self.serializer.content_type)
            found = registry.decode(kind, body)
            assert (type(found), found) == (type(payload), payload)

    def test_a_reader_gets_the_type_he_asks_for(self) -> None:
        """``decode`` with a type returns it."""
        for payload, type_ in self.typed:
            found = self.serializer.decode(self.serializer.encode(payload), type_)
            assert (type(found), found) == (type(payload), payload)

    def test_bodies_are_bytes_and_the_same_each_time(self) -> None:
        """Not a bytearray, not text."""
        for payload in self._all():
            body = self.serializer.encode(payload)
            assert type(body) is bytes
            assert body == self.serializer.encode(payload)

    def test_a_payload_that_does_not_fit_is_a_payload_error(self) -> None:
        """One message is refused; nothing else is disturbed."""
        registry = self._plugins().serializers
        for payload, type_ in self.misfits:
            assert isinstance(self._error(registry.decode, *registry.encode(payload, self._kind), type_), PayloadError)

    def test_what_cannot_be_serialized_is_an_encode_error(self) -> None:
        """Nothing is written then."""
        encode = self._plugins().serializers.encode
        for payload in self.unfit:
            assert isinstance(self._error(encode, payload, self._kind), EncodeError)

    def test_garbage_is_a_decode_error_or_something(self) -> None:
        """Whatever the bytes: a payload, or the error that dead-letters one message; never another one."""
        decode = self._plugins().serializers.decode
        refused = 0
        for body in _GARBAGE:
            error = self._error(decode, self._kind, body)
            assert error is None or isinstance(error, DecodeError)
            refused += error is not None
        assert refused > 0 or self.reads_anything

    def test_asking_whether_it_handles_something_never_fails(self) -> None:
        """It is asked about every payload of everybody."""
        for payload in (None, 1, "x", b"x", [], {}, object(), type, ..., *self._all()):
            assert isinstance(self.serializer.handles(payload), bool)

    def test_threads_do_not_disturb_each_other(self) -> None:
        """One object serves all threads at once."""
        failures: list[BaseException] = []

        def work() -> None:
            try:
                for _ in range(20):
                    self.test_what_goes_in_comes_out()
                    self.test_a_reader_gets_the_type_he_asks_for()
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []

    @property
    def _kind(self) -> str:
        return self.serializer.content_type

    def _all(self) -> list[Any]:
        return [*self.payloads, *(payload for payload, _ in self.typed)]

    def _plugins(self) -> Plugins:
        """Plugins with this serializer, or the core's alone if it is one of these."""
        core = Plugins.core()
        return core if self._kind in core.serializers.content_types else _registered(core, self.serializer)

    @staticmethod
    def _error(function: Any, *arguments: Any) -> Exception | None:
        try:
            function(*arguments)
        except Exception as error:
            return error
        return None


class _Offer:
    def __init__(self, serializer: Serializer) -> None:
        self._serializer = serializer

    @hookimpl
    def pgqrs_serializers(self) -> list[Serializer]:
        return [self._serializer]


def _registered(plugins: Plugins, serializer: Serializer) -> Plugins:
    plugins.register(_Offer(serializer), "tested")
    return plugins
