"""What the core asks of storage.

The node hands in an implementation over its engine; the simulator one over a dictionary. All writes
of a tick are one atomic batch, and reads see the writes of the same tick. Nothing here is durable
before the node says so: what must wait for that goes into `Outputs.after_fsync`.

A *prefix* (bytes) stands for one generation of one slot: its records and its key log. Whoever
replaces a slot's whole content writes into a new generation and drops the old one, all in one batch
(rule 11).
"""

from __future__ import annotations

from typing import Protocol

Prefix = bytes


class Store(Protocol):
    """One tick's transaction over everything that the node has stored."""

    def prefix(self, slot: int, generation: int) -> Prefix:
        """The prefix of a slot's generation."""

    def read(self, record_key: bytes) -> bytes | None:
        """The record under ``prefix + key``."""

    def write(self, record_key: bytes, record: bytes | None) -> None:
        """Put the record under ``prefix + key``, or remove it (None)."""

    def scan(self, prefix: Prefix, begin: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        """Up to ``limit`` records in key order from the user key ``begin`` on (inclusive)."""

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
