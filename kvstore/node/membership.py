"""The cluster as this node is in it: how it came in, how its topology changes, how it goes.

`Arrival` finds the first topology, `Spreading` what the newest is, `Changes` makes newer ones,
`Departure` takes a node that leaves out in the end, `Absence` looks after dead ones. This gives
them their node, answers the port's questions about the topology, and carries into the node what a
new one means: on the disk, for links and gossip, for what the core moves where.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cluster.membership import Move
from cluster.operations import Code, Failed, Found, Get
from cluster.system_slot import TOPOLOGY_KEY
from cluster.topology import encode_topology
from kvstore.errors import Unavailable
from kvstore.log import get_logger
from kvstore.node.absence import Absence
from kvstore.node.changes import Changes
from kvstore.node.departure import Departure
from kvstore.node.recovery import store_arrival, store_topology
from kvstore.node.spreading import Spreading
from kvstore.node.topology_record import TopologyRecord
from kvstore.wire.protocol import ChangeTopology, TopologyChanged, TopologyQuery

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from random import Random

    from cluster.ballot import NodeId
    from cluster.membership import TopologyChange
    from cluster.topology import Topology
    from kvstore.node.arrival import Arrival
    from kvstore.node.node import Node
    from kvstore.node.spreading import Aside
    from kvstore.wire.protocol import Founding, Hello

log = get_logger(__name__)

_NOT_FOUNDED = Failed(
    Code.UNAVAILABLE, "this node waits for the other founders of its cluster; try again", 200
)
_NO_MEMBER = Failed(
    Code.UNAVAILABLE, "this node is no member of the cluster any more; ask another one", 200
)


class Membership:
    """Of one node.

    Args:
        node: Whose parts are used once it is assembled.
        arrival: How it comes by its first topology.
        aside: See `kvstore.node.spreading.Aside`.
        rng: For ids and jitter.
    """

    def __init__(self, node: Node, arrival: Arrival, aside: Aside, rng: Random) -> None:
        self._node = node
        self._arrival = arrival
        self._aside = aside
        self._rng = rng
        self.record = TopologyRecord(node.submit, node.clock, rng)
        self._departure = Departure(node)
        self._absence = Absence(node)
        self._spreading: Spreading | None = None
        self._changes: Changes | None = None

    # -- coming and going ------------------------------------------------------------------------

    @property
    def is_founded(self) -> bool:
        """Whether its disk knows its cluster, so that it can start before anybody asks it."""
        return self._arrival.stored() is not None

    async def arrive(self, hello: Hello) -> tuple[Topology, bool]:
        """The first topology, and whether it is founded with this node just now.

        Raises:
            SetupError: the cluster refuses this node, or the disk belongs to another one.
        """
        topology = self._arrival.stored()
        if topology is not None:
            return topology, False
        topology, founding = await self._arrival.arrive(hello)
        if not founding:
            store_arrival(self._node.engine, topology)
        return topology, founding

    def start(self, topology: Topology, *, founded: bool) -> None:
        """Begin to follow the topology; ``founded``: the slots are where it wants them."""
        node = self._node
        self._spreading = Spreading(topology, self, self.record.read, self._aside, node.clock)
        self._changes = Changes(self.record, self.changed, node.clock, self._rng)
        self._spreading.start(placed=founded)
        self._departure.consider()
        self._absence.start()
        self._set_pace(topology)
        me = topology.node(node.id)
        if self._arrival.moved and me is not None:
            move = ChangeTopology(0, Move(f"{me.id:012x}", me.address, me.http_address))
            self._changes.take(move, lambda told: log.info("addresses told", failed=told.failed))

    async def close(self) -> None:
        """Stop."""
        await self._departure.close()
        await self._absence.close()
        if self._changes is not None and self._spreading is not None:
            await self._changes.close()
            await self._spreading.close()

    # -- what the port asks ----------------------------------------------------------------------

    def not_serving(self) -> Failed | None:
        """Why nothing is carried out here: it is not founded yet, or no member any more."""
        if self._node.topology is None:
            return _NOT_FOUNDED
        return None if self._node.knows(self._node.id) else _NO_MEMBER

    def is_placed(self) -> bool:
        """Whether what is left to move is known by the newest topology."""
        if self._spreading is None or not self._spreading.is_placed:
            return False
        return self._node.table.moves.is_surveyed

    def epoch(self) -> int:
        """Of the newest topology that this node knows; 0 before the cluster is founded."""
        return self._node.topology.epoch if self._node.topology is not None else 0

    def document(self) -> bytes:
        """The newest topology; empty before the cluster is founded."""
        return encode_topology(self._node.topology) if self._node.topology is not None else b""

    def on_founding(self, founding: Founding) -> Founding:
        """Somebody founds, or asks whether this node is founded.

        Raises:
            TopologyError: what is offered is no topology.
        """
        return self._arrival.on_founding(founding, self._node.topology)

    def heard(self, sender: NodeId, epoch: int) -> None:
        """A peer gossips that it is at this epoch."""
        if self._spreading is not None:
            self._spreading.heard(sender, epoch)

    def offered(self, document: bytes) -> None:
        """A peer sends its topology."""
        if self._spreading is not None:
            self._spreading.offered(document)

    def on_change(self, asked: ChangeTopology, reply: Callable[[TopologyChanged], None]) -> None:
        """A change that came over the peer port."""
        not_serving = self.not_serving()
        if not_serving is not None or self._changes is None:
            reply(TopologyChanged(asked.id, b"", not_serving or _NOT_FOUNDED))
        else:
            self._changes.take(asked, reply)

    async def change(self, change: TopologyChange, timeout_ms: int) -> Topology:
        """See `Changes.make`."""
        not_serving = self.not_serving()
        if not_serving is not None or self._changes is None:
            raise Unavailable((not_serving or _NOT_FOUNDED).detail)
        return await self._changes.make(change, timeout_ms)

    def changed(self, topology: Topology) -> None:
        """This one is known to be committed."""
        if self._spreading is not None:
            self._spreading.changed(topology)

    # -- what spreading asks and tells (`kvstore.node.spreading.Host`) -----------------------------

    def ask_for_topology(self, node: NodeId) -> bool:
        """Over the data link; the answer comes back over it too."""
        return self._node.peers.send(node, TopologyQuery())

    def topology_here(self) -> bytes | None:
        """The record in this node's copy of the system slot."""
        topology = self._node.topology
        assert topology is not None
        found = self._node.table.read_replica(topology.system_slot, Get(TOPOLOGY_KEY))
        return found.record if isinstance(found, Found) else None

    def adopt(self, topology: Topology) -> None:
        """From now on this one counts."""
        node = self._node
        node.topology = topology
        store_topology(node.engine, node.commit, topology)
        node.core.wake()
        if topology.node(node.id) is None:
            log.warning("this node is no member any more: it may be switched off, its data stays")
            node.stop_serving()
            return
        node.neighbours.adopt(topology.nodes)
        self._departure.consider()
        self._set_pace(topology)

    def set_owners(self, owners: Sequence[tuple[NodeId, ...]]) -> None:
        """Where the newest topology wants every slot; the core moves those that it leads (R13)."""
        node = self._node
        if self.not_serving() is None:
            node.core.wake()
            node.table.set_owners(owners)

    def _set_pace(self, topology: Topology) -> None:
        moves = self._node.table.moves
        moves.paused = topology.paused
        moves.throttle.set_rate(topology.copy_bytes_per_s or None)
