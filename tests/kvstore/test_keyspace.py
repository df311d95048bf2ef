"""The order of the bytes is the order of the numbers, and stores of others are refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.storage import keyspace
from kvstore.storage.engine import Engine, EngineError, Table
from kvstore.storage.memory import MemoryEngine

SLOTS = st.integers(0, 65_535)
GENERATIONS = st.integers(0, 2**32 - 2)
SEQUENCES = st.integers(0, 2**64 - 1)
USER_KEYS = st.binary(max_size=6)
MEMBER = 0x1234_5678_9ABC


@given(SLOTS, GENERATIONS, USER_KEYS)
def test_record_keys_come_back(slot: int, generation: int, user_key: bytes) -> None:
    prefix = keyspace.record_prefix(slot, generation)
    assert len(prefix) == keyspace.PREFIX_BYTES
    assert keyspace.parse_record_key(prefix + user_key) == (slot, generation, user_key)
    assert keyspace.parse_prefix(prefix + user_key) == (slot, generation)


@given(SLOTS, GENERATIONS, SEQUENCES)
def test_log_keys_come_back(slot: int, generation: int, sequence: int) -> None:
    key = keyspace.log_key(keyspace.log_prefix(slot, generation), sequence)
    assert keyspace.parse_log_key(key) == (slot, generation, sequence)


@given(SLOTS)
def test_slot_rows_come_back(slot: int) -> None:
    key = keyspace.meta_slot_key(slot)
    assert keyspace.parse_meta_slot_key(key) == slot
    assert not key.startswith(keyspace.meta_node_key(""))


@given(st.tuples(SLOTS, GENERATIONS, USER_KEYS), st.tuples(SLOTS, GENERATIONS, USER_KEYS))
def test_records_are_ordered_by_slot_generation_and_key(
    low: tuple[int, int, bytes], high: tuple[int, int, bytes]
) -> None:
    low, high = sorted([low, high])
    keys = [keyspace.record_prefix(slot, gen) + key for slot, gen, key in (low, high)]
    assert keys == sorted(keys)


@given(st.lists(SEQUENCES, min_size=2), SLOTS)
def test_log_entries_are_ordered_by_sequence(sequences: list[int], slot: int) -> None:
    prefix = keyspace.log_prefix(slot, 1)
    keys = [keyspace.log_key(prefix, sequence) for sequence in sorted(sequences)]
    assert keys == sorted(keys)


@given(st.binary(min_size=1, max_size=4).filter(lambda p: p.strip(b"\xff")), st.binary(max_size=5))
def test_prefix_end_is_above_exactly_what_begins_with_the_prefix(
    prefix: bytes, other: bytes
) -> None:
    end = keyspace.prefix_end(prefix)
    assert (prefix <= other < end) == other.startswith(prefix)
    assert prefix <= prefix + other < end


@given(SLOTS, SLOTS, GENERATIONS, USER_KEYS)
def test_a_slot_range_holds_all_its_generations(
    slot: int, other: int, generation: int, user_key: bytes
) -> None:
    begin, end = keyspace.slot_range(slot)
    key = keyspace.record_prefix(other, generation) + user_key
    assert (begin <= key < end) == (slot == other)


def filled() -> MemoryEngine:
    engine = MemoryEngine()
    batch = engine.batch()
    for slot, generation in ((7, 1), (7, 2), (8, 1)):
        prefix = keyspace.record_prefix(slot, generation)
        batch.put(Table.RECORDS, prefix, b"")
        batch.put(Table.RECORDS, prefix + b"\xff\xff", b"")
        for sequence in range(1, 6):
            batch.put(Table.LOG, keyspace.log_key(prefix, sequence), b"")
    engine.write(batch)
    return engine


def generations(engine: Engine, table: Table) -> list[tuple[int, int]]:
    rows = engine.scan(table, b"", b"\xff", limit=1_000)
    return sorted({keyspace.parse_prefix(key) for key, _ in rows})


def test_dropping_a_generation_leaves_its_neighbours() -> None:
    engine = filled()
    batch = engine.batch()
    keyspace.drop_generation(batch, keyspace.record_prefix(7, 1))
    engine.write(batch)
    for table in (Table.RECORDS, Table.LOG):
        assert generations(engine, table) == [(7, 2), (8, 1)]


def test_dropping_a_part_of_a_log() -> None:
    engine = filled()
    batch = engine.batch()
    keyspace.drop_log(batch, keyspace.log_prefix(7, 2), 1, 4)
    engine.write(batch)
    rows = engine.scan(Table.LOG, *keyspace.slot_range(7), limit=100)
    left = [keyspace.parse_log_key(key) for key, _ in rows]
    assert [entry.sequence for entry in left if entry.generation == 2] == [4, 5]
    assert [entry.sequence for entry in left if entry.generation == 1] == [1, 2, 3, 4, 5]


def meta(engine: Engine) -> list[tuple[bytes, bytes]]:
    return engine.scan(Table.META, b"", b"\xff", limit=100)


def test_a_fresh_store_is_claimed_durably_and_known_again() -> None:
    engine = MemoryEngine()
    keyspace.claim_store(engine, MEMBER, fresh=True)
    engine.crash()
    keyspace.claim_store(engine, MEMBER, fresh=False)
    # The crash that comes after the store was made, and before the directory notes it.
    keyspace.claim_store(engine, MEMBER, fresh=True)
    assert engine.get(Table.META, keyspace.MEMBER_ID) == MEMBER.to_bytes(6, "big")


def test_a_newer_format_is_refused_and_left_alone() -> None:
    engine = MemoryEngine()
    keyspace.claim_store(engine, MEMBER, fresh=True)
    newer = (keyspace.FORMAT_VERSION + 1).to_bytes(2, "big")
    batch = engine.batch()
    batch.put(Table.META, keyspace.FORMAT, newer)
    engine.write(batch)
    before = meta(engine)
    with pytest.raises(keyspace.FormatError, match=r"written by a newer release.*Run that release"):
        keyspace.claim_store(engine, MEMBER, fresh=False)
    assert meta(engine) == before


def test_a_store_of_another_member_is_refused() -> None:
    engine = MemoryEngine()
    keyspace.claim_store(engine, MEMBER, fresh=True)
    before = meta(engine)
    with pytest.raises(EngineError, match=f"belongs to member {MEMBER}"):
        keyspace.claim_store(engine, MEMBER + 1, fresh=False)
    assert meta(engine) == before


@pytest.mark.parametrize("table", Table)
@pytest.mark.parametrize("fresh", [True, False])
def test_rows_without_a_format_are_no_store_of_ours(table: Table, fresh: bool) -> None:
    engine = MemoryEngine()
    batch = engine.batch()
    batch.put(table, keyspace.record_prefix(0xFFFF, 2**32 - 2), b"")
    engine.write(batch)
    with pytest.raises(keyspace.FormatError, match=table.name):
        keyspace.claim_store(engine, MEMBER, fresh=fresh)
    assert engine.get(Table.META, keyspace.FORMAT) is None


def test_an_empty_store_that_was_made_before_is_lost() -> None:
    """R16: an empty disk never founds again, nor does its member come back."""
    engine = MemoryEngine()
    with pytest.raises(keyspace.FormatError, match="lost"):
        keyspace.claim_store(engine, MEMBER, fresh=False)
    assert meta(engine) == []
