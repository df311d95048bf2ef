"""What a node finds on its disk when it starts, and what founding writes there (rules 12, 16)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cluster.slot import SlotRow, decode_row
from cluster.topology import Topology, decode_topology, encode_topology
from kvstore.storage import keyspace
from kvstore.storage.engine import Table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kvstore.storage.engine import Engine
    from kvstore.storage.tick_store import TickStore


def stored_topology(engine: Engine) -> Topology | None:
    """The founding document, if this disk has one.

    Raises:
        TopologyError: it has one that cannot be read.
    """
    row = engine.get(Table.META, keyspace.FOUNDING_DOCUMENT)
    return decode_topology(row) if row is not None else None


def stored_slots(engine: Engine) -> Iterator[tuple[int, SlotRow, int]]:
    """Each slot with its row and the newest sequence of its key log."""
    begin = keyspace.meta_slot_key(0)
    rows = engine.scan(Table.META, begin, keyspace.prefix_end(begin[:1]), limit=1 << 17)
    for key, raw in rows:
        number, row = keyspace.parse_meta_slot_key(key), decode_row(raw)
        prefix = keyspace.record_prefix(number, row.generation)
        newest = engine.last(Table.LOG, prefix, keyspace.prefix_end(prefix))
        yield number, row, 0 if newest is None else keyspace.parse_log_key(newest[0]).sequence


def store_founding(engine: Engine, store: TickStore, topology: Topology) -> None:
    """Make the document and the slots' first rows durable in one atomic batch (R16)."""
    batch = store.take()
    batch.put(Table.META, keyspace.FOUNDING_DOCUMENT, encode_topology(topology))
    engine.write(batch)
    engine.sync()
