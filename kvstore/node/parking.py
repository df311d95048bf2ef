"""Operations that wait until their slot has a primary: few of them, and each slot is asked once.

While a node's slots are taken over, every request for them waits. Let them all wait, and under load
they would soon be all that a node has in flight, and what the living primaries could serve would be
refused. So those that may wait are a fraction of what is admitted; the others are told to come
again, which is allowed because they were given to nobody yet. What may have been started
before (rule 4) always waits.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Final

from cluster.operations import Code, Failed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kvstore.node.gathering import Gathering, Ticket

SHARE: Final = 2
"""One in so many of the requests that are admitted may wait for a primary."""

NO_PRIMARY: Final = Failed(
    Code.OVERLOADED,
    "the slot is changing its primary, and enough requests wait for a new one; nothing was done",
    50,
)


class Parking:
    """Tickets by slot."""

    def __init__(self) -> None:
        self._waiting: defaultdict[int, list[Ticket]] = defaultdict(list)
        self.requests: dict[Gathering, int] = {}
        """Those with an operation that waits, and how many of theirs do."""

    def add(self, ticket: Ticket) -> None:
        """It waits from now on."""
        gathering, index = ticket
        gathering.has_waited = True
        self._waiting[gathering.slots[index]].append(ticket)
        self.requests[gathering] = self.requests.get(gathering, 0) + 1

    def is_full_for(self, ticket: Ticket, limit: int) -> bool:
        """Whether this one should not begin to wait, where so many requests are admitted."""
        gathering, index = ticket
        full = len(self.requests) * SHARE >= limit
        return full and not gathering.has_waited and not gathering.is_started(index)

    def take(self, slot: int) -> list[Ticket]:
        """Those of a slot; they wait no more."""
        tickets = self._waiting.pop(slot, [])
        for ticket in tickets:
            self._left(ticket)
        return tickets

    def slots(self) -> list[int]:
        """Where anything waits."""
        return list(self._waiting)

    def waits(self, slot: int) -> bool:
        """Whether anything waits for this slot."""
        return slot in self._waiting

    def withdraw(self, is_over: Callable[[Ticket], bool]) -> Iterator[Ticket]:
        """Take out those that nobody waits for any more."""
        for slot in self.slots():
            tickets = self.take(slot)
            for ticket in tickets:
                if is_over(ticket):
                    yield ticket
                else:
                    self.add(ticket)

    def _left(self, ticket: Ticket) -> None:
        left = self.requests[ticket[0]] - 1
        if left:
            self.requests[ticket[0]] = left
        else:
            del self.requests[ticket[0]]
