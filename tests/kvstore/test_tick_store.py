"""A generation is dropped whole, however large it is and whatever of it is pending."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kvstore.storage.engine import Engine, Table
from kvstore.storage.memory import MemoryEngine
from kvstore.storage.rocksdb import RocksEngine
from kvstore.storage.tick_store import DROP_BYTES_MAX, DROP_KEYS_MAX, TickStore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SLOT, OTHER = 7, 8


@pytest.fixture(params=["memory", "rocksdb"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    opened: Engine = MemoryEngine()
    if request.param == "rocksdb":
        opened = RocksEngine(tmp_path / "db", cache_bytes=8 << 20)
    yield opened
    opened.close()


def fill(store: TickStore, slot: int, rows: int, value: bytes = b"v") -> None:
    prefix = store.prefix(slot, 0)
    for number in range(rows):
        store.write(prefix + b"%06d" % number, value)
        store.log(prefix, number + 1, b"entry")


def rows(engine: Engine, store: TickStore, slot: int) -> tuple[int, int]:
    prefix = store.prefix(slot, 0)
    engine.write(store.take())
    found = (store.scan(prefix, b"", 10_000), store.log_entries(prefix, 0))
    return len(found[0]), len(found[1])


@pytest.mark.parametrize(
    ("count", "value"),
    [
        (0, b""),
        (3, b"v"),
        (4, b"v"),
        (40, b"v"),
        (DROP_KEYS_MAX + 1, b"v"),
        (5, bytes(DROP_BYTES_MAX)),
    ],
)
@pytest.mark.parametrize("flushed", [True, False])
def test_nothing_of_it_is_left_and_nothing_else_is_gone(
    engine: Engine, count: int, value: bytes, flushed: bool
) -> None:
    store = TickStore(engine)
    fill(store, SLOT, count, value)
    fill(store, OTHER, 2)
    if flushed:
        engine.write(store.take())
    store.drop(store.prefix(SLOT, 0))
    assert store.read(store.prefix(SLOT, 0) + b"000000") is None or flushed
    assert rows(engine, store, SLOT) == (0, 0)
    assert rows(engine, store, OTHER) == (2, 2)


def test_what_was_written_in_the_same_tick_before_and_after(engine: Engine) -> None:
    store = TickStore(engine)
    prefix = store.prefix(SLOT, 0)
    fill(store, SLOT, 3)
    engine.write(store.take())
    store.write(prefix + b"more", b"v")
    store.drop(prefix)
    store.write(prefix + b"again", b"v")
    assert store.read(prefix + b"more") is None
    assert rows(engine, store, SLOT) == (1, 0)


def test_a_log_alone_that_is_pending_goes_too(engine: Engine) -> None:
    store = TickStore(engine)
    prefix = store.prefix(SLOT, 0)
    store.log(prefix, 1, b"entry")
    store.drop(prefix)
    assert rows(engine, store, SLOT) == (0, 0)


def test_a_drop_writes_nothing_before_its_tick_ends(engine: Engine) -> None:
    """Whatever belongs to the step with the drop must be in one batch with it."""
    store = TickStore(engine)
    prefix = store.prefix(SLOT, 0)
    fill(store, SLOT, 3)
    engine.write(store.take())
    store.drop(prefix)
    store.drop(store.prefix(OTHER, 1))
    assert engine.get(Table.RECORDS, prefix + b"000000") is not None
    store.set_slot(SLOT, b"row")
    engine.write(store.take())
    assert engine.get(Table.RECORDS, prefix + b"000000") is None
