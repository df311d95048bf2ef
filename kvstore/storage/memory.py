"""The engine without a disk: for tests, the simulator, and nodes that are only a cache.

Three sorted dictionaries, and a journal of how to undo each batch that no sync has covered. The
journal makes a crash cheap to act out: `MemoryEngine.crash` takes back the newest batches down to a
chosen one, which is exactly what a power cut may leave of a write-ahead log (a prefix, no shorter
than what was synced). A simulated sync takes time, so it can be split: note `written` when it
begins, call `sync_through` with that number when it ends.

Nothing is released by a crash except the journal: the object that survives stands for the disk, and
a restarted node opens it as it is.
"""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import TYPE_CHECKING

from sortedcontainers import SortedDict

from kvstore.storage.engine import Batch, Cursor, EngineError, EngineStats, Table

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["MemoryBatch", "MemoryCursor", "MemoryEngine"]

_Undo = list[tuple[Table, bytes, bytes | None]]


class MemoryBatch:
    """A list of entries; see `kvstore.storage.engine.Batch`."""

    __slots__ = ("entries", "size_bytes", "written")

    def __init__(self) -> None:
        self.entries: list[tuple[Table, bytes, bytes | None, bytes | None]] = []
        """``(table, key, value, None)`` to put or, without value, delete; else a range's end."""
        self.size_bytes = 0
        self.written = False

    def __len__(self) -> int:
        return len(self.entries)

    def put(self, table: Table, key: bytes, value: bytes) -> None:
        """Set a key."""
        self.entries.append((table, key, value, None))
        self.size_bytes += len(key) + len(value)

    def delete(self, table: Table, key: bytes) -> None:
        """Remove a key."""
        self.entries.append((table, key, None, None))
        self.size_bytes += len(key)

    def delete_range(self, table: Table, begin: bytes, end: bytes) -> None:
        """Remove the keys of a range."""
        assert begin <= end, "a range ends where it begins, or above"
        self.entries.append((table, begin, None, end))
        self.size_bytes += len(begin) + len(end)


class MemoryCursor:
    """Walks a copy of a range; see `kvstore.storage.engine.Cursor`."""

    __slots__ = ("_iterator", "_pairs")

    def __init__(self, pairs: SortedDict) -> None:
        self._pairs: SortedDict | None = pairs
        self._iterator = iter(pairs)

    def seek(self, key: bytes) -> None:
        """Go to the first key that is not below ``key``."""
        if self._pairs is None:
            raise EngineError("the cursor is closed")
        self._iterator = self._pairs.irange(key)

    def read(self) -> tuple[bytes, bytes] | None:
        """The key and value here, and step on; None at the end."""
        if self._pairs is None:
            raise EngineError("the cursor is closed")
        for key in self._iterator:
            return key, self._pairs[key]
        return None

    def last_below(self, key: bytes) -> tuple[bytes, bytes] | None:
        """The pair with the highest key below ``key``, or None."""
        if self._pairs is None:
            raise EngineError("the cursor is closed")
        place = self._pairs.bisect_left(key)
        return self._pairs.peekitem(place - 1) if place else None

    def close(self) -> None:
        """Let go of the copy."""
        self._pairs = None
        self._iterator = iter(())


class MemoryEngine:
    """An ordered byte store in memory; see `kvstore.storage.engine.Engine`."""

    def __init__(self) -> None:
        self._tables: tuple[SortedDict, ...] = tuple(SortedDict() for _ in Table)
        self._journal: deque[_Undo] = deque()
        self._held_bytes = 0
        self._closed = False
        self.written = 0
        """Batches written since the beginning."""

    @property
    def synced(self) -> int:
        """Batches that a crash cannot take back."""
        return self.written - len(self._journal)

    def get(self, table: Table, key: bytes) -> bytes | None:
        """The value of a key, or None."""
        value: bytes | None = self._table(table).get(key)
        return value

    def get_many(self, table: Table, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values of several keys, in their order."""
        get = self._table(table).get
        return [get(key) for key in keys]

    def batch(self) -> MemoryBatch:
        """A new, empty batch."""
        return MemoryBatch()

    def write(self, batch: Batch) -> None:
        """Apply a batch, and remember how to take it back."""
        assert isinstance(batch, MemoryBatch)
        self._check_open()
        if batch.written:
            raise EngineError("a batch is written once")
        batch.written = True
        undo: _Undo = []
        for table, key, value, range_end in batch.entries:
            if range_end is None:
                undo.append((table, key, self._set(table, key, value)))
                continue
            gone = self._tables[table].irange(key, range_end, inclusive=(True, False))
            undo.extend((table, each, self._set(table, each, None)) for each in list(gone))
        # The journal first: a sync beside us may then cover the batch, never count it twice.
        self._journal.append(undo)
        self.written += 1

    def sync(self) -> None:
        """Make every batch written so far outlive a crash."""
        self.sync_through(self.written)

    def sync_through(self, batch_count: int) -> None:
        """Make the first ``batch_count`` batches outlive a crash."""
        self._check_open()
        while self._journal and self.synced < batch_count:
            self._journal.popleft()

    def crash(self, *, keep: int = 0) -> None:
        """Lose the unsynced batches, except the ``keep`` oldest ones that reached the disk."""
        while len(self._journal) > keep:
            for table, key, value in reversed(self._journal.pop()):
                self._set(table, key, value)
            self.written -= 1
        self._journal.clear()
        self._closed = False

    def scan(
        self, table: Table, begin: bytes, end: bytes, *, limit: int, size: int | None = None
    ) -> list[tuple[bytes, bytes]]:
        """The first pairs of a range, in key order."""
        rows = self._table(table)
        if begin >= end:
            return []
        found: list[tuple[bytes, bytes]] = []
        left = size
        for key in islice(rows.irange(begin, end, inclusive=(True, False)), limit):
            if left is not None:
                if left <= 0:
                    break
                left -= len(key) + len(rows[key])
            found.append((key, rows[key]))
        return found

    def cursor(self, table: Table, begin: bytes = b"", end: bytes | None = None) -> Cursor:
        """A cursor over a copy of a range."""
        rows = self._table(table)
        if end is not None and begin >= end:
            return MemoryCursor(SortedDict())
        keys = rows.irange(begin, end, inclusive=(True, False))
        return MemoryCursor(SortedDict((key, rows[key]) for key in keys))

    def stats(self) -> EngineStats:
        """What the engine holds: keys and values, without what Python adds to them."""
        self._check_open()
        return EngineStats(0, len(self._tables[Table.RECORDS]), self._held_bytes, 0, 0)

    def close(self) -> None:
        """Sync; any later use raises."""
        if not self._closed:
            self.sync()
            self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise EngineError("the store is closed")

    def _table(self, table: Table) -> SortedDict:
        self._check_open()
        return self._tables[table]

    def _set(self, table: Table, key: bytes, value: bytes | None) -> bytes | None:
        """Put or remove (None) a key; what it was before is returned."""
        rows = self._tables[table]
        old: bytes | None = rows.pop(key, None) if value is None else rows.get(key)
        if old is not None:
            self._held_bytes -= len(key) + len(old)
        if value is not None:
            rows[key] = value
            self._held_bytes += len(key) + len(value)
        return old
