"""The topology document: who is in the cluster, and with what share.

It is the record of the system slot (rule 17), changed by compare-and-set, each change one epoch,
and spread by gossip. It lists members only: which node should own which slot is a pure function of
it (`cluster.placement`), so that it stays small. Topology proposes, slots dispose: an old or even
a wrong document never endangers data.

A document is validated wherever it enters (`decode_topology`) or is changed (`with_node` and its
like), and assumed to be right afterwards. Nodes are kept in the order of their ids, so that equal
topologies are equal bytes. What it does not know: who is alive (gossip) and where slots are now
(their own configs).

A node's ``state`` says what is planned for it:

===========  ==========================================================
``active``   owns its share of the slots
``leaving``  owns nothing any more; what it still holds is moved away
``away``     dead for long (`cluster.absence`); owns nothing until it is back
===========  ==========================================================
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import msgspec

from cluster.ballot import NodeId
from cluster.limits import (
    ADDRESS_BYTES_MAX,
    AWAY_AFTER_SECONDS_DEFAULT,
    AWAY_AFTER_SECONDS_MAX,
    COPIES_PER_SECOND_BYTES_DEFAULT,
    COPIES_PER_SECOND_BYTES_MIN,
    NAME_BYTES_MAX,
    NODE_ID_BITS,
    NODE_WEIGHT_DEFAULT,
    NODE_WEIGHT_MAX,
    NODE_WEIGHT_MIN,
    NODES_MAX,
    REPLICAS_DEFAULT,
    REPLICAS_MAX,
    SLOT_COUNT_DEFAULT,
    SLOT_COUNT_MAX,
    TOPOLOGY_BYTES_MAX,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

ACTIVE = "active"
LEAVING = "leaving"
AWAY = "away"
STATES = (ACTIVE, LEAVING, AWAY)

NOWHERE: Final = ("in-process", "no-http")
"""In place of both addresses of an embedded store, which nobody dials: it is alone."""

_ADDRESS: Final = re.compile(
    r"(?:\[[0-9A-Fa-f:.]+\]|(?:[A-Za-z0-9_-]{1,63}\.)*[A-Za-z0-9_-]{1,63}):([0-9]{1,5})"
)
"""``host:port`` that a resolver takes: labels of 1 to 63 characters, or IPv6 in brackets."""


class TopologyError(ValueError):
    """This topology, or this change of one, is not allowed; the message names node and value."""


class Node(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One member.

    ``weight`` is its share of the load relative to the others', ``joined`` the epoch in which it
    came, ``seat`` the id whose place on the ring it has: its own (0), or that of the node that it
    replaced, so that exactly the slots of that one come to it.
    """

    id: NodeId
    name: str
    address: str
    http_address: str
    zone: str = ""
    weight: float = NODE_WEIGHT_DEFAULT
    state: str = ACTIVE
    joined: int = 1
    seat: NodeId = 0

    @property
    def ring_id(self) -> NodeId:
        """Under which id it stands on the ring."""
        return self.seat or self.id


