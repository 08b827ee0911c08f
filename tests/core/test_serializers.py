"""What goes in comes out, what cannot go in is refused before anything is written."""

from __future__ import annotations

import dataclasses
import enum
import math
import uuid
from collections import deque
from datetime import date, datetime, timezone
from decimal import Decimal
from typing import Annotated, Any, ClassVar, Generic, TypedDict, TypeVar

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgqrs_core.errors import DecodeError, EncodeError, InvalidArgument, PayloadMismatch, PluginError
from pgqrs_core.serializers import (
    BytesSerializer,
    JsonSerializer,
    Serializer,
    SerializerRegistry,
    check_type,
    type_name,
)

json = JsonSerializer()
T = TypeVar("T")


class Item(msgspec.Struct):
    price: float


class Order(msgspec.Struct):
    to: str
    items: list[Item] = []
    notes: dict[str, Item] = {}


@dataclasses.dataclass
class Mail:
    to: str
    size: int = 0


class Row(TypedDict):
    id: int


class Colour(enum.Enum):
    RED = "red"


class Level(enum.Enum):
    UNKNOWN = math.nan


class Tree(msgspec.Struct):
    children: list[Tree] = []


class Plain:
    pass


@dataclasses.dataclass
class HoldsPlain:
    inner: list[Plain]


def same(left: Any, right: Any) -> bool:
    """Equality in which NaN equals NaN, and 1, 1.0 and True differ."""
    if type(left) is not type(right):
        return False
    if isinstance(left, float):
        return repr(left) == repr(right)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    return bool(left == right)


# Text without the "Cs" exclusion: lone surrogates and NUL are drawn as well.
TEXT = st.text(st.characters(exclude_categories=()))
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
    max_leaves=20,
)


@given(JSON_VALUES)
def test_every_json_value_comes_back_intact_with_nan_surrogates_and_nul(value: Any) -> None:
    assert same(json.decode(json.encode(value)), value)


@given(JSON_VALUES)
def test_a_typed_reader_gets_what_an_untyped_one_gets(value: Any) -> None:
    body = json.encode({"value": value})

    assert same(json.decode(body, dict[str, Any]), json.decode(body))


@given(st.integers(min_value=-(10**4299), max_value=10**4299))
def test_integers_of_any_size_that_python_converts_come_back(value: int) -> None:
    assert json.decode(json.encode(value)) == value


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_found_wherever_it_hides(value: float) -> None:
    class Reading(msgspec.Struct):
        value: float
        missing: str | None = None

    holders = [Reading(value), [None, {"deep": (value,)}], {1, value}, {"big": 2**70, "value": value}]

    for holder in holders:
        assert b"NaN" in json.encode(holder) or b"Infinity" in json.encode(holder)
    assert same(json.decode(json.encode(Reading(value)), Reading).value, value)
    assert b"NaN" in json.encode(Level.UNKNOWN)


def test_the_word_null_and_none_do_not_change_how_a_payload_is_written() -> None:
    payload = {"a": None, "b": "null", "ü": "é"}

    assert json.encode(payload) == '{"a":null,"b":"null","ü":"é"}'.encode()


def test_what_is_not_json_but_common_comes_back_as_the_type_that_is_asked_for() -> None:
    values = [
        (datetime(2024, 5, 1, 12, tzinfo=timezone.utc), datetime),
        (date(2024, 5, 1), date),
        (uuid.UUID(int=7), uuid.UUID),
        (Decimal("1.10"), Decimal),
        (Colour.RED, Colour),
        ({1, 2}, set[int]),
        ((1, "a"), tuple[int, str]),
        (b"\x00\xff", bytes),
        ({1: 2.5}, dict[int, float]),
        (Mail("ann", 3), Mail),
        (Order("ann", [Item(1.5)], {"a": Item(2.0)}), Order),
        ({"id": 4}, Row),
        (Tree([Tree(), Tree([Tree()])]), Tree),
        (None, None),
    ]

    for value, type_ in values:
        assert json.decode(json.encode(value), type_) == value


def test_the_same_types_survive_beside_a_nan_and_a_surrogate() -> None:
    class Reading(msgspec.Struct):
        at: datetime
        id: uuid.UUID
        by_hour: dict[int, float]
        text: str
        raw: bytes
        exact: Decimal

    reading = Reading(datetime.now(timezone.utc), uuid.uuid4(), {7: math.nan}, "\ud800\0", b"\xff", Decimal("0.1"))

    assert repr(json.decode(json.encode(reading), Reading)) == repr(reading)


