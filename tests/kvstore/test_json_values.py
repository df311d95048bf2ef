from __future__ import annotations

import json
import math
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.errors import BadRequest
from kvstore.http.conditions import parse_range, parse_tags
from kvstore.http.problems import ProblemError
from kvstore.http.targets import Query
from kvstore.json_values import dump_json, load_json
from kvstore.values import pack_value, unpack_value

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats().map(lambda number: math.nan if math.isnan(number) else number),  # nans have signs
    texts,
    st.sampled_from(["$bytes", "$map", "$float"]),
    st.binary(max_size=8),
    st.datetimes(timezones=st.just(UTC)),
    st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=4)),
)
keys = st.one_of(texts, st.sampled_from(["$bytes", "$map"]), st.integers(-5, 5), st.binary())
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=12,
)


def same(one: Any, other: Any) -> bool:
    """Equality that tells types apart and holds for nan."""
    return pack_value(one) == pack_value(other)


@given(value=values)
def test_every_value_comes_back_from_json(value: Any) -> None:
    stored = unpack_value(pack_value(value))
    assert same(load_json(dump_json(stored)), stored)


@given(
    value=st.recursive(
        st.none() | st.booleans() | st.integers(-(2**53), 2**53) | texts,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    )
)
def test_plain_json_stays_plain(value: Any) -> None:
    text = json.dumps(value).encode()
    assert json.loads(dump_json(load_json(text))) == value


def test_the_marks() -> None:
    moment = datetime(2026, 11, 23, 18, 7, 38, 5, UTC)
    assert dump_json(moment) == b'{"$datetime":"2026-11-23T18:07:38.000005Z"}'
    assert dump_json(math.inf) == b'{"$float":"inf"}'
    assert dump_json({"$bytes": 1}) == b'{"$map":[["$bytes",1]]}'
    assert load_json(b'{"$bytes": "AA==", "x": 1}') == {"$bytes": "AA==", "x": 1}
    assert load_json(b'\xef\xbb\xbf"bom"') == "bom"


@given(body=st.binary(max_size=60))
def test_any_bytes_are_a_value_or_a_clear_error(body: bytes) -> None:
    with suppress(BadRequest):
        load_json(body)


@given(text=st.text(max_size=40))
def test_any_header_text_is_understood_or_a_clear_error(text: str) -> None:
    with suppress(ProblemError):
        parse_tags("If-Match", text)
    with suppress(ProblemError):
        parse_range(text, 10)


@given(text=st.text(max_size=40))
def test_any_query_is_understood_or_a_clear_error(text: str) -> None:
    with suppress(ProblemError):
        query = Query(text, ("ttl", "limit"))
        assert 0 < query.seconds("ttl", 1.0, most=10) <= 10
        assert 1 <= query.integer("limit", 1, least=1, most=10) <= 10


@given(first=st.integers(0, 20), last=st.integers(0, 20), size=st.integers(0, 15))
def test_a_range_is_what_the_plain_reading_says(first: int, last: int, size: int) -> None:
    wanted = [at for at in range(size) if first <= at <= last]
    if wanted:
        part = parse_range(f"bytes={first}-{last}", size)
        assert part is not None
        assert list(range(size))[part] == wanted
    else:
        with pytest.raises(ProblemError, match="range-not-satisfiable"):
            parse_range(f"bytes={first}-{last}", size)
