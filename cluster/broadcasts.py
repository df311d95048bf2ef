"""News that ride on other messages until enough nodes have been told.

SWIM (section 4.1, infection-style dissemination): each piece of news is sent a number of times that
grows with the logarithm of the cluster's size, the freshest first, and of each member only the
newest, so the queue never has more entries than the cluster has members.

A large cluster in trouble has more news than its messages carry. Then not all news are worth the
same: a refutation or a death must reach everybody, an accusation only some (it dies with the
refutation), and one accuser more only a few, for the first who declares a member dead tells the
rest. So lesser news begin as if they had been sent some times already.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cluster.ballot import NodeId
    from cluster.members import MemberUpdate

ACCUSATION_SENDS_LESS = 2
"""An accusation waits for refutations and deaths that were sent no oftener than this."""

CONFIRMATION_SENDS = 2
"""One accuser more is told so often: two reach most of a cluster."""


class Broadcasts:
    """The queue of one node: what was sent so often, latest last, for each number of times."""

    def __init__(self) -> None:
        self._by_sends: list[dict[NodeId, MemberUpdate]] = [{}]
        self._sends: dict[NodeId, int] = {}

    def __len__(self) -> int:
        return len(self._sends)

    def put(self, update: MemberUpdate, *, sends: int = 0) -> None:
        """Spread this, as if sent ``sends`` times; older news of the same member are replaced."""
        self.drop(update.node)
        self._file(update, sends)

    def put_more(self, update: MemberUpdate, *, sends: int) -> None:
        """The same news with a detail more: no fresher than it is, nor older than ``sends``."""
        queued = self._sends.get(update.node, sends)
        self.put(update, sends=min(queued, sends))

    def _file(self, update: MemberUpdate, sends: int) -> None:
        while sends >= len(self._by_sends):
            self._by_sends.append({})
        self._by_sends[sends][update.node] = update
        self._sends[update.node] = sends

    def drop(self, node: NodeId) -> None:
        """Nothing of this member is news any more."""
        sends = self._sends.pop(node, None)
        if sends is not None:
            del self._by_sends[sends][node]

    def take(self, count: int, *, sends_max: int) -> list[MemberUpdate]:
        """Up to ``count`` updates for one message, least often sent first, newest among equals.

        O(count + sends_max), however much is waiting.
        """
        if not self._sends:
            return []
        chosen: list[tuple[int, MemberUpdate]] = []
        for sends, queue in enumerate(self._by_sends):
            while queue and len(chosen) < count:
                chosen.append((sends + 1, queue.popitem()[1]))
        for sends, update in reversed(chosen):
            if sends >= sends_max:
                del self._sends[update.node]
            else:
                self._file(update, sends)
        return [update for _, update in chosen]
