from __future__ import annotations

import re
from collections import Counter

import mmh3
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cluster.limits import SLOT_COUNT_DEFAULT, SLOT_COUNT_MAX
from cluster.slots import slot_of

KEYS = st.lists(st.sampled_from([b"{", b"}", b"a", b"\xff", b""]), max_size=8).map(b"".join)


def plain_slot_of(key: bytes, count: int) -> int:
    """The rule word by word, with another of the library's functions."""
    tag = re.match(rb"[^{]*\{([^}]+)\}", key, re.DOTALL)
    return mmh3.hash(tag.group(1) if tag else key, seed=0, signed=False) % count


@pytest.mark.parametrize(
    ("key", "slot"),
    [
        # Computed once and never to change: data on disk lies where these numbers say.
        (b"a", 10674),
        (b"hello", 14919),
        ("Zürich".encode(), 6481),
        (b"{cart:7}total", 14472),
        (b"cart:7", 14472),
        (bytes(4096), 3026),
    ],
)
def test_slots_of_known_keys(key: bytes, slot: int) -> None:
    assert slot_of(key) == slot


def test_hash_is_the_published_murmur3_32() -> None:
    # Vectors of Appleby's MurmurHash3_x86_32, seed 0.
    assert slot_of(b"", 2**32) == 0
    assert slot_of(b"hello", 2**32) == 0x248BFA47
    assert slot_of(b"The quick brown fox jumps over the lazy dog", 2**32) == 0x2E4FF723


@pytest.mark.parametrize(
    ("key", "hashed"),
    [
        (b"{user:1}.name", b"user:1"),
        (b"a{user:1}b{user:2}", b"user:1"),
        (b"foo{{bar}}zap", b"{bar"),
        (b"foo}{bar}", b"bar"),
        (b"{}whole", b"{}whole"),
        (b"{}{tag}", b"{}{tag}"),
        (b"{open", b"{open"),
        (b"}close{", b"}close{"),
    ],
)
def test_only_the_tag_is_hashed(key: bytes, hashed: bytes) -> None:
    assert slot_of(key, 2**32) == mmh3.hash(hashed, signed=False)


@given(KEYS, st.sampled_from([1, 2, SLOT_COUNT_DEFAULT, SLOT_COUNT_MAX]))
@example(b"{\n}a", 2)
def test_same_as_the_rule_word_by_word(key: bytes, count: int) -> None:
    slot = slot_of(key, count)
    assert slot == plain_slot_of(key, count)
    assert 0 <= slot < count


def test_slots_are_even_for_keys_that_differ_little() -> None:
    per_slot = Counter(slot_of(b"city:%d" % number, 64) for number in range(64_000))
    assert len(per_slot) == 64
    assert max(per_slot.values()) < 1_150  # 1,000 expected, standard deviation 31