def test_subclasses_of_text_and_numbers_are_written_as_what_they_are() -> None:
    class Safe(str):
        __slots__ = ()

    class Float64(float):
        pass

    class Whole(int):
        pass

    payload = [Safe("<b>"), Float64(1.5), Whole(3), deque([1])]

    assert json.decode(json.encode(payload)) == ["<b>", 1.5, 3, [1]]
    assert json.encode([Float64("nan"), None]) == b"[NaN,null]"


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def endless() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    "payload",
    [
        object(),
        Plain(),
        {None: 1},
        {True: 1},
        {(1, 2): 3},
        10**5000,
        nested(100_000),
        endless(),
        1j,
        len,
        iter([]),
    ],
    ids=lambda payload: type(payload).__name__,
)
def test_what_json_has_no_form_for_is_refused_when_it_is_encoded(payload: Any) -> None:
    with pytest.raises(EncodeError, match="application/json") as caught:
        json.encode(payload)

    assert caught.value.content_type == "application/json"


def test_a_payload_whose_own_code_fails_is_refused_like_any_other() -> None:
    class Hostile(dict[str, int]):
        def items(self) -> Any:
            raise KeyError("no")

    class Odd(str):
        __slots__ = ()

    with pytest.raises(EncodeError):
        json.encode([Hostile(a=1), Odd("\ud800"), object()])


@pytest.mark.parametrize(
    "body",
    [
        b"", b"nope", b'{"to":', b"[1,]", b"\xff", b'"\xff"', b"\xff\xfe[\x00]\x00", b"1 2",
        b"[" * 100_000, b"[" * 100_000 + b"]" * 100_000, b"1" * 5000, b"'a'",
    ],
    ids=lambda body: repr(body[:10]),
)  # fmt: skip
@pytest.mark.parametrize("type_", [Any, Order, list[int]])
def test_a_body_that_is_not_json_is_a_decode_error_and_never_a_crash(body: bytes, type_: Any) -> None:
    with pytest.raises(DecodeError) as caught:
        json.decode(body, type_)

    assert caught.value.content_type == "application/json"
    assert caught.value.reason


@pytest.mark.parametrize(
    ("body", "type_", "name", "field"),
    [
        (b"{}", Order, "Order", "to"),
        (b'{"to":1}', Order, "Order", "to"),
        (b'{"to":"a","items":[{"price":1},{"price":"x"}]}', Order, "Order", "items[1].price"),
        (b'{"to":"a","items":[{"price":1},{}]}', Order, "Order", "items[1].price"),
        (b'{"to":"a","notes":{"k":{"price":""}}}', Order, "Order", "notes[...].price"),
        (b'{"to":NaN}', Order, "Order", "to"),
        (b'{"to":"\\ud800","items":[{}]}', Order, "Order", "items[0].price"),
        (b"[]", Order, "Order", "$"),
        (b"{}", Mail, "Mail", "to"),
        (b'{"to":"a","size":1.5}', Mail, "Mail", "size"),
        (b'{"id":"x"}', Row, "Row", "id"),
        (b"[1,null]", list[int], "list[int]", "[1]"),
        (b'{"a":1}', dict[int, int], "dict[int, int]", "$"),
        (b"-5", Annotated[int, msgspec.Meta(ge=0)], str(Annotated[int, msgspec.Meta(ge=0)]), "$"),
    ],
)
def test_a_payload_that_does_not_fit_names_the_type_and_the_field(
    body: bytes, type_: Any, name: str, field: str
) -> None:
    with pytest.raises(PayloadMismatch) as caught:
        json.decode(body, type_)

    assert (caught.value.type_name, caught.value.field) == (name, field)
    assert "`$" not in caught.value.reason


def test_a_validator_that_fails_is_a_mismatch_whatever_it_raises() -> None:
    class Picky(msgspec.Struct):
        kind: str

        def __post_init__(self) -> None:
            raise {"value": ValueError, "key": KeyError}[self.kind]("must be - at `$.best`")

    for body, field in [(b'[{"kind":"value"}]', "[0]"), (b'[{"kind":"key"}]', "$")]:
        with pytest.raises(PayloadMismatch) as caught:
            json.decode(body, list[Picky])
        assert caught.value.field == field
        assert "must be" in caught.value.reason


@pytest.mark.parametrize("type_", [Plain, HoldsPlain, list[Plain], "nosuch", 3, Plain | int, deque])
def test_a_type_that_nothing_can_be_decoded_as_is_refused_before_any_message(type_: Any) -> None:
    with pytest.raises(InvalidArgument):
        check_type(type_)
    with pytest.raises(InvalidArgument):
        json.decode(b"{}", type_)


