"""Who votes on the topology (rule 17)."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from cluster.placement import place
from cluster.records import decode_record
from cluster.system_slot import FOUNDING_VERSION, founding_record, owners, voters
from cluster.topology import (
    LEAVING,
    Node,
    Topology,
    decode_topology,
    found_topology,
    with_node,
    with_state,
)


def node(number: int, zone: str = "") -> Node:
    return Node(number, f"n{number}", f"h{number}:1", f"h{number}:2", zone)


def cluster(*zones: str) -> Topology:
    nodes = [node(number, zone) for number, zone in enumerate(zones, 1)]
    return found_topology("c1", "test", nodes, slot_count=16)


def test_an_odd_number_of_the_oldest_up_to_five() -> None:
    counts = {count: len(voters(cluster(*[""] * count))) for count in range(1, 9)}
    assert counts == {1: 1, 2: 2, 3: 3, 4: 3, 5: 5, 6: 5, 7: 5, 8: 5}
    three = cluster("", "", "")
    assert voters(with_node(three, node(4))) == voters(three) == (1, 2, 3)
    assert voters(with_node(three, Node(0xF, "old", "o:1", "o:2"))) == (1, 2, 3)


def test_each_zone_has_one_before_any_has_two() -> None:
    assert voters(cluster("a", "a", "a", "b", "c")) == (1, 4, 5, 2, 3)
    assert voters(cluster("a", "a", "a", "b")) == (1, 4, 2)
    assert set(voters(cluster("a", "a", "a", "b", "b", "b", "c"))) == {1, 4, 7, 2, 5}


def test_who_leaves_votes_no_more() -> None:
    topology = with_state(cluster("", "", "", ""), 2, LEAVING)
    assert voters(topology) == (1, 3, 4)


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=12))
def test_voters_are_spread_over_zones_as_evenly_as_can_be(zones: list[str]) -> None:
    topology = cluster(*zones)
    chosen = [node.zone for node in topology.nodes if node.id in voters(topology)]
    votes, nodes = Counter(chosen), Counter(zones)
    for zone, count in votes.items():
        for other in nodes:
            assert votes[other] >= min(nodes[other], count - 1), (zone, other)


def test_the_system_slot_is_the_last_of_all_owners() -> None:
    topology = cluster("", "", "")
    assert owners(topology) == [*place(topology).owners, voters(topology)]
    assert len(owners(topology)) - 1 == topology.system_slot == 16


def test_the_founding_record_is_the_document() -> None:
    topology = cluster("", "", "")
    record = decode_record(founding_record(topology))
    assert decode_topology(record.value) == topology
    assert (record.version, record.expires_at_ms) == (FOUNDING_VERSION, 0)
