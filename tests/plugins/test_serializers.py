"""Every serializer that is shipped keeps the contract, and what is special about each."""

from __future__ import annotations

import collections
import dataclasses
import math
import os
import pickle
from datetime import datetime, timezone
from typing import Any, ClassVar, Generic, TypeVar

import msgspec
import pytest
from pgqrs_msgpack import MsgpackSerializer
from pgqrs_native import Client
from pgqrs_pickle import PickleSerializer
from pgqrs_pickle import plugin as pickle_plugin
from pgqrs_pydantic import PydanticSerializer

from pgqrs_core.config import Config
from pgqrs_core.errors import ConfigurationError, DecodeError, EncodeError, InvalidArgument, PayloadMismatch
from pgqrs_core.plugins import Plugins
from pgqrs_core.serializers import BytesSerializer, JsonSerializer
from pgqrs_core.testing.serializers import SerializerConformance

pydantic = pytest.importorskip("pydantic")
T = TypeVar("T")


class Mail(msgspec.Struct):
    to: str
    size: int = 0


@dataclasses.dataclass
class Note:
    text: str
    tags: list[str] = dataclasses.field(default_factory=list)


class Item(pydantic.BaseModel):  # type: ignore[misc,name-defined]
    name: str
    price: float = 0.0


class Order(pydantic.BaseModel):  # type: ignore[misc,name-defined]
    __message_type__: ClassVar[str] = "order.v2"
    number: int = pydantic.Field(alias="no")
    items: list[Item] = pydantic.Field(default_factory=list)


class Box(pydantic.BaseModel, Generic[T]):  # type: ignore[misc,name-defined]
    inner: T


ORDER = Order(no=7, items=[Item(name="x", price=1.5), Item(name="ü")])
VALUES = [None, True, 1, -1.5, "ü\0", [], {"a": [1, {"b": None}]}]


class TestJson(SerializerConformance):
    serializer = JsonSerializer()
    payloads = VALUES
    typed = ((Mail("a", 1), Mail), (Note("x", ["y"]), Note))
    misfits = (({"to": 1}, Mail), ([], Note))


class TestBytes(SerializerConformance):
    serializer = BytesSerializer()
    payloads = (b"", b"\0\xff")
    unfit = ("text", 1)
    reads_anything = True


class TestMsgpack(SerializerConformance):
    serializer = MsgpackSerializer()
    payloads = (*VALUES, b"\0\xff", {1: "a", None: 2}, math.inf, datetime(2024, 5, 1, tzinfo=timezone.utc))
    typed = ((Mail("a", 1), Mail), (Note("x", ["y"]), Note))
    misfits = (({"to": 1}, Mail), ([], Note))
    unfit = (object(), 2**70, "\ud800")


class TestPydantic(SerializerConformance):
    serializer = PydanticSerializer()
    typed = ((ORDER, Order), (Box[int](inner=1), Box[int]))
    misfits = ((ORDER, Item), (Item(name="x"), Order), (Item(name="x"), Mail))
    unfit = (object(), {"no": 1}, 5)


ALLOWED = ("builtins:complex", f"{Note.__module__}:Note")


class TestPickle(SerializerConformance):
    serializer = PickleSerializer(ALLOWED)
    payloads = (*VALUES, 1 + 2j, Note("x", ["y"]), (1, {2, 3}), frozenset([1]), b"\0", 2**100)
    typed = ((Note("x"), Note),)
    misfits = ((1 + 2j, Note),)
    unfit = (object(), lambda: 1, os.system, collections.OrderedDict(a=1), [collections.OrderedDict()])


# MessagePack


def test_msgpack_is_chosen_by_the_sender_or_by_the_queue_and_nowhere_else(pgqrs_dsn: str) -> None:
    config = Config.load(
        url=pgqrs_dsn, env={}, content_types=["fast.*=application/vnd.msgpack", "other=application/json"]
    )
    with Client(config) as client:
        client.admin.install()
        for queue in ("fast.1", "other", "plain"):
            client.admin.create_queue(queue)
            client.producer.enqueue(queue, {"a": b"x"})
        client.producer.enqueue("plain", [math.nan], content_type="application/vnd.msgpack")

        kinds = {
            queue: [one.content_type for one in client.admin.peek(queue)] for queue in ("fast.1", "other", "plain")
        }
        read = client.consumer.read("fast.1")

    assert kinds == {
        "fast.1": ["application/vnd.msgpack"],
        "other": ["application/json"],
        "plain": ["application/json", "application/vnd.msgpack"],
    }
    assert read is not None
    assert read.payload == {"a": b"x"}


def test_a_payload_in_msgpack_that_does_not_fit_names_the_field() -> None:
    serializer = MsgpackSerializer()

    with pytest.raises(PayloadMismatch) as caught:
        serializer.decode(serializer.encode({"text": "x", "tags": ["a", 5]}), Note)

    assert (caught.value.type_name, caught.value.field) == ("Note", "tags[1]")


def test_a_default_that_is_no_pair_is_a_configuration_error() -> None:
    with pytest.raises(ConfigurationError, match="must be a list of `queue=content type`, not 'msgpack'"):
        Config.load(env={}, content_types=["msgpack"])


# Pydantic


def test_models_travel_under_their_message_type_and_come_back_as_models(pgqrs_dsn: str) -> None:
    with Client(Config.load(url=pgqrs_dsn, env={})) as client:
        client.admin.install()
        client.admin.create_queue("jobs")
        client.producer.batch_enqueue("jobs", [ORDER, Item(name="x"), Box[int](inner=1)])
        orders = client.consumer.read_batch("jobs", Order, count=1)
        rest = client.consumer.read_batch("jobs")

    assert [one.payload for one in orders] == [ORDER]
    assert [one.message_type for one in (*orders, *rest)] == ["order.v2", "Item", "Box[int]"]
    assert [one.payload for one in rest] == [{"name": "x", "price": 0.0}, {"inner": 1}]


