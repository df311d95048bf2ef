"""What the core asks of storage.

The node hands in an implementation over its engine; the simulator one over a dictionary. All writes
of a tick are one atomic batch, and reads see the writes of the same tick. Nothing here is durable
before the node says so: what must wait for that goes into `Outputs.after_fsync`.

A *prefix* (bytes) stands for one generation of one slot: its records and its key log. Whoever
replaces a slot's whole content writes into a new generation and drops the old one, all in one batch
(rule 11).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from cluster.records import is_intact

if TYPE_CHECKING:
    from collections.abc import Iterator

Prefix = bytes

WALK_ROWS_MIN = 32
WALK_BYTES = 262_144
"""A step of `walk` aims at this many bytes, by what the records before weighed."""


class Damage(Exception):
    """Stored bytes of a slot are not what was written (R18): unreadable, or a failed checksum.

    Attributes:
        key: The user key where it was met; empty where that is not known.
    """

    def __init__(self, detail: str, key: bytes = b"") -> None:
        super().__init__(detail)
        self.key = key


def check_intact(key: bytes, record: bytes) -> None:
    """What has rotted is neither served nor passed on (R18).

    Raises:
        Damage: the record of this key is there and is not what was written.
    """
    if not is_intact(record):
        raise Damage(f"the record of {key[:64]!r} fails its checksum", key)


class Store(Protocol):
    """One tick's transaction over everything that the node has stored.

    Whatever reads may raise `Damage`.
    """

    def prefix(self, slot: int, generation: int) -> Prefix:
        """The prefix of a slot's generation."""

    def read(self, record_key: bytes) -> bytes | None:
        """The record under ``prefix + key``."""

    def write(self, record_key: bytes, record: bytes | None) -> None:
        """Put the record under ``prefix + key``, or remove it (None)."""

    def scan(
        self, prefix: Prefix, begin: bytes, limit: int, size: int | None = None
    ) -> list[tuple[bytes, bytes]]:
        """Up to ``limit`` records in key order from the user key ``begin`` on (inclusive).

        With a ``size``: no more of them once they have so many bytes, prefixes counted too.
        """

    def log(self, prefix: Prefix, sequence: int, entry: bytes) -> None:
        """Put a key-log entry."""

    def log_entries(self, prefix: Prefix, above: int) -> list[tuple[int, bytes]]:
        """The key log's entries with a sequence over ``above``, in order."""

    def drop_log(self, prefix: Prefix, first: int, end: int) -> None:
        """Remove the entries with ``first <= sequence < end``."""

    def drop(self, prefix: Prefix) -> None:
        """Remove a generation: records and key log."""

    def set_slot(self, slot: int, row: bytes) -> None:
        """Put a slot's own row (`cluster.slot.SlotRow`)."""


def walk(
    store: Store, prefix: Prefix, begin: bytes, rows_max: int
) -> Iterator[tuple[bytes, bytes]]:
    """Records in key order from the user key ``begin`` on, as many as the caller takes.

    They are read in steps of up to ``rows_max``, so that memory is bounded however large they are;
    the caller stops before it writes.
    """
    limit = min(WALK_ROWS_MIN, rows_max)
    while rows := store.scan(prefix, begin, limit):
        yield from rows
        if len(rows) < limit:
            return
        begin = rows[-1][0] + b"\0"
        size = sum(len(key) + len(record) for key, record in rows)
        limit = min(rows_max, max(WALK_ROWS_MIN, min(4 * limit, WALK_BYTES * limit // size)))
