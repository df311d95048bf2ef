"""News that ride on other messages until enough nodes have been told.

SWIM (section 4.1, infection-style dissemination): each piece of news is sent a number of times that
grows with the logarithm of the cluster's size, the freshest first, and of each member only the
newest, so the queue never has more entries than the cluster has members.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cluster.ballot import NodeId
    from cluster.members import MemberUpdate


class Broadcasts:
    """The queue of one node."""

    def __init__(self) -> None:
        self._queue: dict[NodeId, tuple[int, int, MemberUpdate]] = {}
        self._arrivals = 0

    def __len__(self) -> int:
        return len(self._queue)

    def put(self, update: MemberUpdate) -> None:
        """Spread this; it replaces older news of the same member."""
        self._arrivals += 1
        self._queue[update.node] = (0, -self._arrivals, update)

    def drop(self, node: NodeId) -> None:
        """Nothing of this member is news any more."""
        self._queue.pop(node, None)

    def take(self, count: int, *, sends_max: int) -> list[MemberUpdate]:
        """Up to ``count`` updates for one message, least often sent first, newest among equals.

        O(queue) in the number of queued updates, which is small in a calm cluster.
        """
        chosen = heapq.nsmallest(count, self._queue.values())
        for sends, arrival, update in chosen:
            if sends + 1 >= sends_max:
                del self._queue[update.node]
            else:
                self._queue[update.node] = (sends + 1, arrival, update)
        return [update for _, _, update in chosen]