class Topology(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The document. ``nodes`` are in the order of their ids, none of which appears twice.

    ``paused`` and ``copy_bytes_per_s`` say how slots are moved: whether at all, and how fast each
    node may send copies (0: as fast as it can). Whoever is dead for ``away_after_s`` seconds is
    taken for away (0: nobody ever).
    """

    cluster_id: str
    cluster_name: str
    epoch: int
    slot_count: int
    replicas: int
    nodes: tuple[Node, ...]
    paused: bool = False
    copy_bytes_per_s: int = COPIES_PER_SECOND_BYTES_DEFAULT
    away_after_s: int = AWAY_AFTER_SECONDS_DEFAULT

    @property
    def system_slot(self) -> int:
        """The number of the slot that holds this document: the one behind the data's (rule 17)."""
        return self.slot_count

    def node(self, node_id: NodeId) -> Node | None:
        """The node with this id, if it is in; O(nodes)."""
        return next((node for node in self.nodes if node.id == node_id), None)

    def named(self, name: str) -> Node | None:
        """The node with this name, if it is in; O(nodes)."""
        return next((node for node in self.nodes if node.name == name), None)


_DECODER = msgspec.msgpack.Decoder(Topology)
_ENCODER = msgspec.msgpack.Encoder()


def found_topology(
    cluster_id: str,
    cluster_name: str,
    nodes: Iterable[Node],
    *,
    slot_count: int = SLOT_COUNT_DEFAULT,
    replicas: int = REPLICAS_DEFAULT,
) -> Topology:
    """The founding document (rule 16), epoch 1.

    Raises:
        TopologyError: what is wrong with it.
    """
    ordered = tuple(sorted(nodes, key=lambda node: node.id))
    topology = Topology(cluster_id, cluster_name, 1, slot_count, replicas, ordered)
    check_topology(topology)
    return topology


def encode_topology(topology: Topology) -> bytes:
    """Its MessagePack: equal topologies, equal bytes."""
    return _ENCODER.encode(topology)


def decode_topology(data: bytes) -> Topology:
    """The inverse of `encode_topology`, for bytes from anywhere.

    Raises:
        TopologyError: no topology, or not an allowed one.
    """
    if len(data) > TOPOLOGY_BYTES_MAX:
        raise TopologyError(f"a topology of {len(data)} bytes is over the {TOPOLOGY_BYTES_MAX}")
    try:
        topology = _DECODER.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise TopologyError(f"these {len(data)} bytes are no topology: {error}") from error
    check_topology(topology)
    return topology


def with_node(topology: Topology, node: Node) -> Topology:
    """The next epoch, with one node more, which joined in it.

    Raises:
        TopologyError: its id, name or an address is taken, or a value is out of range.
    """
    joining = msgspec.structs.replace(node, joined=topology.epoch + 1)
    return _next(topology, (*topology.nodes, joining))


def without_node(topology: Topology, node_id: NodeId) -> Topology:
    """The next epoch, with one node less.

    Raises:
        TopologyError: it is not in, or it is the last one that is active.
    """
    _member(topology, node_id)
    return _next(topology, (node for node in topology.nodes if node.id != node_id))


def with_state(topology: Topology, node_id: NodeId, state: str) -> Topology:
    """The next epoch, with one node's state changed.

    Raises:
        TopologyError: it is not in, there is no such state, or nobody would be active.
    """
    return _replaced(topology, node_id, state=state)


def with_weight(topology: Topology, node_id: NodeId, weight: float) -> Topology:
    """The next epoch, with one node's weight changed.

    Raises:
        TopologyError: it is not in, or the weight is out of range.
    """
    return _replaced(topology, node_id, weight=weight)


def with_zone(topology: Topology, node_id: NodeId, zone: str) -> Topology:
    """The next epoch, with one node in another zone.

    Raises:
        TopologyError: it is not in, or this can be no zone.
    """
    return _replaced(topology, node_id, zone=zone)


def with_addresses(
    topology: Topology, node_id: NodeId, address: str, http_address: str
) -> Topology:
    """The next epoch, with one node at other addresses.

    Raises:
        TopologyError: it is not in, or an address is taken or can be none.
    """
    return _replaced(topology, node_id, address=address, http_address=http_address)


def with_replicas(topology: Topology, replicas: int) -> Topology:
    """The next epoch, with another number of replicas for every slot.

    Raises:
        TopologyError: out of range.
    """
    return _next(topology, topology.nodes, replicas=replicas)


def with_pace(topology: Topology, *, paused: bool, copy_bytes_per_s: int) -> Topology:
    """The next epoch, with slots moved at another pace.

    Raises:
        TopologyError: out of range.
    """
    return _next(topology, topology.nodes, paused=paused, copy_bytes_per_s=copy_bytes_per_s)


def with_patience(topology: Topology, away_after_s: int) -> Topology:
    """The next epoch, with dead nodes waited for longer or shorter.

    Raises:
        TopologyError: out of range.
    """
    return _next(topology, topology.nodes, away_after_s=away_after_s)


def check_topology(topology: Topology) -> None:
    """Validate a whole document; O(nodes).

    Raises:
        TopologyError: the first thing that is wrong.
    """
    _check_head(topology)
    seen: dict[tuple[str, object], str] = {}
    for node in topology.nodes:
        _check_node(node, topology.epoch)
        for field, value, use in (
            ("id", node.id, "id"),
            ("name", node.name, "name"),
            ("address", node.address, "address"),
            ("address", node.http_address, "HTTP address"),
        ):
            if (field, value) in seen:
                taken = seen[field, value]
                raise TopologyError(f"node {node.name!r}: its {use} {value!r} is taken by {taken}")
            seen[field, value] = f"node {node.name!r} as its {use}"
    ids = [node.id for node in topology.nodes]
    if ids != sorted(ids):
        raise TopologyError("nodes are not in the order of their ids")
    seats: dict[NodeId, str] = {}
    for node in topology.nodes:
        if node.state == ACTIVE and seats.setdefault(node.ring_id, node.name) != node.name:
            raise TopologyError(
                f"nodes {seats[node.ring_id]!r} and {node.name!r} have one place on the ring, "
                "because one replaced the other: only one of them can be active"
            )
    if not seats:
        raise TopologyError("no node is active: somebody must own the slots")


def _check_head(topology: Topology) -> None:
    _check_text("the cluster's id", topology.cluster_id, NAME_BYTES_MAX)
    _check_text("the cluster's name", topology.cluster_name, NAME_BYTES_MAX)
    if not 1 <= topology.epoch < 2**63:
        raise TopologyError(f"epoch {topology.epoch} is not between 1 and 2**63 - 1")
    count = topology.slot_count
    if not 1 <= count <= SLOT_COUNT_MAX or count & (count - 1):
        raise TopologyError(f"slot count {count} is not a power of two from 1 to {SLOT_COUNT_MAX}")
    if not 1 <= topology.replicas <= REPLICAS_MAX:
        raise TopologyError(f"{topology.replicas} replicas are not between 1 and {REPLICAS_MAX}")
    rate = topology.copy_bytes_per_s
    if rate and not COPIES_PER_SECOND_BYTES_MIN <= rate < 2**63:
        raise TopologyError(
            f"copies at {rate} bytes/s: it must be 0 (no limit) or at least "
            f"{COPIES_PER_SECOND_BYTES_MIN}"
        )
    if not 0 <= topology.away_after_s <= AWAY_AFTER_SECONDS_MAX:
        raise TopologyError(
            f"dead nodes are away after {topology.away_after_s} s: it must be 0 (never) to "
            f"{AWAY_AFTER_SECONDS_MAX}"
        )
    if not 1 <= len(topology.nodes) <= NODES_MAX:
        raise TopologyError(f"{len(topology.nodes)} nodes are not between 1 and {NODES_MAX}")


def _check_node(node: Node, epoch: int) -> None:
    who = f"node {node.name!r}"
    if not 1 <= node.id < 2**NODE_ID_BITS:
        raise TopologyError(f"{who}: id {node.id} is not between 1 and 2**{NODE_ID_BITS} - 1")
    _check_text(f"{who}: its name", node.name, NAME_BYTES_MAX)
    _check_address(f"{who}: its address", node.address)
    _check_address(f"{who}: its HTTP address", node.http_address)
    if node.zone:
        _check_text(f"{who}: its zone", node.zone, NAME_BYTES_MAX)
    if not NODE_WEIGHT_MIN <= node.weight <= NODE_WEIGHT_MAX:  # also refuses NaN
        raise TopologyError(
            f"{who}: weight {node.weight} is not between {NODE_WEIGHT_MIN} and {NODE_WEIGHT_MAX}"
        )
    if not 1 <= node.joined <= epoch:
        raise TopologyError(f"{who}: it joined in epoch {node.joined}, which is not 1 to {epoch}")
    if not 0 <= node.seat < 2**NODE_ID_BITS:
        raise TopologyError(f"{who}: seat {node.seat} is not below 2**{NODE_ID_BITS}")
    if node.state not in STATES:
        raise TopologyError(f"{who}: state {node.state!r} is none of {', '.join(STATES)}")


def _check_text(what: str, text: str, bytes_max: int) -> None:
    if not text:
        raise TopologyError(f"{what} is empty")
    if not text.isprintable() or " " in text:  # also refuses lone surrogates
        raise TopologyError(f"{what} {text!r} has characters that cannot be printed, or a space")
    if len(text.encode()) > bytes_max:
        raise TopologyError(f"{what} {text!r} is longer than {bytes_max} bytes")


def _check_address(what: str, address: str) -> None:
    """Every node will dial it: one that cannot even be tried must not get in."""
    _check_text(what, address, ADDRESS_BYTES_MAX)
    form = _ADDRESS.fullmatch(address)
    if address in NOWHERE:
        return
    if form is None or not 1 <= int(form[1]) <= 65_535:
        raise TopologyError(f"{what} {address!r} is not host:port (IPv6 in brackets)")


def _member(topology: Topology, node_id: NodeId) -> Node:
    node = topology.node(node_id)
    if node is None:
        raise TopologyError(f"node {node_id} is not in cluster {topology.cluster_name!r}")
    return node


def _replaced(topology: Topology, node_id: NodeId, **changes: object) -> Topology:
    changed = msgspec.structs.replace(_member(topology, node_id), **changes)
    others = (node for node in topology.nodes if node.id != node_id)
    return _next(topology, (*others, changed))


def _next(topology: Topology, nodes: Iterable[Node], **changes: object) -> Topology:
    ordered = tuple(sorted(nodes, key=lambda node: node.id))
    changed = msgspec.structs.replace(topology, epoch=topology.epoch + 1, nodes=ordered, **changes)
    check_topology(changed)
    return changed
