"""How a node comes by its first topology: from its disk, by founding, or by joining (rule 16).

A disk that has a topology is in a cluster, and neither founds nor joins again; its topology may be
old, which mends itself once the node is up (`kvstore.node.spreading`). A fresh disk founds with the
others that it was told of, or asks any member to be taken in: that member changes the topology, and
gives the newcomer the one that it is in.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from cluster.membership import Join
from cluster.operations import Code
from cluster.topology import Topology, decode_topology, with_addresses
from kvstore.errors import SetupError
from kvstore.log import get_logger
from kvstore.node.founding import Founder, ask, make_founding
from kvstore.node.recovery import stored_topology
from kvstore.wire.protocol import ChangeTopology, TopologyChanged

if TYPE_CHECKING:
    from random import Random

    from cluster.topology import Node as Member
    from kvstore.storage.engine import Engine
    from kvstore.wire.protocol import Founding, Hello

log = get_logger(__name__)

JOIN_TIMEOUT_S: Final = 15.0
"""More than a member takes to change the topology or to say that it cannot."""

JOIN_AGAIN_S: Final = 1.0


class Arrival:
    """One node's way in.

    Args:
        me: The node as it was started, with the member id of its disk.
        cluster_name: As the person typed it.
        engine: Its store.
        founders: Addresses that found the cluster together; empty for a cluster of one.
        join: Addresses of members, to be taken in by one of them.
        replaces: The member whose place it takes; empty for a place of its own.
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
        join: tuple[str, ...],
        replaces: str,
        slot_count: int,
        replicas: int,
        rng: Random,
    ) -> None:
        self._me = me
        self._cluster_name = cluster_name
        self._engine = engine
        self._founders = founders
        self._join = join
        self._replaces = replaces
        self._slot_count = slot_count
        self._replicas = replicas
        self._rng = rng
        self.moved = False
        """Whether the topology has yet to be told of this node's addresses."""
        self._adopted: asyncio.Future[Topology] = asyncio.get_running_loop().create_future()

    def stored(self) -> Topology | None:
        """What the disk says, if it was in a cluster before.

        Raises:
            SetupError: it belongs to another cluster, or has another address now.
        """
        topology = stored_topology(self._engine)
        if topology is None or (self._join and topology.node(self._me.id) is None):
            return None
        if topology.cluster_name != self._cluster_name:
            raise SetupError(
                f"the data directory belongs to cluster {topology.cluster_name!r}, not "
                f"{self._cluster_name!r}: choose another --data-dir or --cluster"
            )
        return self._at_its_addresses(topology)

    async def arrive(self, hello: Hello) -> tuple[Topology, bool]:
        """The topology of a disk that has none, and whether it was founded with this node.

        Raises:
            SetupError: the cluster does not take it in, or was founded without this disk.
        """
        if self._join:
            return await self._be_taken_in(hello), False
        return await self._found(hello), True

    async def _be_taken_in(self, hello: Hello) -> Topology:
        question = ChangeTopology(1, Join(self._me, self._replaces))
        told = ""
        while True:
            reasons = []
            for address in self._join:
                try:
                    answer = await ask(address, hello, question, timeout_s=JOIN_TIMEOUT_S)
                except (OSError, TimeoutError) as error:
                    reasons.append(f"{address}: {str(error) or 'no answer'}")
                    continue
                if not isinstance(answer, TopologyChanged):
                    raise SetupError(f"the node at {address} answers nonsense")
                if answer.failed is None:
                    return decode_topology(answer.topology)
                detail = answer.failed.detail
                if answer.failed.code is Code.BAD_REQUEST:
                    raise SetupError(f"the cluster does not take this node in: {detail}")
                reasons.append(f"{address}: {detail}")
            if (told_now := "; ".join(reasons)) != told:
                told = told_now
                log.info("waiting to join", because=told)
            await asyncio.sleep(JOIN_AGAIN_S * self._rng.uniform(0.5, 1.0))

    async def _found(self, hello: Hello) -> Topology:
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
                f"this node was taken out of cluster {topology.cluster_name!r} (member "
                f"{self._me.id:012x}, epoch {topology.epoch}); its data is still there. To come "
                "back, start it with --join HOST:PORT of a member; to start afresh, empty the data "
                "directory"
            )
        mine = (self._me.address, self._me.http_address)
        if mine == (listed.address, listed.http_address):
            return topology
        if len(topology.nodes) == 1:
            self.moved = True
            return with_addresses(topology, self._me.id, *mine)
        raise SetupError(
            f"the cluster knows this node at {listed.address} (HTTP {listed.http_address}), but it "
            f"was started at {mine[0]} (HTTP {mine[1]}): start it with the ports that it had"
        )
