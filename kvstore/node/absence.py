"""A node looks after those that are dead for long, and says itself when it is back.

What is decided, and when, is `cluster.absence`. Here is the node that has to be asked: whom gossip
believes dead, whether this node leads the system slot, and how the topology is changed.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from cluster.absence import Absences
from cluster.members import MemberState
from cluster.membership import Away, Back
from cluster.topology import AWAY, TopologyError
from kvstore.errors import KVError
from kvstore.log import get_logger
from kvstore.node.tasks import background

if TYPE_CHECKING:
    from kvstore.node.node import Node

log = get_logger(__name__)

LOOK_INTERVAL_S: Final = 1.0

CHANGE_TIMEOUT_MS: Final = 5_000


class Absence:
    """Of one node."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._absences = Absences()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look."""
        self._task = background(self._run(), "absence")

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(LOOK_INTERVAL_S)
            change = self._due()
            if change is None:
                continue
            try:
                await self._node.membership.change(change, CHANGE_TIMEOUT_MS)
            except (TopologyError, KVError) as error:  # looked at again in a second
                log.warning("the topology stays", change=repr(change), error=str(error))

    def _due(self) -> Away | Back | None:
        """What this node should see to now."""
        node = self._node
        topology = node.topology
        me = topology.node(node.id) if topology is not None else None
        if topology is None or me is None:
            return None
        if me.state == AWAY:
            log.info("this node was away and is back", node=me.name)
            return Back(f"{me.id:012x}")
        gone = (MemberState.DEAD, MemberState.LEFT)
        known = node.gossip.swim.members()
        dead = {other for other, member in known.items() if member.state in gone}
        found = self._absences.look(topology, dead, node.clock.now_ms())
        if found is None or node.table.leader_of(topology.system_slot) != node.id:
            return None
        log.warning(
            "a node stays dead: its slots go to the others",
            peer=found.name,
            after_s=topology.away_after_s,
        )
        return Away(f"{found.id:012x}")

    async def close(self) -> None:
        """Stop looking."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
