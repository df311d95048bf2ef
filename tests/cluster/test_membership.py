"""Changes of the topology: what each means, when it is refused, and that repeating is no harm."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.membership import (
    Away,
    Back,
    Join,
    Leave,
    Move,
    Pace,
    Patience,
    Remove,
    Replicate,
    Rezone,
    Stay,
    TopologyChange,
    Weigh,
    apply_change,
    find_node,
)
from cluster.placement import place
from cluster.topology import (
    ACTIVE,
    AWAY,
    LEAVING,
    Node,
    Topology,
    TopologyError,
    check_topology,
    found_topology,
    with_state,
)


def node(number: int, **changes: object) -> Node:
    plain = Node(number, f"n{number}", f"h{number}:1", f"h{number}:2")
    return msgspec.structs.replace(plain, **changes)


def cluster(count: int, replicas: int = 3) -> Topology:
    nodes = [node(number) for number in range(1, count + 1)]
    return found_topology("c1", "cities", nodes, slot_count=64, replicas=replicas)


def states(topology: Topology) -> dict[str, str]:
    return {node.name: node.state for node in topology.nodes}


def test_a_node_joins_and_says_so_twice() -> None:
    joined = apply_change(cluster(3), Join(node(4, zone="b", weight=2.0, state=LEAVING)))
    assert joined.node(4) == node(4, zone="b", weight=2.0, joined=2)
    assert apply_change(joined, Join(node(4))) is joined


def test_a_node_leaves_stays_and_is_out() -> None:
    leaving = apply_change(cluster(4), Leave("n2"))
    assert states(leaving) == {"n1": ACTIVE, "n2": LEAVING, "n3": ACTIVE, "n4": ACTIVE}
    assert apply_change(leaving, Leave("n2")) is leaving
    staying = apply_change(leaving, Stay("n2"))
    assert (staying.epoch, staying.nodes) == (3, cluster(4).nodes)
    assert [n.name for n in apply_change(leaving, Remove("n2")).nodes] == ["n1", "n3", "n4"]


def test_a_node_is_replaced_and_exactly_its_slots_move() -> None:
    before = cluster(5)
    after = apply_change(before, Join(node(9), replaces="n2"))
    assert states(after)["n2"] == LEAVING
    swapped = [tuple(9 if id_ == 2 else id_ for id_ in owners) for owners in place(before).owners]
    assert place(after).owners == swapped
    out = apply_change(after, Remove("n2"))
    assert place(out).owners == swapped
    again = apply_change(out, Join(node(2), replaces="n9"))
    assert place(again).owners == place(before).owners
    with pytest.raises(TopologyError, match="'n2' and 'n9' have one place on the ring"):
        apply_change(after, Stay("n2"))


def test_a_new_disk_on_the_same_machine_takes_the_old_one_out_at_once() -> None:
    wiped = Join(node(9, name="n2", address="h2:1", http_address="h2:2"))
    with pytest.raises(TopologyError, match=r"another disk .* --replace n2"):
        apply_change(cluster(3), wiped)
    after = apply_change(cluster(3), msgspec.structs.replace(wiped, replaces="n2"))
    assert [n.id for n in after.nodes] == [1, 3, 9]
    assert after.epoch == 2


REFUSED: dict[str, tuple[TopologyChange, str]] = {
    "a taken id": (Join(node(2, name="x", address="x:1", http_address="x:2")), "id 2 is taken"),
    "a taken name": (Join(node(9, name="n2")), "name 'n2' is taken"),
    "a taken address": (Join(node(9, address="h2:1")), "address 'h2:1' is taken"),
    "an absurd weight": (Join(node(9, weight=1e9)), "weight 1000000000.0 is not between"),
    "no such node to replace": (Join(node(9), replaces="n8"), "'n8'; there are n1, n2, n3"),
    "nobody": (Leave("n8"), "no node of cluster 'cities' is 'n8'"),
    "too few for the copies": (Leave("n2"), "2 nodes are left for 3 copies"),
    "one that has not left": (Remove("n2"), "has not left: let it leave first"),
    "more copies than nodes": (Replicate(5), "5 copies need as many nodes, there are 3"),
    "no copies": (Replicate(0), "0 replicas"),
    "a weight of nothing": (Weigh("n2", 0.0), "weight 0.0"),
    "a zone with spaces": (Rezone("n2", "a b"), "its zone"),
    "an address in use": (Move("n2", "h1:1", "h2:2"), "is taken by node 'n1'"),
    "a crawl": (Pace(copy_bytes_per_s=5), "copies at 5 bytes/s"),
    "a wait of no sense": (Patience(-1), "dead nodes are away after -1 s"),
    "one of three that is dead": (Away("n2"), "'n2' is waited for: 2 others are active"),
    "a negative rate": (Pace(copy_bytes_per_s=-1), "copies at -1 bytes/s"),
}


@pytest.mark.parametrize(("change", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_refused(change: TopologyChange, reason: str) -> None:
    with pytest.raises(TopologyError) as refused:
        apply_change(cluster(3), change)
    assert reason in str(refused.value)


def test_what_force_allows_and_what_not() -> None:
    assert states(apply_change(cluster(3), Leave("n2", force=True)))["n2"] == LEAVING
    assert len(apply_change(cluster(3), Remove("n2", force=True)).nodes) == 2
    with pytest.raises(TopologyError, match="no node is active"):
        apply_change(cluster(1), Leave("n1", force=True))


def test_a_node_is_away_until_it_is_back() -> None:
    before = cluster(4)
    away = apply_change(before, Away("n2"))
    assert (states(away)["n2"], away.epoch) == (AWAY, 2)
    assert apply_change(away, Away("n2")) is away, "two deciders make one epoch"
    assert {n for owners in place(away).owners for n in owners} == {1, 3, 4}
    with pytest.raises(TopologyError, match="'n3' is waited for"):
        apply_change(away, Away("n3"))
    assert place(apply_change(away, Back("n2"))).owners == place(before).owners
    leaving = apply_change(away, Leave("n2"))
    assert states(leaving)["n2"] == LEAVING
    assert apply_change(leaving, Back("n2")) is leaving, "who is to leave comes back to leave"
    assert apply_change(leaving, Away("n2")) is leaving


def test_the_rest_changes_what_it_names() -> None:
    topology = cluster(5)
    assert apply_change(topology, Replicate(5)).replicas == 5
    assert apply_change(topology, Replicate(1)).replicas == 1
    assert apply_change(topology, Weigh("n2", 2.0)).node(2) == node(2, weight=2.0)
    assert apply_change(topology, Rezone("n2", "b")).node(2) == node(2, zone="b")
    assert apply_change(topology, Rezone("n2", "")) is topology
    assert apply_change(topology, Move("n2", "x:1", "x:2")).named("n2") == node(
        2, address="x:1", http_address="x:2"
    )
    paused = apply_change(topology, Pace(paused=True))
    assert (paused.paused, paused.copy_bytes_per_s) == (True, topology.copy_bytes_per_s)
    assert apply_change(topology, Patience(0)).away_after_s == 0
    slow = apply_change(paused, Pace(copy_bytes_per_s=1_000_000))
    assert (slow.paused, slow.copy_bytes_per_s, slow.epoch) == (True, 1_000_000, 3)


def test_a_node_is_found_by_name_id_or_address() -> None:
    topology = cluster(3)
    for text in ("n2", "000000000002", "h2:1", "h2:2"):
        assert find_node(topology, text).id == 2


CHANGES = st.one_of(
    st.builds(Join, st.builds(node, st.integers(1, 9)), st.sampled_from(["", "n1", "n2", "n7"])),
    st.builds(Leave, st.sampled_from(["n1", "n2", "n5"]), st.booleans()),
    st.builds(Stay, st.sampled_from(["n1", "n2", "n5"])),
    st.builds(Remove, st.sampled_from(["n1", "n2", "n5"]), st.booleans()),
    st.builds(Weigh, st.just("n1"), st.floats(0.0, 2_000.0)),
    st.builds(Replicate, st.integers(0, 8)),
    st.builds(Patience, st.integers(-1, 10)),
    st.builds(Away, st.sampled_from(["n1", "n2", "n5"])),
    st.builds(Back, st.sampled_from(["n1", "n2", "n5"])),
    st.builds(Pace, st.none() | st.booleans(), st.none() | st.integers(0, 200_000)),
)


@given(st.lists(CHANGES, max_size=12))
def test_any_row_of_changes_leaves_a_legal_topology(changes: list[TopologyChange]) -> None:
    topology = cluster(4)
    for change in changes:
        try:
            changed = apply_change(topology, change)
        except TopologyError:
            continue
        check_topology(changed)
        assert changed is topology or changed.epoch == topology.epoch + 1
        if not isinstance(change, Remove):
            assert apply_change(changed, change) is changed, "to repeat it changes nothing"
        topology = changed


@given(CHANGES)
def test_a_change_travels(change: TopologyChange) -> None:
    packed = msgspec.msgpack.encode(change)
    assert msgspec.msgpack.decode(packed, type=TopologyChange) == change
    assert msgspec.json.decode(msgspec.json.encode(change), type=TopologyChange) == change


def test_a_leaving_node_has_no_vote_on_how_many_are_enough() -> None:
    topology = with_state(cluster(5), 5, LEAVING)
    apply_change(topology, Leave("n4"))
    with pytest.raises(TopologyError, match="2 nodes are left"):
        apply_change(apply_change(topology, Leave("n4")), Leave("n3"))
