"""How a node comes by its first topology: from its disk, or by founding a cluster (rule 16).

A disk that has a topology was founded, and never founds again; its topology may be old, which
mends itself once the node is up (`kvstore.node.spreading`).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from cluster.topology import Topology, decode_topology, with_addresses
from kvstore.errors import SetupError
from kvstore.node.founding import Founder, make_founding
from kvstore.node.recovery import stored_topology

if TYPE_CHECKING:
    from random import Random

    from cluster.topology import Node as Member
    from kvstore.storage.engine import Engine
    from kvstore.wire.protocol import Founding, Hello


class Arrival:
    """One node's way in.

    Args:
        me: The node as it was started, with the member id of its disk.
        cluster_name: As the person typed it.
        engine: Its store.
        founders: Addresses that found the cluster together; empty for a cluster of one.
        slot_count: Of a cluster that is founded.
        replicas: Of a cluster that is founded.
        rng: Draws the cluster's id.
    """

    def __init__(
        self,
        me: Member,
        cluster_name: str,
        engine: Engine,
        *,
        founders: tuple[str, ...],
        slot_count: int,
        replicas: int,
        rng: Random,
    ) -> None:
        self._me = me
        self._cluster_name = cluster_name
        self._engine = engine
        self._founders = founders
        self._slot_count = slot_count
        self._replicas = replicas
        self._rng = rng
        self._adopted: asyncio.Future[Topology] = asyncio.get_running_loop().create_future()

    def stored(self) -> Topology | None:
        """What the disk says, if it was in a cluster before.

        Raises:
            SetupError: it belongs to another cluster, or has another address now.
        """
        topology = stored_topology(self._engine)
        if topology is None:
            return None
        if topology.cluster_name != self._cluster_name:
            raise SetupError(
                f"the data directory belongs to cluster {topology.cluster_name!r}, not "
                f"{self._cluster_name!r}: choose another --data-dir or --cluster"
            )
        return self._at_its_addresses(topology)

    async def found(self, hello: Hello) -> Topology:
        """The founding document.

        Raises:
            SetupError: the cluster was founded without this disk.
        """
        founder = Founder(
            self._me,
            self._cluster_name,
            self._founders,
            hello,
            slot_count=self._slot_count,
            replicas=self._replicas,
            rng=self._rng,
        )
        return await founder.found(self._adopted)

    def on_founding(self, founding: Founding, topology: Topology | None) -> Founding:
        """Somebody founds, or asks whether this node is founded; ``topology`` is its own.

        Raises:
            TopologyError: what is offered is no topology.
        """
        if founding.topology and topology is None and not self._adopted.done():
            offered = decode_topology(founding.topology)
            if offered.node(self._me.id) is not None:
                self._adopted.set_result(offered)
        return make_founding(topology, self._me)

    def _at_its_addresses(self, topology: Topology) -> Topology:
        """The topology with this node as it was started; only a cluster of one may have moved."""
        listed = topology.node(self._me.id)
        if listed is None:
            raise SetupError(
                f"the data directory's cluster does not list member {self._me.id:012x}"
            )
        mine = (self._me.address, self._me.http_address)
        if mine == (listed.address, listed.http_address):
            return topology
        if len(topology.nodes) == 1:
            return with_addresses(topology, self._me.id, *mine)
        raise SetupError(
            f"the cluster knows this node at {listed.address} (HTTP {listed.http_address}), but it "
            f"was started at {mine[0]} (HTTP {mine[1]}): start it with the ports that it had"
        )
