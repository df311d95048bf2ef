from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.limits import NODE_WEIGHT_MAX, SLOT_COUNT_MAX
from cluster.topology import (
    ACTIVE,
    LEAVING,
    Node,
    Topology,
    TopologyError,
    check_topology,
    decode_topology,
    encode_topology,
    found_topology,
    with_addresses,
    with_node,
    with_replicas,
    with_state,
    with_weight,
    with_zone,
    without_node,
)


def node(number: int, **changes: object) -> Node:
    plain = Node(number, f"n{number}", f"10.0.0.{number}:7401", f"10.0.0.{number}:8401", "a")
    return msgspec.structs.replace(plain, **changes)


def three() -> Topology:
    return found_topology("c1", "cities", [node(3), node(1), node(2)])


def test_founding_is_epoch_one_with_nodes_in_id_order() -> None:
    topology = three()
    assert topology.epoch == 1
    assert [node.id for node in topology.nodes] == [1, 2, 3]
    assert (topology.slot_count, topology.replicas) == (16_384, 3)


def test_order_of_nodes_does_not_show_in_the_bytes() -> None:
    again = found_topology("c1", "cities", [node(2), node(3), node(1)])
    assert encode_topology(again) == encode_topology(three())


def test_lookups() -> None:
    topology = three()
    assert topology.node(2) == node(2)
    assert topology.named("n3") == node(3)
    assert topology.node(9) is None
    assert topology.named("x") is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": 1}, "node 'n4': its id 1 is taken by node 'n1' as its id"),
        ({"name": "n1"}, "node 'n1': its name 'n1' is taken"),
        (
            {"address": "10.0.0.1:7401"},
            "node 'n4': its address '10.0.0.1:7401' is taken by node 'n1'",
        ),
        (
            {"http_address": "10.0.0.2:8401"},
            "its HTTP address '10.0.0.2:8401' is taken by node 'n2'",
        ),
        ({"http_address": "10.0.0.2:7401"}, "is taken by node 'n2' as its address"),
        ({"http_address": "10.0.0.4:7401"}, "is taken by node 'n4' as its address"),
        ({"id": 0}, "id 0 is not between"),
        ({"id": 2**48}, "id 281474976710656 is not between"),
        ({"name": ""}, "its name is empty"),
        ({"name": "a b"}, "its name 'a b' has"),
        ({"name": "n\x1b[31m"}, "cannot be printed"),
        ({"name": "\ud800"}, "cannot be printed"),
        ({"name": "é" * 33}, "is longer than 64 bytes"),
        ({"address": ""}, "its address is empty"),
        ({"address": "n4"}, "its address 'n4' is not host:port"),
        ({"address": "n4:0"}, "is not host:port"),
        ({"address": "n4:65536"}, "is not host:port"),
        ({"address": "a..b:7401"}, "is not host:port"),
        ({"address": "a" * 64 + ":7401"}, "is not host:port"),
        ({"address": "::1:7401"}, "is not host:port"),
        ({"http_address": "n4:http"}, "its HTTP address 'n4:http' is not host:port"),
        ({"zone": "z" * 65}, "its zone"),
        ({"weight": 0.0}, "node 'n4': weight 0.0 is not"),
        ({"weight": -1.0}, "weight -1.0"),
        ({"weight": float("nan")}, "weight nan"),
        ({"weight": float("inf")}, "weight inf"),
        ({"weight": 1e-9}, "weight 1e-09"),
        ({"weight": NODE_WEIGHT_MAX + 1}, "weight 1001"),
        ({"state": "asleep"}, "state 'asleep' is none of active, leaving"),
    ],
)
def test_a_bad_node_is_refused_and_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(TopologyError) as refused:
        with_node(three(), node(4, **change))
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("cluster_id", "", "the cluster's id is empty"),
        ("cluster_name", "", "the cluster's name is empty"),
        ("epoch", 0, "epoch 0"),
        ("slot_count", 0, "slot count 0"),
        ("slot_count", 1_000, "slot count 1000 is not a power of two"),
        ("slot_count", SLOT_COUNT_MAX * 2, "slot count 65536"),
        ("replicas", 0, "0 replicas"),
        ("replicas", 8, "8 replicas"),
        ("nodes", (), "0 nodes"),
        ("nodes", (node(2), node(1)), "not in the order"),
        ("nodes", (node(1, state=LEAVING),), "no node is active"),
    ],
)
def test_a_bad_document_is_refused_wherever_it_enters(
    field: str, value: object, message: str
) -> None:
    topology = msgspec.structs.replace(three(), **{field: value})
    with pytest.raises(TopologyError, match=message):
        check_topology(topology)
    with pytest.raises(TopologyError, match=message):
        decode_topology(encode_topology(topology))


def test_too_many_bytes_are_not_even_looked_at() -> None:
    with pytest.raises(TopologyError, match="over the"):
        decode_topology(bytes(5_000_000))


@given(st.binary(max_size=200))
def test_any_bytes_decode_or_are_refused(data: bytes) -> None:
    with pytest.raises(TopologyError):
        decode_topology(data)


@given(st.integers(min_value=0), st.integers(min_value=0, max_value=255))
def test_a_changed_byte_is_refused_or_still_a_legal_topology(at: int, byte: int) -> None:
    data = bytearray(encode_topology(three()))
    data[at % len(data)] = byte
    try:
        topology = decode_topology(bytes(data))
    except TopologyError:
        return
    check_topology(topology)


def test_every_change_is_one_epoch_and_one_field() -> None:
    before = three()
    joined = with_node(before, node(4, zone="b"))
    assert (joined.epoch, joined.node(4)) == (2, node(4, zone="b", joined=2))
    left = without_node(joined, 2)
    assert (left.epoch, [node.id for node in left.nodes]) == (3, [1, 3, 4])
    assert with_state(left, 1, LEAVING).node(1) == node(1, state=LEAVING)
    assert with_weight(left, 1, 2.5).node(1) == node(1, weight=2.5)
    assert with_zone(left, 1, "c").node(1) == node(1, zone="c")
    moved = with_addresses(left, 1, "h:1", "h:2").node(1)
    assert moved == node(1, address="h:1", http_address="h:2")
    assert with_replicas(left, 5).replicas == 5
    assert with_replicas(left, 5).epoch == left.epoch + 1
    assert before == three(), "a document never changes"


def test_changes_that_cannot_be() -> None:
    with pytest.raises(TopologyError, match="node 9 is not in cluster 'cities'"):
        without_node(three(), 9)
    with pytest.raises(TopologyError, match="weight 0"):
        with_weight(three(), 1, 0)
    with pytest.raises(TopologyError, match="state 'gone'"):
        with_state(three(), 1, "gone")
    alone = found_topology("c1", "one", [node(1)])
    with pytest.raises(TopologyError, match="0 nodes"):
        without_node(alone, 1)
    with pytest.raises(TopologyError, match="no node is active"):
        with_state(alone, 1, LEAVING)
    assert with_state(with_state(three(), 1, LEAVING), 1, ACTIVE).epoch == 3


@given(st.lists(st.integers(1, 2**48 - 1), min_size=1, max_size=20, unique=True), st.data())
def test_round_trip(ids: list[int], data: st.DataObject) -> None:
    weights = st.floats(0.001, 1_000.0)
    zones = st.text("abc", max_size=3)
    nodes = [
        Node(id_, f"n{id_}", f"h{id_}:1", f"h{id_}:2", data.draw(zones), data.draw(weights))
        for id_ in ids
    ]
    topology = found_topology("c1", "cities", nodes, slot_count=64, replicas=2)
    assert decode_topology(encode_topology(topology)) == topology
