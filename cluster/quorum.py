"""Majority and joint majority: the only arithmetic that safety rests on.

A quorum is a majority of *every* member set of the config (Ongaro, Consensus: Bridging Theory and
Practice, 2014, section 4.3), so any two quorums of one config share a member, and those of a joint
config share one with the quorums of both sides. Learners never count.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Container, Mapping

    from cluster.ballot import NodeId
    from cluster.slot_config import SlotConfig


def is_quorum(who: Container[NodeId], config: SlotConfig) -> bool:
    """Whether these nodes are a majority of every member set; never for a config without sets.

    >>> from cluster.slot_config import SlotConfig
    >>> is_quorum({1, 2}, SlotConfig(((1, 2, 3),)))
    True
    >>> is_quorum({1, 2}, SlotConfig(((1, 2, 3), (3, 4, 5))))
    False
    """
    for members in config.sets:  # plain loops: a node asks this some 10,000 times when it starts
        missing = len(members)
        for node in members:
            if node in who:
                missing -= 1
        if 2 * missing >= len(members):
            return False
    return bool(config.sets)


def committed_sequence(durable: Mapping[NodeId, int], config: SlotConfig) -> int:
    """The highest sequence that a quorum has durable (rule 3); -1 if a majority has none at all.

    `durable` maps a node to the last sequence that it acknowledged in the present ballot; a node
    that acknowledged nothing is absent.

    >>> from cluster.slot_config import SlotConfig
    >>> committed_sequence({1: 9, 2: 7}, SlotConfig(((1, 2, 3),)))
    7
    """
    lowest: int | None = None
    for members in config.sets:
        held: list[int] = []  # a plain loop: it runs twice for each write
        for node in members:
            held.append(durable.get(node, -1))  # noqa: PERF401 - a comprehension is a call (3.11)
        held.sort()
        reached = held[(len(members) - 1) // 2]
        if lowest is None or reached < lowest:
            lowest = reached
    return -1 if lowest is None else lowest
