"""Where everything lies: the layout of keys in the three tables.

::

    RECORDS   slot u16 | generation u32 | user key          -> record
    LOG       slot u16 | generation u32 | sequence u64      -> key-log entry
    META      "n" name                                      -> the node's own rows
    META      "s" slot u16                                  -> a slot's row

Numbers are big-endian, so that the order of the bytes is the order of the numbers: a slot's records
are one contiguous run in the order of their user keys, its log one in the order of sequences. A
*prefix* is the first six bytes of the upper two. A slot's whole content is replaced by writing into
a new generation, switching, and dropping the old prefix (rule 11).

META also says in which format the store is and whose it is; one of a newer release or of another
member is refused and left alone.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, NamedTuple

from cluster.limits import NODE_ID_BITS
from kvstore.storage.engine import EngineError, Table

if TYPE_CHECKING:
    from cluster.ballot import NodeId
    from kvstore.storage.engine import Batch, Engine

__all__ = [
    "CLUSTER_ID",
    "FORMAT",
    "FORMAT_VERSION",
    "MEMBER_ID",
    "PREFIX_BYTES",
    "TOPOLOGY",
    "FormatError",
    "LogKey",
    "RecordKey",
    "claim_store",
    "drop_generation",
    "drop_log",
    "log_key",
    "log_prefix",
    "log_sequence",
    "meta_node_key",
    "meta_slot_key",
    "parse_log_key",
    "parse_meta_slot_key",
    "parse_prefix",
    "parse_record_key",
    "prefix_end",
    "record_prefix",
    "slot_range",
]

FORMAT_VERSION = 2
"""Raised when a build writes what the one before cannot read."""

_PREFIX = Struct(">HI")
_SLOT = Struct(">H")
_SEQUENCE = Struct(">Q")

PREFIX_BYTES = _PREFIX.size
"""Length of a prefix; the user key begins there."""

_SLOT_MAX = 0xFFFF

_ABOVE_ALL = b"\xff" * PREFIX_BYTES
"""Above every key of every table: generations never get that far."""

_NODE_ROW = b"n"
_SLOT_ROW = b"s"


class FormatError(EngineError):
    """The store is not one that this member, in this release, can use; nothing was changed."""


class RecordKey(NamedTuple):
    """A key of `Table.RECORDS`, taken apart."""

    slot: int
    generation: int
    user_key: bytes


class LogKey(NamedTuple):
    """A key of `Table.LOG`, taken apart."""

    slot: int
    generation: int
    sequence: int


def record_prefix(slot: int, generation: int) -> bytes:
    """What all records of a slot's generation begin with; a record's key is this plus the user key.

    >>> (record_prefix(7, 1) + b"user").hex(" ", 2)
    '0007 0000 0001 7573 6572'
    """
    return _PREFIX.pack(slot, generation)


log_prefix = record_prefix
"""What all log entries of a slot's generation begin with: the same six bytes, in another table."""


def log_key(prefix: bytes, sequence: int) -> bytes:
    """The key of a key-log entry.

    >>> log_key(log_prefix(7, 1), 258).hex(" ", 2)
    '0007 0000 0001 0000 0000 0000 0102'
    """
    return prefix + _SEQUENCE.pack(sequence)


def meta_node_key(name: str) -> bytes:
    """The key of one of the node's own rows.

    >>> meta_node_key("format")
    b'nformat'
    """
    return _NODE_ROW + name.encode()


def meta_slot_key(slot: int) -> bytes:
    r"""The key of a slot's row.

    >>> meta_slot_key(258)
    b's\x01\x02'
    """
    return _SLOT_ROW + _SLOT.pack(slot)


FORMAT = meta_node_key("format")
CLUSTER_ID = meta_node_key("cluster")
MEMBER_ID = meta_node_key("member")
TOPOLOGY = meta_node_key("topology")


def parse_prefix(key: bytes) -> tuple[int, int]:
    """Slot and generation of a prefix, or of any key that begins with one."""
    slot, generation = _PREFIX.unpack_from(key)
    return slot, generation


def parse_record_key(key: bytes) -> RecordKey:
    """Take a key of `Table.RECORDS` apart."""
    slot, generation = _PREFIX.unpack_from(key)
    return RecordKey(slot, generation, key[PREFIX_BYTES:])


def parse_log_key(key: bytes) -> LogKey:
    """Take a key of `Table.LOG` apart."""
    assert len(key) == PREFIX_BYTES + _SEQUENCE.size
    return LogKey(*_PREFIX.unpack_from(key), *_SEQUENCE.unpack_from(key, PREFIX_BYTES))


