"""The text that a watch goes on from."""

from __future__ import annotations

import random
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.client.watch_tokens import Place, decode_token, encode_token
from kvstore.errors import BadRequest

sequences = st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=40)


@given(sequences, st.integers(0, 20), st.data())
def test_a_token_comes_back(positions: list[int], first: int, data: st.DataObject) -> None:
    slots = st.integers(first, first + len(positions) - 1)
    parts = data.draw(st.dictionaries(slots, st.integers(1, 1_000), max_size=3))
    place = Place("c1", 64, first, positions, parts)
    assert decode_token(encode_token(place, b"p:"), b"p:", "c1", 64) == place


@pytest.mark.parametrize(
    ("prefix", "cluster", "slots", "says"),
    [
        (b"q:", "c1", 64, "another prefix"),
        (b"p:", "c2", 64, "another cluster"),
        (b"p:", "c1", 128, "another cluster"),
    ],
)
def test_anothers_token_is_refused(prefix: bytes, cluster: str, slots: int, says: str) -> None:
    token = encode_token(Place("c1", 64, 0, [7] * 64, {}), b"p:")
    with pytest.raises(BadRequest, match=says):
        decode_token(token, prefix, cluster, slots)


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_damaged_token_is_refused(at: int, flip: int) -> None:
    token = encode_token(Place("c1", 64, 0, list(range(64)), {3: 1}), b"p:")
    raw = bytearray(urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    raw[at % len(raw)] ^= flip
    with pytest.raises(BadRequest):
        decode_token(urlsafe_b64encode(raw).decode(), b"p:", "c1", 64)


@pytest.mark.parametrize("token", ["", "x", "é", "AAAA", "A" * 100, None, 7, b"A"])
def test_what_is_no_token_is_refused(token: Any) -> None:
    with pytest.raises(BadRequest):
        decode_token(token, b"p:", "c1", 64)


@pytest.mark.parametrize(("writes", "characters"), [(2, 7_600), (600, 19_200), (1_000_000, 38_000)])
def test_a_token_of_all_slots_costs_what_is_documented(writes: int, characters: int) -> None:
    rng = random.Random(1)
    positions = [max(0, round(rng.gauss(writes, writes**0.5))) for _ in range(16_384)]
    token = encode_token(Place("c1", 16_384, 0, positions, {}), b"")
    assert len(token) < characters
    assert len(encode_token(Place("c1", 16_384, 9, [writes], {}), b"{t}")) < 64
