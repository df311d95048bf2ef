"""What the product asks of a storage engine: an ordered byte store with three tables.

The interface is narrow on purpose. The engine in use is kept by one person and may have to be
replaced (`docs/decisions/0003-storage.md`), and the memory engine has to be a faithful twin of it.
So there are no transactions, snapshots with names, merges or value types here: bytes, batches and
order.

Durability comes in two steps. `Engine.write` makes a batch visible and hands it to the operating
system, so that it outlives a kill of the process; `Engine.sync` makes everything written before the
call outlive a power cut. What survives a crash is always a *prefix* of the batches in the order of
their writes, at least as long as the last sync covered, and never a part of a batch.

All methods are called on one thread, except `sync`, which may run on one other thread beside them.

Errors are of three kinds. `EngineError`: the engine could not do it; what is on disk may be fine.
`EngineSyncError`: what was written may not be on the disk, whatever it says later.
`EngineCorruption`: what is on disk is not what was written; rule 12 calls that a
lost disk, and nothing here repairs it.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "Batch",
    "Cursor",
    "Engine",
    "EngineCorruption",
    "EngineError",
    "EngineStats",
    "EngineSyncError",
    "Table",
]


class EngineError(Exception):
    """The engine could not do what it was asked to; the message carries its own words."""


class EngineCorruption(EngineError):
    """Stored bytes are damaged or missing: the disk counts as lost (rule 12)."""


class EngineSyncError(EngineError):
    """A sync failed: nothing that the disk says afterwards can be believed (rule 12)."""


class Table(IntEnum):
    """The three tables; each has its own key space, a batch spans them all."""

    RECORDS = 0
    """What users stored, by slot, generation and key."""

    LOG = 1
    """The slots' key logs, by slot, generation and sequence."""

    META = 2
    """A row for each slot, and the node's own few rows."""


class EngineStats(NamedTuple):
    """What an engine holds; all numbers are estimates that cost microseconds."""

    disk_bytes: int
    """Files of the tables, without the write-ahead log."""

    records_count: int
    """Keys in `Table.RECORDS`; overwritten and deleted ones count until they are compacted."""

    memtable_bytes: int
    """Written, and not yet in table files."""

    cache_bytes: int
    """Blocks, indexes and filters held in memory."""

    compaction_pending_bytes: int
    """Work that the background threads are behind with; grows when writes outrun the disk."""


class Batch(Protocol):
    """Writes that take effect together, in the order in which they were added.

    A batch is written once. A later entry for a key wins over an earlier one.
    """

    def __len__(self) -> int:
        """The number of entries; a range counts as one."""

    @property
    def size_bytes(self) -> int:
        """About what the batch adds to the write-ahead log."""

    def put(self, table: Table, key: bytes, value: bytes) -> None:
        """Set a key."""

    def delete(self, table: Table, key: bytes) -> None:
        """Remove a key; one that is absent is no error."""

    def delete_range(self, table: Table, begin: bytes, end: bytes) -> None:
        """Remove all keys with ``begin <= key < end``.

        Meant for rare, large ranges (a dropped generation). See `keyspace.drop_log` for why small,
        frequent ones are deleted key by key.
        """


class Cursor(Protocol):
    """Walks a table in key order, as it was when the cursor was made.

    It holds on to that state (files, memory) until it is closed, so it should not live for hours.
    """

    def seek(self, key: bytes) -> None:
        """Go to the first key that is not below ``key``."""

    def read(self) -> tuple[bytes, bytes] | None:
        """The key and value here, and step on; None at the end.

        Raises:
            EngineCorruption: a checksum on the way is wrong. (An end is never reported instead.)
        """

    def last_below(self, key: bytes) -> tuple[bytes, bytes] | None:
        """The pair with the highest key below ``key``, or None; `seek` before you `read` on.

        Raises:
            EngineCorruption: as `read`.
        """

    def close(self) -> None:
        """Let go of what is held; closing twice is fine."""


class Engine(Protocol):
    """An ordered byte store; every method may raise `EngineError`."""

    def get(self, table: Table, key: bytes) -> bytes | None:
        """The value of a key, or None."""

    def get_many(self, table: Table, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values of several keys, in their order."""

    def batch(self) -> Batch:
        """A new, empty batch for `write`."""

    def write(self, batch: Batch) -> None:
        """Apply a batch atomically and visibly, without waiting for the disk."""

    def sync(self) -> None:
        """Make every batch whose `write` returned before this call durable.

        May be called on another thread, one at a time, and lets Python run while it waits. After
        it raised, nothing is known about what is durable, and trying again proves nothing (the
        kernel forgets a failed page once it has told someone): the process has to end.
        """

    def scan(
        self, table: Table, begin: bytes, end: bytes, *, limit: int, size: int | None = None
    ) -> list[tuple[bytes, bytes]]:
        """The first ``limit`` pairs with ``begin <= key < end``, in key order.

        With a ``size``: no more of them once they have so many bytes, or more by the last one.
        """

    def cursor(self, table: Table, begin: bytes = b"", end: bytes | None = None) -> Cursor:
        """A cursor over ``begin <= key < end`` (None: to the last key), standing at its first key.

        Cost: a few microseconds; the memory engine copies the range.
        """

    def stats(self) -> EngineStats:
        """What the engine holds."""

    def close(self) -> None:
        """Sync, and release files and locks; closing twice is fine, any other use raises."""
