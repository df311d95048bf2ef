"""What a change of the topology would move: two placements compared, nothing done.

A node that is new among a slot's owners must be brought a copy by the slot's primary, so bytes and
time follow from whom the primaries are before the change. Who only changes places among the owners
(another primary) costs two round trips and no copy.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import msgspec

from cluster.ballot import NodeId

if TYPE_CHECKING:
    from collections.abc import Sequence


class Share(msgspec.Struct, frozen=True):
    """One node's part: slots that it holds and leads before and after, copies that come and go.

    ``sends`` are the copies that it brings to others as the primary of their slots, ``changes`` the
    slots that it leads and that get other members.
    """

    node: NodeId
    held_before: int
    held_after: int
    led_before: int
    led_after: int
    receives: int
    sends: int
    changes: int


class Plan(msgspec.Struct, frozen=True):
    """All of it: slots whose owners change, and copies to be made, one for each new owner."""

    slots: int
    copies: int
    shares: list[Share]

    def seconds(self, slot_bytes: float, copy_bytes_per_s: int, unit_ms: float) -> float:
        """How long it takes: the longest that a sender needs for its bytes, or for its steps.

        Args:
            slot_bytes: Of a slot.
            copy_bytes_per_s: Of each sender; 0 for no limit.
            unit_ms: What a node takes for a step of a move (`cluster.throttle.Room.set_out`).
        """
        bytes_s = steps_s = 0.0
        for share in self.shares:
            steps_s = max(steps_s, (share.changes + share.sends) * unit_ms / 1_000)
            if copy_bytes_per_s:
                bytes_s = max(bytes_s, share.sends * slot_bytes / copy_bytes_per_s)
        return max(bytes_s, steps_s)


def plan(before: Sequence[tuple[NodeId, ...]], after: Sequence[tuple[NodeId, ...]]) -> Plan:
    """What lies between two placements of the same slots; O(slots).

    >>> found = plan([(1, 2), (2, 1)], [(1, 3), (2, 1)])
    >>> found.slots, found.copies, [share.node for share in found.shares if share.receives]
    (1, 1, [3])
    """
    assert len(before) == len(after)
    held_before, held_after = Counter[NodeId](), Counter[NodeId]()
    led_before, led_after = Counter[NodeId](), Counter[NodeId]()
    receives, sends, changes = Counter[NodeId](), Counter[NodeId](), Counter[NodeId]()
    slots = 0
    for old, new in zip(before, after, strict=True):
        held_before.update(old)
        held_after.update(new)
        led_before[old[0]] += 1
        led_after[new[0]] += 1
        slots += old != new
        comers = [node for node in new if node not in old]
        receives.update(comers)
        sends[old[0]] += len(comers)
        changes[old[0]] += set(old) != set(new)
    shares = [
        Share(
            node,
            held_before[node],
            held_after[node],
            led_before[node],
            led_after[node],
            receives[node],
            sends[node],
            changes[node],
        )
        for node in sorted(held_before | held_after)
    ]
    return Plan(slots, receives.total(), shares)
