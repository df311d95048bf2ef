"""Slots that a node holds and should not: it asks their leaders whether it has left them (R15).

Whoever leaves a slot is told so when the new config commits; a message that was lost is made up for
here. The one walk over all slots that a node makes each second (`cluster.moves`) meets them in the
order of their numbers. Only so many are asked about in one walk; the next goes on behind them.
Those whose own config says that they are no members any more have a budget of their own, because
for them the answer is surely yes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cluster.messages import Surplus

if TYPE_CHECKING:
    from cluster.slot import Context, Slot

ASKED_MAX = 1_024
"""Slots that a node asks about in one walk, of each kind: to drop one takes it up to half a
millisecond, so one that is busy asks about fewer."""

ASKED_PER_PLACE = 8
"""... so many for each of its places for moves (`cluster.throttle.Room`)."""


class _Turn:
    """Some of many, in turns: each walk goes on where the one before ran out."""

    def __init__(self) -> None:
        self._left = ASKED_MAX
        self._behind = self._last = -1

    def begin(self, most: int) -> None:
        self._behind = self._last if self._left == 0 else -1
        self._left = most

    def has_come(self, number: int) -> bool:
        if number <= self._behind or self._left == 0:
            return False
        self._left -= 1
        self._last = number
        return True


class Surpluses:
    """Those of one node."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._left_ones, self._others = _Turn(), _Turn()
        self.met = False
        """Whether there was any in this walk."""

    def begin_walk(self, places: int) -> None:
        """From the lowest number again, with so many places for moves."""
        most = min(ASKED_MAX, ASKED_PER_PLACE * places)
        self._left_ones.begin(most)
        self._others.begin(most)
        self.met = False

    def meet(self, slot: Slot) -> None:
        """This node holds a slot that it should not, and somebody leads it."""
        ctx, number = self._ctx, slot.number
        self.met = True
        turn = self._others if ctx.me in slot.config.everyone else self._left_ones
        if turn.has_come(number):
            ctx.out.send[ctx.leader_of[number]].append(Surplus(number))
