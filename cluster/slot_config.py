"""A slot's config: which nodes *are* its members now, and which are being brought to it.

The config is part of the slot's replicated state and changes only by operations of the slot itself
(rules 13 to 15). It holds one member set, or two while joint, and the learners, who receive
everything and count for nothing. The order inside a set is the ring's: the first member that is
reachable should be primary (rule 10).
"""

from __future__ import annotations

from functools import lru_cache

import msgspec

from cluster.ballot import NodeId


class SlotConfig(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Member sets (one, or two while joint) in ring order, and learners."""

    sets: tuple[tuple[NodeId, ...], ...]
    learners: tuple[NodeId, ...] = ()

    @property
    def members(self) -> tuple[NodeId, ...]:
        """Everyone who counts, each once; the newest set's order of preference first."""
        if len(self.sets) == 1:
            return self.sets[0]
        return tuple(dict.fromkeys(node for members in reversed(self.sets) for node in members))

    @property
    def everyone(self) -> tuple[NodeId, ...]:
        """Members, then learners: whom an Accept goes to (rule 1)."""
        if not self.learners:
            return self.members
        return self.members + tuple(n for n in self.learners if n not in self.members)


@lru_cache(maxsize=4_096)
def shared(config: SlotConfig) -> SlotConfig:
    """The one object for all configs that are equal to this one.

    Thousands of slots have few different configs; what is worked out for one of them is then found
    again by identity, and they take no memory.
    """
    return config


NO_CONFIG = SlotConfig(())
"""Of a node that holds no state for the slot."""
