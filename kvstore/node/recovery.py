"""What a node finds on its disk when it starts, and what founding writes there (rules 12, 16, 17).

Its row of the topology is the newest that it knows. That it is there at all says that this disk was
founded or has joined, so that it never founds again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cluster.slot import SlotRow, decode_row
from cluster.system_slot import TOPOLOGY_KEY, founding_record, voters
from cluster.topology import Topology, decode_topology, encode_topology
from kvstore.storage import keyspace
from kvstore.storage.engine import Table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cluster.ballot import NodeId
    from kvstore.storage.engine import Engine
    from kvstore.storage.group_commit import Commit
    from kvstore.storage.tick_store import TickStore


def stored_topology(engine: Engine) -> Topology | None:
    """The newest document that this disk has, if any.

    Raises:
        TopologyError: it has one that cannot be read.
    """
    row = engine.get(Table.META, keyspace.TOPOLOGY)
    return decode_topology(row) if row is not None else None


def stored_slots(engine: Engine) -> Iterator[tuple[int, SlotRow, int]]:
    """Each slot with its row and the newest sequence of its key log."""
    begin = keyspace.meta_slot_key(0)
    rows = engine.scan(Table.META, begin, keyspace.prefix_end(begin[:1]), limit=1 << 17)
    log = engine.cursor(Table.LOG)  # one for all slots: to make one takes longer than to use it
    decoded: dict[bytes, SlotRow] = {}  # thousands of slots share a few
    for key, raw in rows:
        number, row = keyspace.parse_meta_slot_key(key), decoded.get(raw)
        if row is None:
            row = decoded[raw] = decode_row(raw)
        prefix = keyspace.log_prefix(number, row.generation)
        newest = log.last_below(keyspace.prefix_end(prefix))
        sequence = 0
        if newest is not None and newest[0].startswith(prefix):
            sequence = keyspace.log_sequence(newest[0])
        yield number, row, sequence
    log.close()


def store_founding(engine: Engine, store: TickStore, topology: Topology, me: NodeId) -> None:
    """Make the document and the slots' first rows durable in one atomic batch (R16)."""
    if me in voters(topology):
        prefix = store.prefix(topology.system_slot, 0)
        store.write(prefix + TOPOLOGY_KEY, founding_record(topology))
    batch = store.take()
    batch.put(Table.META, keyspace.TOPOLOGY, encode_topology(topology))
    engine.write(batch)
    engine.sync()


def store_arrival(engine: Engine, topology: Topology) -> None:
    """Make a cluster's topology durable on a disk that has just been taken in."""
    batch = engine.batch()
    batch.put(Table.META, keyspace.TOPOLOGY, encode_topology(topology))
    engine.write(batch)
    engine.sync()


def store_topology(engine: Engine, commit: Commit, topology: Topology) -> None:
    """Make a newer document durable with the next group; nothing waits for it."""
    batch = engine.batch()
    batch.put(Table.META, keyspace.TOPOLOGY, encode_topology(topology))
    commit.write(batch, lambda: None)