def test_types_that_can_be_decoded_pass_the_check() -> None:
    for type_ in (Any, object, Order, Mail, Row, Tree, int | None, Annotated[int, ["unhashable"]]):
        check_type(type_)
    assert json.decode(b"5", Annotated[int, ["unhashable"]]) == 5


def test_a_message_is_called_after_its_class_unless_the_class_says_otherwise() -> None:
    class Renamed(msgspec.Struct):
        __message_type__: ClassVar[str] = "mail.sent"
        to: str

    class Child(Renamed):
        pass

    class Box(msgspec.Struct, Generic[T]):
        value: T

    named = [Order, Mail, Row, Renamed, Child, Box, Box[int]]

    assert [type_name(one) for one in named] == ["Order", "Mail", "Row", "mail.sent", "Child", "Box", "Box"]
    assert {type_name(one) for one in (dict, int, str, list, Plain, datetime, dict[str, int])} == {None}


def test_bytes_are_stored_as_they_are() -> None:
    raw = BytesSerializer()

    for payload in (b"\0\xff", bytearray(b"ab"), memoryview(b"abcd")[::2]):
        body = raw.encode(payload)
        assert type(body) is bytes
        assert body == bytes(payload)
        assert raw.decode(body) == raw.decode(body, type(payload)) == payload
    with pytest.raises(EncodeError):
        raw.encode("text")
    with pytest.raises(PayloadMismatch) as caught:
        raw.decode(b"", Order)
    assert caught.value.type_name == "Order"


class Upper:
    """A serializer of somebody else's."""

    content_type = "text/upper"

    def __init__(self, takes: type = str) -> None:
        self.takes = takes

    def handles(self, payload: Any) -> bool:
        return isinstance(payload, self.takes)

    def encode(self, payload: Any) -> bytes:
        return str(payload).upper().encode()

    def decode(self, body: bytes, type_: Any = Any) -> Any:
        return body.decode()


def registry(*others: Serializer) -> SerializerRegistry:
    return SerializerRegistry([("json", json), ("json", BytesSerializer()), *(("other", one) for one in others)])


def test_others_are_asked_before_the_core_and_the_core_takes_the_rest() -> None:
    known = registry(Upper())

    assert known.encode("a") == ("text/upper", b"A")
    assert known.encode(b"a") == ("application/octet-stream", b"a")
    assert known.encode(1) == ("application/json", b"1")
    assert known.encode("a", "application/json") == ("application/json", b'"a"')
    assert registry(Upper(bytes)).encode(b"a")[0] == "text/upper"
    assert known.content_types == ("application/json", "application/octet-stream", "text/upper")


def test_decoding_goes_by_the_content_type_alone() -> None:
    known = registry(Upper())

    assert known.decode("text/upper", b"A") == "A"
    assert known.decode("application/json", b'{"to":"a"}', Mail) == Mail("a")


def test_an_unknown_content_type_is_named_with_those_that_are_known() -> None:
    with pytest.raises(DecodeError, match=r"application/x-new.*application/json, application/octet-stream"):
        registry().decode("application/x-new", b"")
    with pytest.raises(EncodeError, match=r"application/x-new.*application/json"):
        registry().encode(1, "application/x-new")
    with pytest.raises(EncodeError, match="no serializer handles int"):
        SerializerRegistry([]).encode(1)


def test_two_serializers_for_one_content_type_are_an_error_that_names_both() -> None:
    with pytest.raises(PluginError, match=r"'b'.*text/upper.*'a'.*block one"):
        SerializerRegistry([("a", Upper()), ("b", Upper())])


def test_whatever_a_foreign_serializer_raises_is_about_one_payload() -> None:
    class Broken(Upper):
        def encode(self, payload: Any) -> bytes:
            raise ZeroDivisionError("oops")

        def decode(self, body: bytes, type_: Any = Any) -> Any:
            raise ZeroDivisionError("oops")

    with pytest.raises(EncodeError, match="ZeroDivisionError: oops") as caught:
        registry(Broken()).encode("a")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    with pytest.raises(DecodeError, match="ZeroDivisionError: oops"):
        registry(Broken()).decode("text/upper", b"A")


def test_a_foreign_serializer_that_breaks_the_protocol_is_named() -> None:
    class Text(Upper):
        def encode(self, payload: Any) -> bytes:
            return "text"  # type: ignore[return-value]

    class Unsure(Upper):
        def handles(self, payload: Any) -> bool:
            raise ZeroDivisionError

    with pytest.raises(PluginError, match=r"'other'.*returned str, not bytes"):
        registry(Text()).encode("a")
    with pytest.raises(PluginError, match=r"'other'.*handles failed"):
        registry(Unsure()).encode("a")
