"""A peer that came back is brought to what this node leads, a few slots at a time (rules 9, 11).

A node that returns is behind in every slot of which it is a member: thousands. If all of them were
told Establish at once, its answers and the content that they ask for would keep both sides from
everything else for a second. So the slots are gone over in their order, and only so many are under
way at once; each acknowledgement lets the next one go. A slot in step is one that may be handed
back. A slot that is written to meanwhile does not wait for its turn: the peer answers the Accept
with a Gap, and is brought on by that.

Policy, not safety: whatever is lost on the way is found by `cluster.sweep`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cluster.messages import Establish
from cluster.slot import Primary

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cluster.ballot import NodeId
    from cluster.slot import Context, Slot

UNDER_WAY_MAX = 128
"""Slots of one peer at once, told a half at a time: a few milliseconds of work on each side."""

LOOKS_MAX = 2_048
"""Slots that are gone over at once: a millisecond where the peer is behind in none of them."""

ANSWER_TIMEOUT_MS = 1_000
"""A slot without an answer for so long makes room for the next."""


class CatchingUp:
    """Of one node's peers.

    Args:
        slots: By number, None where nothing is held.
        ctx: Of the node; its ``brought`` are those that are being brought on.
        in_step: Told each slot that a peer is in step with.
    """

    def __init__(
        self, slots: Sequence[Slot | None], ctx: Context, in_step: Callable[[Slot], None]
    ) -> None:
        self._slots = slots
        self._ctx = ctx
        self._in_step = in_step
        self._next: dict[NodeId, int] = {}
        """Peer -> the slot that is looked at next."""
        self.under_way: dict[NodeId, dict[int, int]] = {}
        """Peer -> slot -> since when it was told, in ms."""

    def begin(self, peer: NodeId) -> None:
        """The slots that this node leads are to be brought to the peer."""
        self._next[peer] = 0
        self.under_way[peer] = {}
        self._ctx.brought.add(peer)
        self._proceed(peer)

    def end(self, peer: NodeId) -> None:
        """The peer is gone, or has everything."""
        self._next.pop(peer, None)
        self.under_way.pop(peer, None)
        self._ctx.brought.discard(peer)

    def acked(self, peer: NodeId, slot: Slot, primary: Primary) -> None:
        """The peer acknowledged something of a slot: if it is in step, the next one may go."""
        told = self.under_way.get(peer)
        if told is None or slot.number not in told or not is_in_step(primary, peer):
            return
        del told[slot.number]
        self._in_step(slot)
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
        slots, told, at = self._slots, self.under_way[peer], self._next[peer]
        end = min(at + LOOKS_MAX, len(slots))
        while at < end and len(told) < UNDER_WAY_MAX:
            slot = slots[at]
            at += 1
            if slot is None or not isinstance(slot.role, Primary) or peer not in slot.role.peers:
                continue
            slot.role.bringing.pop(peer, None)
            if tell(slot, slot.role, peer, self._ctx):
                told[slot.number] = self._ctx.now_ms
            else:
                self._in_step(slot)
        self._next[peer] = at
        if at == len(slots) and not told:
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
