"""What is believed of each member, and which of two beliefs wins.

SWIM (Das, Gupta and Motivala, 2002, section 4.2): a belief is a state under an *incarnation*
number, which only the member itself raises. A higher incarnation wins; under the same one the
graver state wins. So an accusation spreads until the accused hears of it and answers with a higher
incarnation, and nobody else can acquit it.

Who is a member at all is not decided here: the topology says so (rule 17).
"""

from __future__ import annotations

from enum import IntEnum

import msgspec

from cluster.ballot import NodeId

FICKLE_REFUTATIONS = 2
"""A member that refuted more accusations than this of late is given more time to answer."""

REFUTATION_MS = 300_000
"""After which a refutation is forgotten: so often a slow member is accused again."""


class MemberState(IntEnum):
    """From harmless to grave, which is the order of precedence under one incarnation."""

    ALIVE = 0
    SUSPECT = 1
    DEAD = 2
    LEFT = 3


class MemberUpdate(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A belief on its way. ``accuser`` found the member silent; 0 for what it says itself."""

    node: NodeId
    incarnation: int
    state: MemberState
    accuser: NodeId = 0


class Member(msgspec.Struct, frozen=True, gc=False):
    """The present belief about one member; ``state_since_ms`` by this node's own clock.

    Never changed but replaced, so that all of whom nothing was heard yet share one.
    """

    incarnation: int
    state: MemberState
    state_since_ms: int
    refuted_ms: int = 0
    """When it was last heard to refute an accusation."""
    refutations: float = 0.0
    """Of late: each counts less as time goes by."""

    def is_fickle(self, now_ms: int) -> bool:
        """Whether it was accused wrongly again and again: a slow member, or behind a bad link."""
        return self._refutations(now_ms) > FICKLE_REFUTATIONS

    def _refutations(self, now_ms: int) -> float:
        if not self.refutations:
            return 0.0
        return max(0.0, self.refutations - (now_ms - self.refuted_ms) / REFUTATION_MS)

    def loses_to(self, update: MemberUpdate) -> bool:
        """Whether ``update`` is the stronger belief."""
        return (update.incarnation, update.state) > (self.incarnation, self.state)

    def after(self, update: MemberUpdate, now_ms: int) -> Member:
        """The belief once ``update`` is believed."""
        assert self.loses_to(update), "a belief is only replaced by a stronger one"
        since_ms = self.state_since_ms if update.state is self.state else now_ms
        refuted_ms, refutations = self.refuted_ms, self.refutations
        if update.state is MemberState.ALIVE:
            refuted_ms, refutations = now_ms, self._refutations(now_ms) + 1
        return Member(update.incarnation, update.state, since_ms, refuted_ms, refutations)


def presumed_alive(now_ms: int) -> Member:
    """Of whom nothing was heard yet."""
    return Member(0, MemberState.ALIVE, now_ms)


class MemberEvent(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A member's state has become another one."""

    node: NodeId
    state: MemberState
