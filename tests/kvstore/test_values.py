from __future__ import annotations

import enum
from collections import OrderedDict
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.ballot import Ballot
from cluster.limits import KEY_BYTES_MAX, VALUE_BYTES_MAX, VALUE_DEPTH_MAX, VALUE_ITEMS_MAX
from cluster.records import pack_version
from kvstore.errors import BadRequest, CorruptValue, ValueTooLarge
from kvstore.values import (
    check_key,
    pack_value,
    unpack_value,
    version_from_text,
    version_to_text,
)

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | st.binary(max_size=20)
    | st.datetimes(timezones=st.just(UTC))
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(SCALARS, inner, max_size=5),
    max_leaves=20,
)


def types_of(value: Any) -> Any:
    if isinstance(value, list):
        return [types_of(child) for child in value]
    if isinstance(value, dict):
        return [(type(key), types_of(child)) for key, child in value.items()]
    return type(value)


@given(VALUES)
def test_values_come_back_equal_and_of_the_same_types(value: Any) -> None:
    back = unpack_value(pack_value(value))
    assert back == value
    assert types_of(back) == types_of(value)


def test_a_datetime_comes_back_as_the_same_moment_in_utc() -> None:
    there = datetime(2024, 7, 1, 12, 0, 0, 123456, tzinfo=timezone(timedelta(hours=5, minutes=30)))
    back = unpack_value(pack_value(there))
    assert back == there
    assert back.tzinfo == UTC


class Colour(enum.IntEnum):
    RED = 1


class Name(str):
    __slots__ = ()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({1, 2}, "value is a set"),
        ({"a": [0, 0, 0, {1}]}, "value['a'][3] is a set"),
        ((1, 2), "value is a tuple"),
        ([1j], "value[0] is a complex"),
        (object(), "value is an object"),
        ({"at": date(2024, 1, 1)}, "value['at'] is a date"),
        ({"at": datetime(2024, 1, 1)}, "value['at'] is a datetime without time zone"),  # noqa: DTZ001
        ([2**64], "value[0] is an int beyond 64 bits"),
        ([-(2**63) - 1], "value[0] is an int beyond 64 bits"),
        ({(1, 2): 3}, "the key (1, 2) of value is a tuple"),
        (Colour.RED, "value is a Colour"),
        ([Name("n")], "value[0] is a Name"),
        (OrderedDict(a=1), "value is an OrderedDict"),
        ({"t": "\ud800"}, "value['t'] is a str with half a surrogate pair"),
    ],
)
def test_what_messagepack_lacks_is_named_with_its_place(value: Any, words: str) -> None:
    with pytest.raises(BadRequest) as caught:
        pack_value(value)
    assert words in str(caught.value)


def nested(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels - 1):
        value = [value]
    return value


def test_depth_is_limited() -> None:
    assert unpack_value(pack_value(nested(VALUE_DEPTH_MAX))) == nested(VALUE_DEPTH_MAX)
    for levels in (VALUE_DEPTH_MAX + 1, 400, 5_000):
        with pytest.raises(BadRequest, match="deeper than"):
            pack_value(nested(levels))


def test_a_value_that_holds_itself_is_refused() -> None:
    loop: list[Any] = [1]
    loop.append(loop)
    with pytest.raises(BadRequest, match="deeper than"):
        pack_value(loop)


def test_size_and_items_are_limited() -> None:
    room = VALUE_BYTES_MAX - 5
    assert len(pack_value(b"x" * room)) == VALUE_BYTES_MAX
    with pytest.raises(ValueTooLarge, match="1,048,577 bytes"):
        pack_value(b"x" * (room + 1))
    assert len(unpack_value(pack_value([0] * VALUE_ITEMS_MAX))) == VALUE_ITEMS_MAX
    with pytest.raises(BadRequest, match="items"):
        pack_value([0] * (VALUE_ITEMS_MAX + 1))


@pytest.mark.parametrize(
    "stored",
    [
        b"",
        b"\xc1",
        b"\xc0\xc0",
        b"\xa3ab",
        b"\xa2\xff\xff",
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\x91" * 5_000 + b"\xc0",
        b"\x81\x90\xc0",
        b"\xc7\x0c\xff" + b"\xff" * 12,
    ],
)
def test_broken_bytes_are_corrupt_values(stored: bytes) -> None:
    with pytest.raises(CorruptValue):
        unpack_value(stored)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_value_or_corrupt(stored: bytes) -> None:
    try:
        unpack_value(stored)
    except CorruptValue as error:
        assert str(error)  # noqa: PT017


def test_an_extension_of_another_program_is_handed_out() -> None:
    stored = b"\x91\xc7\x03\x05abc"
    (extension,) = unpack_value(stored)
    assert (extension.code, extension.data) == (5, b"abc")
    assert pack_value([extension]) == stored


def test_keys() -> None:
    assert check_key("städte:1") == "städte:1".encode()
    assert check_key(b"\xff") == b"\xff"
    assert len(check_key("k" * KEY_BYTES_MAX)) == KEY_BYTES_MAX
    bad: list[Any] = ["", b"", "k" * (KEY_BYTES_MAX + 1), "ü" * 2_049, "\ud800", 7, None]
    for key in bad:
        with pytest.raises(BadRequest, match="key"):
            check_key(key)


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**48 - 1), st.integers(0, 2**64 - 1))
def test_versions_have_one_text_each(round_: int, node: int, sequence: int) -> None:
    version = pack_version(Ballot(round_, node), sequence)
    text = version_to_text(version)
    assert version_from_text(text) == version
    assert set(text) <= set("0123456789abcdef.")


@pytest.mark.parametrize(
    "text", ["", "1.2", "1.2.3.4", "01.2.3", "1.2.3 ", "G.1.1", "123456789.1.1", "1.2.-3", None, 5]
)
def test_a_broken_version_is_refused(text: Any) -> None:
    with pytest.raises(BadRequest, match="no version"):
        version_from_text(text)
