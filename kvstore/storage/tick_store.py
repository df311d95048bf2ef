"""One tick's transaction over the engine: what `cluster.store.Store` asks for.

Writes are collected in one engine batch, in order, and the node writes that batch once at the end
of the tick. Reads look at what the tick has written before they ask the engine. A scan looks at the
engine alone, so what is pending is written first; the core scans before it changes anything, so no
atomic step is ever cut in two by that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cluster.store import Damage
from kvstore.storage import keyspace
from kvstore.storage.engine import EngineCorruption, Table

if TYPE_CHECKING:
    from kvstore.storage.engine import Batch, Engine

DROP_KEYS_MAX = 1_024
DROP_BYTES_MAX = 262_144
"""A generation of more is dropped with a range: to read its keys would cost more than that."""

LOG_FEW = 4
"""Entries of a key log that are read one by one."""

_MISSING = object()

_RECORDS: Final = Table.RECORDS
_LOG: Final = Table.LOG
"""Looked up once: for each key of a batch a member of an enumeration costs as much as the call."""


class TickStore:
    """See `cluster.store.Store`; `take` ends the tick."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._batch = engine.batch()
        self._records: dict[bytes, bytes | None] = {}
        self._logged: set[bytes] = set()
        """Prefixes with log entries that are in the batch."""

    def prefix(self, slot: int, generation: int) -> bytes:
        """Six bytes: slot and generation."""
        return keyspace.record_prefix(slot, generation)

    def read(self, record_key: bytes) -> bytes | None:
        """The record as of everything written so far, this tick included."""
        if self._records:
            pending = self._records.get(record_key, _MISSING)
            if pending is not _MISSING:
                return pending  # type: ignore[return-value]
        try:
            return self._engine.get(_RECORDS, record_key)
        except EngineCorruption as error:
            raise Damage(str(error)) from error

    def write(self, record_key: bytes, record: bytes | None) -> None:
        """Put or remove a record."""
        self._records[record_key] = record
        if record is None:
            self._batch.delete(_RECORDS, record_key)
        else:
            self._batch.put(_RECORDS, record_key, record)

    def scan(
        self, prefix: bytes, begin: bytes, limit: int, size: int | None = None
    ) -> list[tuple[bytes, bytes]]:
        """User keys and records in order from ``begin`` on."""
        self.flush()
        end = keyspace.prefix_end(prefix)
        rows = self._scan(Table.RECORDS, prefix + begin, end, limit, size)
        cut = len(prefix)
        return [(key[cut:], record) for key, record in rows]

    def log(self, prefix: bytes, sequence: int, entry: bytes) -> None:
        """Put a key-log entry."""
        self._logged.add(prefix)
        self._batch.put(_LOG, prefix + sequence.to_bytes(8, "big"), entry)

    def log_entries(self, prefix: bytes, above: int) -> list[tuple[int, bytes]]:
        """Entries above a sequence, in order.

        A few are read one by one: a log has no holes, and an iterator costs as much as several of
        them, where many were deleted before it ten times as much.
        """
        self.flush()
        few = self._few_entries(prefix, above)
        if few is not None:
            return few
        begin = prefix + (above + 1).to_bytes(8, "big")
        end = keyspace.prefix_end(prefix)
        rows = self._scan(Table.LOG, begin, end, _LOG_ROWS_MAX)
        return [(int.from_bytes(key[-8:], "big"), entry) for key, entry in rows]

    def _few_entries(self, prefix: bytes, above: int) -> list[tuple[int, bytes]] | None:
        """All of them; None if there are many, or none at once: the log may begin later."""
        found: list[tuple[int, bytes]] = []
        for sequence in range(above + 1, above + 2 + LOG_FEW):
            try:
                entry = self._engine.get(_LOG, prefix + sequence.to_bytes(8, "big"))
            except EngineCorruption as error:
                raise Damage(str(error)) from error
            if entry is None:
                return found or None
            found.append((sequence, entry))
        return None

    def _scan(
        self, table: Table, begin: bytes, end: bytes, limit: int, size: int | None = None
    ) -> list[tuple[bytes, bytes]]:
        try:
            return self._engine.scan(table, begin, end, limit=limit, size=size)
        except EngineCorruption as error:
            raise Damage(str(error)) from error

    def drop_log(self, prefix: bytes, first: int, end: int) -> None:
        """Remove entries, one by one: see `keyspace` for why."""
        for sequence in range(first, end):
            self._batch.delete(_LOG, prefix + sequence.to_bytes(8, "big"))

    def drop(self, prefix: bytes) -> None:
        """Remove a generation: key by key if it is small, or else with a range for each table.

        When nodes join or leave, thousands of small slots are dropped in a row, and each range that
        is pending in a write buffer costs every iterator made after the next one (RocksDB, us for
        the next scan of four records): 44 after 100 ranges, 430 after 2,000, 2,400 after 12,000.
        """
        is_pending = prefix in self._logged or any(k.startswith(prefix) for k in self._records)
        if is_pending:
            self._records = {k: v for k, v in self._records.items() if not k.startswith(prefix)}
        for table in (Table.RECORDS, Table.LOG):
            keys = None if is_pending else self._few_keys(table, prefix)
            if keys is None:
                self._batch.delete_range(table, prefix, keyspace.prefix_end(prefix))
            else:
                for key in keys:
                    self._batch.delete(table, key)

    def _few_keys(self, table: Table, prefix: bytes) -> list[bytes] | None:
        """All keys with a prefix; None if they are many, or hard to read."""
        limit, end = DROP_KEYS_MAX + 1, keyspace.prefix_end(prefix)
        try:
            rows = self._engine.scan(table, prefix, end, limit=limit, size=DROP_BYTES_MAX)
        except EngineCorruption:
            return None
        size = sum(len(key) + len(value) for key, value in rows)
        return [key for key, _ in rows] if len(rows) < limit and size < DROP_BYTES_MAX else None

    def set_slot(self, slot: int, row: bytes) -> None:
        """Put a slot's row."""
        self._batch.put(Table.META, keyspace.meta_slot_key(slot), row)

    def flush(self) -> None:
        """Make what is pending visible to scans; durable it becomes with the tick."""
        if len(self._batch):
            self._engine.write(self._batch)
            self._batch = self._engine.batch()
            self._records, self._logged = {}, set()

    @property
    def is_written(self) -> bool:
        """Whether this tick has written anything."""
        return len(self._batch) > 0

    def take(self) -> Batch:
        """The batch of this tick; the next write belongs to the next one."""
        batch, self._batch = self._batch, self._engine.batch()
        self._records, self._logged = {}, set()
        return batch


_LOG_ROWS_MAX = 1_000_000
"""More than a key log ever holds: it is read whole or from a point to its end."""
