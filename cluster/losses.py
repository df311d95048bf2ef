"""What the next failures would cost: the slots that lose their quorum with one or two of something.

Of something, because nodes fail alone and zones fail together: whoever asks says which nodes are
one group. A slot can be served while a majority of each of its member sets is up (rule 9), so one
with a joint config depends on more nodes than one at rest, and learners count for nothing. Slots
that have no quorum as it is are no part of the answer: no further failure costs them anything.

Slots share a few configs, and a config names at most a dozen nodes, so two failures of a thousand
nodes are not half a million cases: only groups that meet in a config can stop its slots together.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import combinations
from typing import TYPE_CHECKING

from cluster.quorum import is_quorum

if TYPE_CHECKING:
    from collections.abc import Mapping
    from collections.abc import Set as AbstractSet

    from cluster.ballot import NodeId
    from cluster.slot import Slot
    from cluster.slot_config import SlotConfig


def losses(
    slots_of: Mapping[SlotConfig, int],
    up: AbstractSet[NodeId],
    group_of: Mapping[NodeId, str],
) -> Counter[tuple[str, ...]]:
    """Groups of nodes -> the slots that stop if all of these fail and not if fewer do.

    One group, or two in the order of their names. Those that cost nothing are left out.

    Args:
        slots_of: How many slots have this config now.
        up: The nodes that serve.
        group_of: By node; one that is in no group is taken not to fail.

    >>> from cluster.slot_config import SlotConfig
    >>> losses({SlotConfig(((1, 2, 3),)): 7}, {1, 2, 3}, {1: "a", 2: "a", 3: "b"})
    Counter({('a',): 7})
    """
    found: Counter[tuple[str, ...]] = Counter()
    for config, slots in slots_of.items():
        members = up & set(config.members)
        if not is_quorum(members, config):
            continue
        groups: defaultdict[str, set[NodeId]] = defaultdict(set)
        for node in members:
            if node in group_of:
                groups[group_of[node]].add(node)
        enough = [name for name in groups if is_quorum(members - groups[name], config)]
        for name in groups.keys() - enough:
            found[name,] += slots
        for pair in combinations(sorted(enough), 2):
            if not is_quorum(members - groups[pair[0]] - groups[pair[1]], config):
                found[pair] += slots
    return found


def has_quorum(slot: Slot | None, owners: tuple[NodeId, ...], reachable: set[NodeId]) -> bool:
    """Whether enough members of a slot are in reach: by its config, or else by its owners.

    Where neither is known, yes: nobody has said that it is lost.
    """
    if slot is not None and slot.holds_state:
        return is_quorum(reachable, slot.config)
    return not owners or 2 * len(reachable.intersection(owners)) > len(owners)
