"""A node that leaves: it is drained by its slots' primaries, and then takes itself out.

Nobody else knows as surely that a node holds nothing any more. Until then it serves what it still
leads; after it, the node keeps running and says that it may be switched off.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from cluster.membership import Remove
from cluster.topology import LEAVING, TopologyError
from kvstore.errors import KVError
from kvstore.log import get_logger
from kvstore.node.tasks import background

if TYPE_CHECKING:
    from kvstore.node.node import Node

log = get_logger(__name__)

LOOK_INTERVAL_S: Final = 0.5

REMOVE_TIMEOUT_MS: Final = 5_000


class Departure:
    """Watches over one node's leave, if there is one."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._task: asyncio.Task[None] | None = None

    def consider(self) -> None:
        """The topology has changed: is this node to leave?"""
        if self._is_leaving() and (self._task is None or self._task.done()):
            log.info("this node leaves: its slots are moved to others", node=self._node.name)
            self._task = background(self._leave(), "departure")

    def _is_leaving(self) -> bool:
        topology = self._node.topology
        listed = topology.node(self._node.id) if topology is not None else None
        return listed is not None and listed.state == LEAVING

    async def _leave(self) -> None:
        remove = Remove(f"{self._node.id:012x}")
        while self._is_leaving():
            await asyncio.sleep(LOOK_INTERVAL_S)
            if any(slot is not None and slot.holds_state for slot in self._node.table.slots):
                continue
            try:
                await self._node.membership.change(remove, REMOVE_TIMEOUT_MS)
            except (TopologyError, KVError) as error:
                log.warning("this node is drained but cannot take itself out", error=str(error))

    async def close(self) -> None:
        """Stop watching."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
