"""What may be asked of a topology, one record per meaning, and what becomes of it.

A change is data: it travels from the operator's command to any node, which applies it to the newest
document and puts the result in its place (rule 17). If another change came first it is applied
again, to the document that this one made; so a change says what is meant ("n3 leaves") and never
what the document should look like. What is true already is no error and no new epoch: a command may
be repeated.

A change is refused with the reason and with what to do instead. ``force`` is for those refusals
that protect the operator from losing copies, never for what would make no sense.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

import msgspec

from cluster.absence import check_spared
from cluster.topology import (
    ACTIVE,
    AWAY,
    LEAVING,
    Node,
    Topology,
    TopologyError,
    with_addresses,
    with_node,
    with_pace,
    with_patience,
    with_replicas,
    with_state,
    with_weight,
    with_zone,
    without_node,
)

if TYPE_CHECKING:
    from cluster.ballot import NodeId


class Join(msgspec.Struct, frozen=True, tag="join", forbid_unknown_fields=True):
    """A node comes in, in the place of ``replaces`` if that is given.

    The replaced node leaves. If the newcomer has its name or an address, it has its machine too and
    a new disk, so the old one is taken out at once.
    """

    node: Node
    replaces: str = ""


class Leave(msgspec.Struct, frozen=True, tag="leave", forbid_unknown_fields=True):
    """A node is to be drained; it takes itself out when it holds nothing any more."""

    node: str
    force: bool = False


class Stay(msgspec.Struct, frozen=True, tag="stay", forbid_unknown_fields=True):
    """A node that leaves is to stay after all."""

    node: str


class Remove(msgspec.Struct, frozen=True, tag="remove", forbid_unknown_fields=True):
    """A node is out: it has been drained, or (``force``) it will never come back."""

    node: str
    force: bool = False


class Move(msgspec.Struct, frozen=True, tag="move", forbid_unknown_fields=True):
    """A node answers at other addresses."""

    node: str
    address: str
    http_address: str


class Weigh(msgspec.Struct, frozen=True, tag="weight", forbid_unknown_fields=True):
    """A node takes another share."""

    node: str
    weight: float


class Rezone(msgspec.Struct, frozen=True, tag="zone", forbid_unknown_fields=True):
    """A node stands in another zone; empty for none."""

    node: str
    zone: str


class Replicate(msgspec.Struct, frozen=True, tag="replicas", forbid_unknown_fields=True):
    """Every slot is kept in another number of copies."""

    replicas: int


class Pace(msgspec.Struct, frozen=True, tag="pace", forbid_unknown_fields=True):
    """Slots are moved at another pace; None leaves as it is. 0 bytes: as fast as it goes."""

    paused: bool | None = None
    copy_bytes_per_s: int | None = None


class Patience(msgspec.Struct, frozen=True, tag="patience", forbid_unknown_fields=True):
    """Dead nodes are waited for so many seconds before others take their slots; 0: for ever."""

    away_after_s: int


class Away(msgspec.Struct, frozen=True, tag="away", forbid_unknown_fields=True):
    """An active node has been dead for too long: it owns nothing until it is back."""

    node: str


class Back(msgspec.Struct, frozen=True, tag="back", forbid_unknown_fields=True):
    """A node that was away says that it is back: it owns its share again."""

    node: str


TopologyChange = (
    Join | Leave | Stay | Remove | Move | Weigh | Rezone | Replicate | Pace | Patience | Away | Back
)
"""Everything that may be asked."""


def apply_change(topology: Topology, change: TopologyChange) -> Topology:
    """The next epoch, or the same document if it is so already.

    Raises:
        TopologyError: the change is refused; the message says why and what to do.
    """
    changed = _applied(topology, change)
    before = msgspec.structs.replace(topology, epoch=changed.epoch)
    return topology if changed == before else changed


def find_node(topology: Topology, text: str) -> Node:
    """The node with this name, member id (12 hex digits) or address.

    Raises:
        TopologyError: there is none.
    """
    for node in topology.nodes:
        if text in (node.name, f"{node.id:012x}", node.address, node.http_address):
            return node
    names = ", ".join(node.name for node in topology.nodes[:20])
    raise TopologyError(
        f"no node of cluster {topology.cluster_name!r} is {text!r}; there are {names}"
        + (" and others" if len(topology.nodes) > 20 else "")
    )


def _applied(topology: Topology, change: TopologyChange) -> Topology:
    match change:
        case Join():
            return _join(topology, change)
        case Leave(node=name, force=force):
            node = find_node(topology, name)
            if node.state == ACTIVE and not force:
                _check_enough(topology, node)
            return with_state(topology, node.id, LEAVING)
        case Stay(node=name):
            return with_state(topology, find_node(topology, name).id, ACTIVE)
        case Remove(node=name, force=force):
            return _remove(topology, find_node(topology, name), force=force)
        case Move(node=name, address=address, http_address=http_address):
            return with_addresses(topology, find_node(topology, name).id, address, http_address)
        case Weigh(node=name, weight=weight):
            return with_weight(topology, find_node(topology, name).id, weight)
        case Rezone(node=name, zone=zone):
            return with_zone(topology, find_node(topology, name).id, zone)
        case Replicate(replicas=replicas):
            return _replicate(topology, replicas)
        case Pace(paused=paused, copy_bytes_per_s=rate):
            return with_pace(
                topology,
                paused=topology.paused if paused is None else paused,
                copy_bytes_per_s=topology.copy_bytes_per_s if rate is None else rate,
            )
        case Patience(away_after_s=seconds):
            return with_patience(topology, seconds)
        case Away(node=name):
            return _away(topology, find_node(topology, name))
        case Back(node=name):
            node = find_node(topology, name)
            return with_state(topology, node.id, ACTIVE) if node.state == AWAY else topology
        case _:
            assert_never(change)


def _join(topology: Topology, join: Join) -> Topology:
    node = join.node
    known = topology.node(node.id)
    if known is not None and (known.name, known.address) == (node.name, node.address):
        return topology
    if not join.replaces:
        _check_not_wiped(topology, node)
        return with_node(topology, _newcomer(node, seat=0))
    old = find_node(topology, join.replaces)
    newcomer = _newcomer(node, seat=old.ring_id)
    mine = {node.name, node.address, node.http_address}
    others = [other for other in topology.nodes if other.id != old.id]
    if mine.isdisjoint((old.name, old.address, old.http_address)):
        others.append(msgspec.structs.replace(old, state=LEAVING))
    return with_node(msgspec.structs.replace(topology, nodes=tuple(others)), newcomer)


def _newcomer(node: Node, *, seat: NodeId) -> Node:
    """A joining node is active from now on, whatever it says."""
    return msgspec.structs.replace(node, state=ACTIVE, seat=0 if seat == node.id else seat)


def _check_not_wiped(topology: Topology, node: Node) -> None:
    """A member's name and address with another id: that member's disk is new."""
    twin = topology.named(node.name)
    if twin is not None and twin.id != node.id and twin.address == node.address:
        raise TopologyError(
            f"node {node.name!r} at {node.address} is a member already, with another disk (member "
            f"{twin.id:012x}, this disk is {node.id:012x}). If that disk is lost, take its place "
            f"with --replace {node.name}"
        )


def _away(topology: Topology, node: Node) -> Topology:
    if node.state != ACTIVE:
        return topology
    check_spared(topology, node)
    return with_state(topology, node.id, AWAY)


def _remove(topology: Topology, node: Node, *, force: bool) -> Topology:
    if node.state == ACTIVE and not force:
        raise TopologyError(
            f"node {node.name!r} has not left: let it leave first, so that its slots move away. If "
            "it will never come back, force its removal"
        )
    return without_node(topology, node.id)


def _check_enough(topology: Topology, node: Node) -> None:
    """Whether a slot can still have all of its copies without this node."""
    left = sum(other.state == ACTIVE for other in topology.nodes) - 1
    if left < topology.replicas:
        raise TopologyError(
            f"if node {node.name!r} leaves, {left} nodes are left for {topology.replicas} copies "
            "of each key. Add a node first, or lower the number of replicas; if it is forced to "
            f"leave, {left} copies are kept until a node joins"
        )


def _replicate(topology: Topology, replicas: int) -> Topology:
    active = sum(node.state == ACTIVE for node in topology.nodes)
    if replicas > max(active, topology.replicas):
        raise TopologyError(
            f"{replicas} copies need as many nodes, there are {active}: add nodes first"
        )
    return with_replicas(topology, replicas)
