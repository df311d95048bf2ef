"""A peer that came back is brought to what this node leads, a few slots at a time (rules 9, 11).

A node that returns is behind in every slot of which it is a member: thousands. If all of them were
told Establish at once, its answers and the content that they ask for would keep both sides from
everything else for a second. So the slots of a peer stand in a queue, and only so many are under
way at once; each acknowledgement lets the next one go. A slot that is written to meanwhile does not
wait for its turn: the peer answers the Accept with a Gap, and is brought on by that.

Policy, not safety: whatever is lost on the way is found by `cluster.sweep`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cluster.messages import Establish
from cluster.slot import Primary

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cluster.ballot import NodeId
    from cluster.slot import Context, Slot

UNDER_WAY_MAX = 128
"""Slots of one peer at once: a few milliseconds of work on each side."""

ANSWER_TIMEOUT_MS = 1_000
"""A slot without an answer for so long makes room for the next."""


class CatchingUp:
    """The queues of one node's peers."""

    def __init__(self, slots: Sequence[Slot | None], ctx: Context) -> None:
        self._slots = slots
        self._ctx = ctx
        self._waiting: dict[NodeId, dict[int, None]] = {}
        self.under_way: dict[NodeId, dict[int, int]] = {}
        """Peer -> slot -> since when it was told, in ms."""

    def begin(self, peer: NodeId, numbers: Iterable[int]) -> None:
        """These slots, led by this node, are to be brought to the peer."""
        self._waiting[peer] = dict.fromkeys(numbers)
        self.under_way[peer] = {}
        self._proceed(peer)

    def end(self, peer: NodeId) -> None:
        """The peer is gone."""
        self._waiting.pop(peer, None)
        self.under_way.pop(peer, None)

    def acked(self, peer: NodeId, slot: Slot, primary: Primary) -> None:
        """The peer acknowledged something of a slot: if it is in step, the next one may go."""
        told = self.under_way.get(peer)
        if told is None or slot.number not in told or not is_in_step(primary, peer):
            return
        del told[slot.number]
        if len(told) <= UNDER_WAY_MAX // 2:  # a half at a time: one frame, not one for each slot
            self._proceed(peer)

    def tick(self) -> None:
        """Go on where answers were lost; forget peers that have everything."""
        now_ms = self._ctx.now_ms
        for peer, told in list(self.under_way.items()):
            for number in [n for n, since in told.items() if now_ms - since > ANSWER_TIMEOUT_MS]:
                del told[number]
            self._proceed(peer)

    def _proceed(self, peer: NodeId) -> None:
        waiting, told = self._waiting[peer], self.under_way[peer]
        while waiting and len(told) < UNDER_WAY_MAX:
            number = next(iter(waiting))
            del waiting[number]
            slot = self._slots[number]
            assert slot is not None
            if isinstance(slot.role, Primary) and tell(slot, slot.role, peer, self._ctx):
                told[number] = self._ctx.now_ms
        if not waiting and not told:
            self.end(peer)


def tell(slot: Slot, primary: Primary, peer: NodeId, ctx: Context) -> bool:
    """Say Establish (again) to a peer; False if it is not behind (R9)."""
    if primary.durable.get(peer, -1) >= slot.sequence:
        return False
    again = Establish(slot.number, primary.ballot, primary.base, slot.sequence)
    ctx.out.send[peer].append(again)
    return True


def is_in_step(primary: Primary, peer: NodeId) -> bool:
    """Whether the peer has all that is committed."""
    return primary.durable.get(peer, -1) >= primary.committed
