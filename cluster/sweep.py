"""The one walk over all slots: whatever rule 10 lost on its way is found here.

Leadership and catching up act on what happens, and keep sets of what is left to do; messages are
lost nevertheless, and nobody notices. So every slot is looked at once a second, a part of them with
each tick, because all at once would stop the loop for some 15 ms. Slots that nobody is known to
lead become orphans, handovers that came to nothing begin again, and a primary repeats Establish
until nobody is behind (rule 9). Where a whole walk found nothing and nothing is going on, the next
one takes its time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cluster.catching_up import tell
from cluster.slot import Primary

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cluster.ballot import NodeId
    from cluster.leadership import Leadership
    from cluster.slot import Context, Slot

LAGGARD_INTERVAL_MS = 1_000
"""A peer that is behind and made no progress for so long is told Establish again (R9)."""

SWEEP_PARTS = 10

SWEEP_PART_MS = LAGGARD_INTERVAL_MS // SWEEP_PARTS
"""Time from one part to the next."""

TURN_SLOTS_MAX = 2_048
"""So much of what is due is made up for by a late tick: more would make the next one late too."""

QUIET_FACTOR = 5
"""So many times as long where the walk before found nothing: it took 1.5 % of a core."""


class Sweep:
    """The walk over one node's slots.

    Args:
        slots: By number, None where nothing is held.
        ctx: Of the node.
        leadership: Is told what is found.
    """

    def __init__(self, slots: Sequence[Slot | None], ctx: Context, leadership: Leadership) -> None:
        self._slots = slots
        self._ctx = ctx
        self._leadership = leadership
        self._laggards: list[dict[tuple[int, NodeId], int]] = [{} for _ in range(SWEEP_PARTS)]
        self._next_part = 0
        self._swept_at_ms = 0
        self._found = False
        """Whether there was anything to do since this walk began."""
        self._is_quiet = False
        """Whether there was nothing in all of the walk before, and none since."""

    def tick(self) -> None:
        """Walk over the part that is due, or over more of them if the tick is late."""
        self._note(self._leadership.is_busy or bool(self._ctx.full))
        part_ms = SWEEP_PART_MS * (QUIET_FACTOR if self._is_quiet else 1)
        due = min((self._ctx.now_ms - self._swept_at_ms) // part_ms, SWEEP_PARTS)
        if not due:
            return
        self._swept_at_ms = self._ctx.now_ms
        for _ in range(min(due, max(1, TURN_SLOTS_MAX * SWEEP_PARTS // len(self._slots)))):
            self._walk(self._next_part)
            self._next_part = (self._next_part + 1) % SWEEP_PARTS
            if self._next_part == 0:
                self._is_quiet, self._found = not self._found, False

    def _note(self, found: bool) -> None:
        if found:
            self._is_quiet, self._found = False, True

    def _walk(self, part: int) -> None:
        leadership, leader_of = self._leadership, self._ctx.leader_of
        reachable, me = self._ctx.reachable, self._ctx.me
        stops = me in self._ctx.retiring
        before = self._laggards[part]
        now = self._laggards[part] = {}
        lost: list[int] = []
        for number in range(part, len(self._slots), SWEEP_PARTS):
            slot = self._slots[number]
            if slot is None:
                continue
            primary = slot.role
            if primary is None:
                if leader_of.get(number) not in reachable:
                    lost.append(number)
            elif not isinstance(primary, Primary) or not primary.serving:
                leadership.candidates.add(number)
            else:
                if primary.handing_to is None and (slot.config.members[0] != me or stops):
                    leadership.consider_return(slot)
                if any(primary.durable.get(n, -1) < slot.sequence for n in primary.peers):
                    self._remind_laggards(slot, primary, before, now)
        if lost:
            leadership.orphan(lost)
        self._note(bool(now) or leadership.is_busy)

    def _remind_laggards(
        self,
        slot: Slot,
        primary: Primary,
        before: dict[tuple[int, NodeId], int],
        now: dict[tuple[int, NodeId], int],
    ) -> None:
        """Say Establish again to peers that are as far behind as a second ago.

        Who is being brought on has its turn: told all at once, as it was, it answers with hundreds
        of gaps, and both sides do nothing else for a fifth of a second.
        """
        for peer in primary.peers:
            durable = primary.durable.get(peer, -1)
            if (
                durable < slot.sequence
                and peer in self._ctx.reachable - self._ctx.full
                and peer not in self._leadership.catching_up.under_way
            ):
                now[slot.number, peer] = durable
                if before.get((slot.number, peer)) == durable:
                    tell(slot, primary, peer, self._ctx)
