"""How a node stays at the newest topology (rule 17).

::

    gossip says "epoch 7", here is 6 ──> TopologyQuery to who said so ──> TopologyDocument ─┐
    the record of the system slot here is another one ──> read it through its primary ──────┤
    a change that this node has made ───────────────────────────────────────────────────────┴> adopt

Every gossip frame carries its sender's epoch and nothing more, so it costs the same in the largest
cluster, and who sent it is who has it. Only *committed* documents are ever handed on, so equal
epochs are equal documents. A voter sees a change in its own copy of the slot; it asks the primary,
because its copy may hold what never commits.

To adopt is: note it on the disk, tell the node at once (links, gossip), then compute the owners
of all slots, which takes most of a second in a large cluster and is therefore done aside, and hand
them to the core. None of this is urgent or has to be complete: an old topology proposes old places,
no more.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, Protocol

from cluster.moves import WALK_MS
from cluster.records import record_version
from cluster.system_slot import owners
from cluster.topology import ACTIVE, TopologyError, decode_topology
from kvstore.errors import Unavailable
from kvstore.log import get_logger
from kvstore.node.tasks import background

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from cluster.ballot import NodeId
    from cluster.topology import Topology
    from kvstore.node.clock import Clock
    from kvstore.node.topology_record import Stored

log = get_logger(__name__)

LOOK_INTERVAL_S: Final = 0.5
"""How often a voter compares its copy of the record, by its version alone."""

ASK_AGAIN_MS: Final = 1_000
"""An answer that has not come by then is asked for again, from whoever gossips next."""

PLACE_AFTER_START_MS: Final = 3_000
"""A node that starts has better things to do for so long than to think about moving slots."""

READ_TIMEOUT_MS: Final = 2_000

Aside = Any
"""``async (function, *arguments) -> result`` that does not hold up the loop:
`kvstore.node.aside.aside`, or, in a simulation, a plain call."""


class Host(Protocol):
    """What spreading needs of its node."""

    def adopt(self, topology: Topology) -> None:
        """This is the newest topology now."""

    def set_owners(self, owners: Sequence[tuple[NodeId, ...]]) -> None:
        """These are its owners, of every slot."""

    def ask_for_topology(self, node: NodeId) -> bool:
        """Ask a peer for its document; False if there is no link to it."""

    def topology_here(self) -> bytes | None:
        """The record in this node's own copy of the system slot, if it has one."""


class Spreading:
    """Keeps one node at the newest topology.

    Args:
        topology: With which it starts.
        host: The node.
        read: The committed document (`TopologyRecord.read`).
        aside: See `Aside`.
        clock: For timers.
    """

    def __init__(
        self,
        topology: Topology,
        host: Host,
        read: Callable[[int], Awaitable[Stored]],
        aside: Aside,
        clock: Clock,
    ) -> None:
        self.topology = topology
        self._host = host
        self._read = read
        self._aside = aside
        self._clock = clock
        self._wake = asyncio.Event()
        self._offered: bytes | None = None
        self._changed: Topology | None = None
        self._placed_epoch = 0
        self._placed: Topology | None = None
        """The one whose owners the core knows."""
        self._placed_ms = -WALK_MS
        self._place_from_ms = 0
        self._asked_ms = -ASK_AGAIN_MS
        self._seen_here = b""
        """Version of the own copy's record that was looked at last."""
        self._task: asyncio.Task[None] | None = None

    def start(self, *, placed: bool) -> None:
        """Begin; ``placed``: the core has this topology's owners already."""
        self._placed_epoch = self.topology.epoch if placed else 0
        self._placed = self.topology if placed else None
        self._place_from_ms = self._clock.now_ms() + (0 if placed else PLACE_AFTER_START_MS)
        self._task = background(self._run(), "topology")

    @property
    def is_placed(self) -> bool:
        """Whether the core has looked at every slot with the newest topology's owners in hand."""
        placed = self._placed
        if placed is None or self._clock.now_ms() - self._placed_ms < 2 * WALK_MS:
            return False
        return placed is self.topology or _what_places(placed) == _what_places(self.topology)

    def heard(self, sender: NodeId, epoch: int) -> None:
        """A peer gossips that it is at this epoch."""
        now_ms = self._clock.now_ms()
        if (
            epoch > self.topology.epoch
            and now_ms - self._asked_ms >= ASK_AGAIN_MS
            and self._host.ask_for_topology(sender)
        ):
            self._asked_ms = now_ms

    def offered(self, document: bytes) -> None:
        """A peer sends its document; looked at when this turn of the loop is over."""
        self._offered = document
        self._wake.set()

    def changed(self, topology: Topology) -> None:
        """This node knows that this one is committed."""
        if self._changed is None or topology.epoch > self._changed.epoch:
            self._changed = topology
            self._wake.set()

    async def _run(self) -> None:
        while True:
            try:
                async with asyncio.timeout(LOOK_INTERVAL_S):
                    await self._wake.wait()
            except TimeoutError:
                await self._look_here()
            self._wake.clear()
            document, self._offered = self._offered, None
            if document is not None:
                await self._take(document)
            changed, self._changed = self._changed, None
            if changed is not None:
                self._adopt(changed)
            is_time = self._clock.now_ms() >= self._place_from_ms
            if is_time and self._placed_epoch < self.topology.epoch:
                await self._place()

    async def _take(self, document: bytes) -> None:
        """A document of a peer."""
        try:
            topology = await self._aside(decode_topology, document)
        except TopologyError as error:
            log.error("a peer sent a topology that is none", error=str(error))
            return
        self._asked_ms = -ASK_AGAIN_MS
        self._adopt(topology)

    def _adopt(self, topology: Topology) -> None:
        mine = self.topology
        if topology.epoch <= mine.epoch:
            return
        if (topology.cluster_id, topology.slot_count) != (mine.cluster_id, mine.slot_count):
            log.error("a topology of another cluster was offered", cluster=topology.cluster_name)
            return
        self.topology = topology
        log.info("topology", epoch=topology.epoch, nodes=len(topology.nodes))
        self._host.adopt(topology)

    async def _place(self) -> None:
        """Owners for the newest topology; it may be a newer one when they are known."""
        topology, placed = self.topology, self._placed
        self._placed_epoch = topology.epoch
        if placed is not None and _what_places(placed) == _what_places(topology):
            return
        found = await self._aside(owners, topology)
        if topology is self.topology:
            self._placed, self._placed_ms = topology, self._clock.now_ms()
            self._host.set_owners(found)
        else:
            self._wake.set()

    async def _look_here(self) -> None:
        """If this node's own copy of the record has changed, find out whether it is committed."""
        record = self._host.topology_here()
        if record is None or record_version(record) == self._seen_here:
            return
        try:
            stored = await self._read(READ_TIMEOUT_MS)
        except Unavailable as error:
            log.warning("the topology cannot be read now", error=str(error))
            return
        if record_version(record) <= stored.version:  # above it is what has not committed yet
            self._seen_here = record_version(record)
        self.changed(stored.topology)

    async def close(self) -> None:
        """Stop."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)


def _what_places(topology: Topology) -> tuple[object, ...]:
    """All that the owners of slots depend on: whoever leaves has no part in it any more."""
    return topology.replicas, *(
        (node.id, node.ring_id, node.zone, node.weight)
        for node in topology.nodes
        if node.state == ACTIVE
    )
