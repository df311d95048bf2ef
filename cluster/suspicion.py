"""How long an accused member has to answer before it is declared dead.

Lifeguard (Dadgar, Phillips and Currey, arXiv:1707.00788, LHA-Suspicion): an accusation by one node
may be that node's own slowness, so it begins with a long time to answer; each further independent
accuser shortens it, on a logarithmic scale, to the shortest time when ``expected`` confirmations
have come. In a cluster too small for independent accusers the shortest time holds at once.
"""

from __future__ import annotations

import math
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cluster.ballot import NodeId


def suspicion_timeout_ms(
    confirmations: int, *, expected: int, timeout_ms_min: int, timeout_ms_max: int
) -> int:
    """Time to answer, from the first accusation, after so many confirmations of it.

    >>> [
    ...     suspicion_timeout_ms(n, expected=3, timeout_ms_min=1_000, timeout_ms_max=6_000)
    ...     for n in range(5)
    ... ]
    [6000, 3500, 2037, 1000, 1000]
    >>> suspicion_timeout_ms(0, expected=0, timeout_ms_min=1_000, timeout_ms_max=6_000)
    1000
    """
    assert 0 < timeout_ms_min <= timeout_ms_max
    if confirmations >= expected:
        return timeout_ms_min
    share = math.log(confirmations + 1) / math.log(expected + 1)
    return max(
        timeout_ms_min, math.floor(timeout_ms_max - share * (timeout_ms_max - timeout_ms_min))
    )


class Suspicion:
    """One accused member's time to answer."""

    def __init__(
        self,
        accuser: NodeId,
        now_ms: int,
        *,
        expected: int,
        timeout_ms_min: int,
        timeout_ms_max: int,
    ) -> None:
        self.accusers = {accuser}
        self._since_ms = now_ms
        self._expected = expected
        self._timeout_ms_min = timeout_ms_min
        self._timeout_ms_max = timeout_ms_max
        self.due_ms = self._due_ms()
        """When the member is declared dead, unless it answers."""

    def _due_ms(self) -> int:
        return self._since_ms + suspicion_timeout_ms(
            len(self.accusers) - 1,
            expected=self._expected,
            timeout_ms_min=self._timeout_ms_min,
            timeout_ms_max=self._timeout_ms_max,
        )

    def confirm(self, accuser: NodeId) -> bool:
        """Another accusation; returns whether it is news that is worth passing on."""
        if accuser in self.accusers or len(self.accusers) > self._expected:
            return False
        self.accusers.add(accuser)
        self.due_ms = self._due_ms()
        return True

    def delay(self, time_ms: int) -> None:
        """So much more time to answer."""
        self._since_ms += time_ms
        self.due_ms = self._due_ms()


class Suspicions:
    """All accused members, the first to be declared dead first; a look costs nothing per member.

    A deadline that has moved, or whose member was acquitted, stays in the heap until it is reached.
    """

    def __init__(self) -> None:
        self._of: dict[NodeId, Suspicion] = {}
        self._due: list[tuple[int, NodeId]] = []

    def __len__(self) -> int:
        return len(self._of)

    def __iter__(self) -> Iterator[NodeId]:
        return iter(self._of)

    def accuser(self, node: NodeId) -> NodeId:
        """One who has accused this member; 0 if it is not accused."""
        suspicion = self._of.get(node)
        return min(suspicion.accusers) if suspicion is not None else 0

    def begin(self, node: NodeId, suspicion: Suspicion) -> None:
        """A member is accused anew."""
        self._of[node] = suspicion
        heappush(self._due, (suspicion.due_ms, node))

    def confirm(self, node: NodeId, accuser: NodeId) -> bool:
        """See `Suspicion.confirm`."""
        suspicion = self._of[node]
        if not suspicion.confirm(accuser):
            return False
        heappush(self._due, (suspicion.due_ms, node))
        return True

    def end(self, node: NodeId) -> None:
        """Not accused (any more)."""
        self._of.pop(node, None)

    def delay(self, time_ms: int) -> None:
        """So much more time for all of them."""
        for suspicion in self._of.values():
            suspicion.delay(time_ms)
        self._due = [(suspicion.due_ms, node) for node, suspicion in self._of.items()]
        heapify(self._due)

    def next_due_ms(self) -> int | None:
        """When `overdue` has somebody next, if nothing changes."""
        due = self._due
        while due:
            due_ms, node = due[0]
            suspicion = self._of.get(node)
            if suspicion is not None and suspicion.due_ms == due_ms:
                return due_ms
            heappop(due)
        return None

    def first(self) -> NodeId | None:
        """The member whose time to answer is over first."""
        return self._due[0][1] if self.next_due_ms() is not None else None

    def overdue(self, now_ms: int) -> NodeId | None:
        """A member whose time to answer is over."""
        due_ms = self.next_due_ms()
        return self.first() if due_ms is not None and due_ms <= now_ms else None