def log_sequence(key: bytes) -> int:
    """The sequence alone, for who reads thousands of keys."""
    return int.from_bytes(key[PREFIX_BYTES:], "big")


def parse_meta_slot_key(key: bytes) -> int:
    """The slot of a slot row's key."""
    assert key.startswith(_SLOT_ROW)
    assert len(key) == len(_SLOT_ROW) + _SLOT.size
    slot: int = _SLOT.unpack_from(key, len(_SLOT_ROW))[0]
    return slot


def prefix_end(prefix: bytes) -> bytes:
    r"""The lowest key above everything that begins with ``prefix``.

    >>> prefix_end(b"ab"), prefix_end(b"a\xff")
    (b'ac', b'b')
    """
    kept = prefix.rstrip(b"\xff")
    assert kept, "nothing is above a prefix of 0xff bytes only, and no table has such keys"
    return kept[:-1] + bytes([kept[-1] + 1])


def slot_range(slot: int) -> tuple[bytes, bytes]:
    """Begin and end of all generations of a slot, in `Table.RECORDS` and `Table.LOG`."""
    end = _ABOVE_ALL if slot == _SLOT_MAX else _SLOT.pack(slot + 1)
    return _SLOT.pack(slot), end


def drop_generation(batch: Batch, prefix: bytes) -> None:
    """Remove a generation, its records and its key log, with one range each."""
    end = prefix_end(prefix)
    batch.delete_range(Table.RECORDS, prefix, end)
    batch.delete_range(Table.LOG, prefix, end)


def drop_log(batch: Batch, prefix: bytes, first: int, end: int) -> None:
    """Remove the key-log entries with ``first <= sequence < end``, key by key.

    Single deletes, in steps, and not a range each: 16,384 slots, 6.5 million entries of 60 bytes,
    256 kept in each slot, dropped 64 at a time (RocksDB, us; "after a drop" is the first read that
    follows one, which has to sort all range tombstones of the write buffer anew):

    =====================  =======  ===  ==========  ============
    dropped by             a write  get  whole slot  after a drop
    =====================  =======  ===  ==========  ============
    a range from zero        4.9    12      311          1,353
    a range of 64            4.1     9      116            532
    64 single deletes        3.7     4      254              2
    one with each write      5.0     8      200              5
    =====================  =======  ===  ==========  ============

    A reader who begins at the oldest sequence that is still there steps over no tombstones.
    """
    for sequence in range(first, end):
        batch.delete(Table.LOG, prefix + _SEQUENCE.pack(sequence))


def claim_store(engine: Engine, member: NodeId, *, fresh: bool) -> None:
    """Check that the store is this member's and readable, or make an empty one so, durably.

    Args:
        engine: the store, just opened.
        member: the member id that its disk carries (`kvstore.storage.datadir`).
        fresh: whether it may be empty. A store that was made before and is empty now has lost its
            content, and its member must not come back under the same id (rules 12 and 16).

    Raises:
        FormatError: the store is of another release, of another member, or lost; it is as it was.
    """
    row = engine.get(Table.META, FORMAT)
    if row is None:
        _claim_empty(engine, member, fresh=fresh)
        return
    found = int.from_bytes(row, "big")
    if found != FORMAT_VERSION:
        age = "newer" if found > FORMAT_VERSION else "older"
        raise FormatError(
            f"the store has format {found}, this release knows format {FORMAT_VERSION}: it was"
            f" written by a {age} release. Run that release on it; nothing was changed"
        )
    owner = int.from_bytes(engine.get(Table.META, MEMBER_ID) or b"", "big")
    if owner != member:
        raise FormatError(
            f"the store belongs to member {owner}, its directory to member {member}: files of two"
            " nodes were mixed. Put them back as they were; nothing was changed"
        )


def _claim_empty(engine: Engine, member: NodeId, *, fresh: bool) -> None:
    occupied = [table.name for table in Table if engine.scan(table, b"", _ABOVE_ALL, limit=1)]
    if occupied or not fresh:
        what = f"has rows in {', '.join(occupied)} but no format" if occupied else "is empty"
        raise FormatError(
            f"the store {what}, although it was made before: its content is lost. Treat this disk"
            " as lost: remove the data directory and start again; the node comes back as a new,"
            " empty member. Nothing was changed"
        )
    batch = engine.batch()
    batch.put(Table.META, FORMAT, FORMAT_VERSION.to_bytes(2, "big"))
    batch.put(Table.META, MEMBER_ID, member.to_bytes(NODE_ID_BITS // 8, "big"))
    engine.write(batch)
    engine.sync()