def test_models_are_read_from_plain_json_as_well(pgqrs_dsn: str) -> None:
    with Client(Config.load(url=pgqrs_dsn, env={})) as client:
        client.admin.install()
        client.admin.create_queue("jobs")
        client.producer.batch_enqueue("jobs", [{"no": "7"}, {"no": "x", "items": [{"name": 5}]}])
        found = client.consumer.read_batch("jobs", Order | Item)
        [dead] = client.admin.list_dead("jobs")

    assert [one.payload for one in found] == [Order(no=7)]
    assert dead.error["type"] == "PayloadMismatch"


def test_a_model_that_does_not_validate_names_the_field_and_no_value() -> None:
    body = b'{"no": 1, "items": [{"name": "ok"}, {"name": "x", "price": "hunter2"}]}'

    with pytest.raises(PayloadMismatch) as caught:
        PydanticSerializer().decode(body, Order)

    assert (caught.value.type_name, caught.value.field) == ("Order", "items[1].price")
    assert caught.value.__cause__ is caught.value.__context__ is None
    assert "hunter2" not in str(caught.value)


# pickle


class Evil:
    """Its pickle calls a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self._call = function, arguments

    def __reduce__(self) -> Any:
        return self._call


ran: list[str] = []


def touch(mark: str) -> str:
    ran.append(mark)
    return mark


EVIL = [
    pickle.dumps(Evil(touch, "x"), protocol=2),
    pickle.dumps(Evil(touch, "x"), protocol=5),
    pickle.dumps([1, {"a": Evil(eval, "ran.append(1)")}]),
    pickle.dumps(Evil(getattr, Note, "__init__")),
    pickle.dumps(collections.OrderedDict(a=1)),
    b"cbuiltins\neval\n(S'ran.append(1)'\ntR.",
    b"cos\nsystem\n(S'false'\ntR.",
    b"\x80\x04\x8c\x08builtins\x8c\x0ccomplex.real\x93.",
    b"Pperson\n.",
]


@pytest.mark.parametrize("body", EVIL, ids=range(len(EVIL)))
def test_a_pickle_of_anything_else_is_refused_and_nothing_of_it_runs(body: bytes) -> None:
    ran.clear()

    for serializer in (PickleSerializer(ALLOWED), PickleSerializer()):
        with pytest.raises(DecodeError):
            serializer.decode(body)

    assert ran == []


def test_a_function_on_the_list_is_refused_all_the_same() -> None:
    with pytest.raises(DecodeError, match="builtins:eval is not a class"):
        PickleSerializer(["builtins:eval"]).decode(pickle.dumps(Evil(eval, "1")))


def test_without_a_list_nothing_is_pickled_or_unpickled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgqrs_pickle.serializer._Unpickler.load", lambda self: ran.append("load"))
    ran.clear()
    serializer = PickleSerializer()

    assert not serializer.handles(Note("x"))
    with pytest.raises(EncodeError, match=r"plugins\.pickle\.classes"):
        serializer.encode(1)
    with pytest.raises(DecodeError, match=r"plugins\.pickle\.classes"):
        serializer.decode(pickle.dumps(1))
    assert ran == []


def client_with_pickle(dsn: str, **settings: Any) -> Client:
    plugins = Plugins.core()
    plugins.register(pickle_plugin, "pickle", **settings)
    return Client(Config.load(url=dsn, env={}), plugins=plugins)


def test_a_disallowed_pickle_is_dead_with_the_class_it_named(pgqrs_dsn: str) -> None:
    ran.clear()
    with client_with_pickle(pgqrs_dsn, classes=["builtins:set", *ALLOWED]) as client:
        client.admin.install()
        client.admin.create_queue("jobs")
        client.producer.enqueue("jobs", Note("fine"))
        client.producer.enqueue("jobs", 1, content_type="application/x-python-pickle")
        body = pickle.dumps(Evil(touch, "x"))
        with client.engine.transaction() as connection:
            connection.execute("update pgqrs.q_jobs set body = %s where message_id = 2", [body])  # type: ignore[attr-defined]
        found = client.consumer.read_batch("jobs")
        [dead] = client.admin.list_dead("jobs")

    assert [one.payload for one in found] == [Note("fine")]
    assert ran == []
    assert f"class {touch.__module__}:touch is not allowed" in dead.error["message"]


def test_pickle_may_be_limited_to_some_queues(pgqrs_dsn: str) -> None:
    with client_with_pickle(pgqrs_dsn, classes=ALLOWED) as everywhere:
        everywhere.admin.install()
        everywhere.admin.create_queue("jobs")
        everywhere.producer.enqueue("jobs", Note("x"))
    with client_with_pickle(pgqrs_dsn, classes=ALLOWED, queues=["safe.*"]) as client:
        client.admin.create_queue("safe.1")
        client.producer.enqueue("safe.1", Note("x"))
        with pytest.raises(InvalidArgument, match="another one in queue 'jobs'"):
            client.producer.enqueue("jobs", Note("x"))
        read = client.consumer.read("safe.1")
        assert read is not None
        assert read.payload == Note("x")
        assert client.consumer.read("jobs") is None
        [dead] = client.admin.list_dead("jobs")

    assert "not allowed in queue 'jobs'" in dead.error["message"]


def test_a_class_that_is_not_named_exactly_is_a_configuration_error() -> None:
    with pytest.raises(
        ConfigurationError, match=r"plugins.pickle.classes must hold classes as `module:name`, not 'os'"
    ):
        Plugins.core().register(pickle_plugin, "pickle", classes=["os"])
