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

    def loses_to(self, update: MemberUpdate) -> bool:
        """Whether ``update`` is the stronger belief."""
        return (update.incarnation, update.state) > (self.incarnation, self.state)

    def after(self, update: MemberUpdate, now_ms: int) -> Member:
        """The belief once ``update`` is believed."""
        assert self.loses_to(update), "a belief is only replaced by a stronger one"
        since_ms = self.state_since_ms if update.state is self.state else now_ms
        return Member(update.incarnation, update.state, since_ms)


def presumed_alive(now_ms: int) -> Member:
    """Of whom nothing was heard yet."""
    return Member(0, MemberState.ALIVE, now_ms)


class MemberEvent(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A member's state has become another one."""

    node: NodeId
    state: MemberState
