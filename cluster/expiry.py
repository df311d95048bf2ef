"""Expired keys that nobody reads are removed in the background, at a bounded rate: rule 7.

A cursor goes round all slots of the node, a stretch of records at each tick, and looks into those
that this node serves. What is over by this node's clock is deleted as a read would delete it: by an
operation of the slot that every replica applies. The keys of one slot that are found in one tick
share one operation, so that they do not wear out the key log (rule 5). Redis samples for the same
purpose; a cursor meets every key, and needs to know of none beforehand.

Slots, records and bytes of a tick are bounded (`cluster.limits`), so a tick stays short, however
much has expired. Where a whole round met no record with an expiry, over or not, the walk slows down
to a stretch a second until it meets one: a store without expiries pays next to nothing.

Nothing of this is durable and nothing depends on it: what is passed over, because its slot changes
hands or has enough to do, is met in the next round.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from cluster.limits import (
    EXPIRY_SLOT_IN_FLIGHT_MAX,
    EXPIRY_TICK_BYTES_MAX,
    EXPIRY_TICK_KEYS_MAX,
    EXPIRY_TICK_SLOT_COUNT_MAX,
)
from cluster.primary import delete_expired
from cluster.records import expires_at_ms, is_expired
from cluster.slot import Primary
from cluster.store import Damage, walk

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cluster.slot import Context, Slot

QUIET_INTERVAL_MS = 1_000
"""Between two stretches where the round before met no expiry: a twentieth of the ticks."""


class Expiry:
    """The walk over one node's slots.

    Args:
        slots: By number, None where nothing is held.
    """

    def __init__(self, slots: Sequence[Slot | None]) -> None:
        self._slots = slots
        self._number = 0
        """The slot where the walk stands ..."""
        self._begin = b""
        """... and where in it."""
        self._met = self._met_before = False
        """Whether this round and the one before met a record with an expiry, over or not."""
        self._due_ms = 0

    def tick(self, ctx: Context) -> None:
        """Walk on by a stretch, at most to the end of the round (R7)."""
        if ctx.now_ms < self._due_ms:
            return
        rows, size = EXPIRY_TICK_KEYS_MAX, EXPIRY_TICK_BYTES_MAX
        for _ in range(EXPIRY_TICK_SLOT_COUNT_MAX):
            slot = self._slots[self._number]
            if slot is not None:
                with suppress(Damage):  # for the scrub to mend; the next round sees what is behind
                    rows, size = self._walk(slot, rows, size, ctx)
                if rows <= 0 or size <= 0:
                    break
            self._number, self._begin = self._number + 1, b""
            if self._number == len(self._slots):
                self._number = 0
                self._met_before, self._met = self._met, False
                break
        quiet = not (self._met or self._met_before)
        self._due_ms = ctx.now_ms + (QUIET_INTERVAL_MS if quiet else 0)

    def _walk(self, slot: Slot, rows: int, size: int, ctx: Context) -> tuple[int, int]:
        """From the cursor to the slot's end, or until ``rows`` or bytes are used up; what is left.

        A slot that this node does not serve, or is about to hand over, is passed over; so is one
        that has more in flight than it should: it is overloaded, or without a quorum.
        """
        primary = slot.role
        if (
            not isinstance(primary, Primary)
            or not primary.serving
            or primary.handing_to is not None
            or slot.sequence - primary.committed >= EXPIRY_SLOT_IN_FLIGHT_MAX
        ):
            return rows, size
        expired: list[bytes] = []
        for key, record in walk(ctx.store, slot.prefix, self._begin, rows):
            if expires_at_ms(record):
                self._met = True
                if is_expired(record, ctx.unix_ms):
                    expired.append(key)
            rows -= 1
            size -= len(key) + len(record)
            if rows <= 0 or size <= 0:
                self._begin = key + b"\0"
                break
        if expired:
            delete_expired(slot, primary, expired, ctx)
        return rows, size
