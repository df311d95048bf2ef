"""A plan tells what really happens between two placements."""

from __future__ import annotations

import pytest

from cluster.membership import Join, Leave, Replicate, TopologyChange, apply_change
from cluster.placement import place
from cluster.rebalance import plan
from cluster.topology import Node, found_topology


def node(number: int) -> Node:
    return Node(number, f"n{number}", f"h{number}:1", f"h{number}:2")


TOPOLOGY = found_topology("c1", "test", [node(n) for n in range(1, 5)], slot_count=1_024)


@pytest.mark.parametrize("change", [Join(node(9)), Leave("n2"), Replicate(1), Replicate(4)])
def test_a_plan_counts_every_copy_and_every_share(change: TopologyChange) -> None:
    before, after = place(TOPOLOGY).owners, place(apply_change(TOPOLOGY, change)).owners
    found = plan(before, after)
    assert found.slots == sum(old != new for old, new in zip(before, after, strict=True))
    copies = [
        (new_node, old[0])
        for old, new in zip(before, after, strict=True)
        for new_node in set(new) - set(old)
    ]
    assert found.copies == len(copies)
    for share in found.shares:
        assert share.receives == sum(to == share.node for to, _ in copies)
        assert share.sends == sum(source == share.node for _, source in copies)
        assert share.held_after == sum(share.node in owners for owners in after)
        assert share.led_before == sum(owners[0] == share.node for owners in before)
        kept = sum({share.node} <= {*o} & {*n} for o, n in zip(before, after, strict=True))
        assert share.held_after == kept + share.receives


def test_time_is_that_of_whoever_sends_most() -> None:
    found = plan([(1, 2), (1, 2), (2, 1)], [(1, 3), (1, 3), (2, 3)])
    assert found.seconds(1_000_000, 500_000, 1.0) == 4.0
    assert plan([(1,)], [(1,)]).seconds(1e6, 1, 1.0) == 0.0


def test_time_is_that_of_the_steps_where_slots_are_small() -> None:
    found = plan([(1,), (1,), (2,)], [(1, 3, 4), (2,), (2,)])
    assert [share.changes for share in found.shares] == [2, 0, 0, 0]
    steps = 2 + 3  # changes of members, and copies
    assert found.seconds(10, 500_000, 100.0) == steps * 0.1
    assert found.seconds(10, 0, 100.0) == steps * 0.1
