"""The whole node, assembled.

::

    client port ─┐                        ┌─> peers (data, gossip)
    HTTP ────────┼─> router ─> SlotTable ─┼─> storage ─> sync thread
    peers ───────┘      tick (loop.py)    └─> answers

The parts know each other only through what they are given here.
"""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from typing import TYPE_CHECKING

from cluster.scrub import BYTES_PER_S_DEFAULT
from cluster.slot_table import SlotTable
from cluster.swim import Swim
from cluster.swim_settings import SwimSettings
from cluster.system_slot import owners
from kvstore.log import get_logger
from kvstore.node.admission import Admission
from kvstore.node.arrival import Arrival
from kvstore.node.aside import aside
from kvstore.node.clock import SystemClock
from kvstore.node.directory import Directory
from kvstore.node.gathering import Awaited
from kvstore.node.gossip import GossipDriver
from kvstore.node.health import Health
from kvstore.node.loop import CoreLoop
from kvstore.node.membership import Membership
from kvstore.node.neighbours import Neighbours
from kvstore.node.operator import OperatorBoard
from kvstore.node.peers import Peers, make_hello
from kvstore.node.recovery import store_founding, stored_slots
from kvstore.node.router import Router
from kvstore.node.server import Server
from kvstore.node.stalls import Stalls
from kvstore.node.status import StatusBoard
from kvstore.node.watching import Watching
from kvstore.storage.tick_store import TickStore
from kvstore.wire.protocol import (
    PROTOCOL_VERSION,
    Response,
    Welcome,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from cluster.ballot import NodeId
    from cluster.messages import SlotMessage
    from cluster.operations import Failed
    from cluster.swim_messages import GossipMessage
    from cluster.topology import Node as Member
    from cluster.topology import Topology
    from kvstore.node.clock import Clock
    from kvstore.node.gathering import Waiter
    from kvstore.node.spreading import Aside
    from kvstore.node.turning_away import RequestHead
    from kvstore.node.view import MemberStatus, NodeStatus, SlotStatus
    from kvstore.storage.disk_space import DiskSpace
    from kvstore.storage.engine import Engine
    from kvstore.storage.group_commit import Commit
    from kvstore.wire.protocol import Hello, Leads, Request, Routes

log = get_logger(__name__)

TICK_INTERVAL_S = 0.05
"""Timers of the core and the router: takeovers, retries, deadlines."""

RETIRE_S_MAX = 5.0
"""A node that is told to stop takes so long at most to hand its slots over; the rest is taken."""


class Node:
    """One member of a cluster, or an embedded store (a cluster of one without ports).

    Args:
        me: Itself, as the topology lists it; addresses are those that it advertises.
        cluster_name: As the person typed it.
        engine: Open, and its own.
        commit: Makes its batches durable.
        on_refused: Told each refusal of a door, by its kind.
        founders: Addresses that found the cluster together; empty for a cluster of one.
        join: Addresses of members of a cluster, to be taken in by one of them.
        replaces: The member whose place this node takes when it joins.
        clock: The machine's if None.
        rng: For jitter and the cluster's id; seeded by the system if None.
        aside: Computes what would hold up the loop (`kvstore.node.aside`).
    """

    def __init__(
        self,
        me: Member,
        cluster_name: str,
        engine: Engine,
        commit: Commit,
        on_refused: Callable[[str], None],
        *,
        founders: tuple[str, ...] = (),
        join: tuple[str, ...] = (),
        replaces: str = "",
        slot_count: int,
        replicas: int,
        clock: Clock | None = None,
        rng: random.Random | None = None,
        aside: Aside = aside,
        space: DiskSpace | None = None,
        scrub_bytes_per_s: int = BYTES_PER_S_DEFAULT,
    ) -> None:
        self.id = me.id
        self.name = me.name
        self.topology: Topology | None = None
        self.clock = clock or SystemClock()
        self.started_ms = self.clock.now_ms()
        self.admission = Admission(self.clock.now_ms)
        self.stalls = Stalls(self.clock.now_ms)
        self.engine = engine
        self.commit = commit
        self._cluster_name = cluster_name
        self._on_refused = on_refused
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._tick_due = self._loop.time()
        self._retired = asyncio.Event()
        self._rng = rng or random.Random()
        arrival = Arrival(
            me,
            cluster_name,
            engine,
            founders=founders,
            join=join,
            replaces=replaces,
            slot_count=slot_count,
            replicas=replicas,
            rng=self._rng,
        )
        self.membership = Membership(self, arrival, aside, self._rng)
        self.server = Server(self)
        self.neighbours = Neighbours(self)
        self.peers = Peers(
            self._hello,
            self.neighbours.link_up,
            self.neighbours.link_down,
            self.neighbours.caught_up,
            self._on_response,
            self.membership.offered,
            self._rng,
        )
        self.board = StatusBoard(self)
        self.operator = OperatorBoard(self, aside)
        self.health = Health(space, scrub_bytes_per_s, self.board.name_of, self.clock)
        self.store = TickStore(engine)
        self.watching = Watching(self.clock.now_ms)
        self.table: SlotTable
        self.core: CoreLoop
        self.router: Router
        self.directory: Directory
        self.gossip: GossipDriver

    # -- life --------------------------------------------------------------------------------

    async def start(self) -> None:
        """From the disk, by founding or by joining, to a node that takes part.

        Raises:
            SetupError: the cluster refuses it, or the disk belongs to another one.
        """
        topology, founding = await self.membership.arrive(self._hello("node"))
        self._assemble(topology, founding=founding)
        self.gossip.start()
        self._tick()
        self.membership.start(topology, founded=founding)

    async def wait_ready(self) -> None:
        """Until each slot has a primary that this node knows."""
        while self.not_ready_reason():
            self.neighbours.leads_moved.clear()
            await self.neighbours.leads_moved.wait()

    def _assemble(self, topology: Topology, *, founding: bool) -> None:
        now_ms = self.clock.now_ms
        self.topology = topology
        slots = topology.system_slot + 1
        self.directory = Directory(slots)
        self.table = SlotTable(self.id, slots, self.store, self._rng)
        self.core = CoreLoop(
            self.id, self.table, self.store, self.commit, self.neighbours.tell_leads, self.clock
        )
        self.router = Router(
            self.id,
            self.table,
            topology.slot_count,
            self.peers,
            self.core.wake,
            now_ms,
            self.admission,
        )
        self.watching.begin(self.table, topology.slot_count, self.core.wake)
        self.core.peers, self.core.router = self.peers, self.router
        self.core.watching = self.watching
        self.core.health = self.health
        self.core.on_slept = self._slept
        self.health.begin(self.table)
        self.core.wake()
        swim = Swim(self.id, SwimSettings(), self._rng, now_ms())
        self.gossip = GossipDriver(
            swim, self.peers, self.neighbours.member_state, self.membership.epoch, now_ms
        )
        self.neighbours.begin(topology.nodes)
        if founding:
            placed = owners(topology)
            self.table.found(placed)
            self.table.set_owners(placed)
            store_founding(self.engine, self.store, topology, self.id)
        else:
            self.table.restore(stored_slots(self.engine))

    def _tick(self) -> None:
        self.core.wake()
        late_ms = 1_000 * (self._loop.time() - self._tick_due)
        longest_ms = max(late_ms, self.core.longest_ms())
        self.stalls.felt(longest_ms)
        self.table.moves.felt_late(longest_ms)
        self.health.tick()
        self.table.tick()
        self.router.tick()
        self.peers.tick()
        self.watching.tick()
        self.board.tick()
        if self.table.leadership.retired:
            self._retired.set()
        self._tick_due = self._loop.time() + TICK_INTERVAL_S
        self._timer = self._loop.call_at(self._tick_due, self._tick)

    def _slept(self, slept_ms: int) -> None:
        """Thousands of frames wait that were sent to a node that is dead by now.

        To take them one by one held everybody up for a second. What they say is told anew over new
        links, of all slots in bounded numbers, as to a node that restarts (R11, R12).
        """
        broken = self.server.break_links()
        if broken:
            log.warning("this node was frozen", ms=slept_ms, links_broken=broken)

    async def retire(self) -> None:
        """Before a stop: hand all slots over, serving meanwhile, so that nobody notices (R10)."""
        if self._timer is None or not self.peers.names():
            return
        self.core.wake()
        self.table.leadership.retire()
        self._retired.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(RETIRE_S_MAX):
                await self._retired.wait()
        left = sum(1 for _ in self.table.led())
        log.info("retired", node=self.name, slots_left=left)

    async def close(self) -> None:
        """Stop cleanly: what is acknowledged is durable already; leave and let go of everything."""
        if self._timer is not None:
            self._timer.cancel()
        if self.topology is not None:
            await self.membership.close()
            self.gossip.close()
            self.core.close()
        await self.server.close()
        await self.peers.close()
        await self.commit.close()
        self.engine.close()

    # -- links --------------------------------------------------------------------------

    def _hello(self, role: str) -> Hello:
        cluster_id = self.topology.cluster_id if self.topology is not None else ""
        return make_hello(role, cluster_id, self._cluster_name, self.id, self.name)

    def _on_response(self, response: Response) -> None:
        self.router.on_response(response)
        self.core.wake()

    def stop_serving(self) -> None:
        """This node is no member any more: it keeps its data and does nothing with it."""
        self.gossip.close()
        self.neighbours.part_from_all()
        self.router.stop()
        self.core.close()
        if self._timer is not None:
            self._timer.cancel()

    # -- what the server hands on (`kvstore.node.server.Host`) -----------------------------------

    def welcome(self) -> Welcome:
        """This node's side of the handshake."""
        cluster_id = self.topology.cluster_id if self.topology is not None else ""
        return Welcome(PROTOCOL_VERSION, cluster_id, self._cluster_name, self.id, self.name)

    def knows(self, node: NodeId) -> bool:
        """Whether the topology lists this node."""
        return self.neighbours.knows(node)

    def heard_from(self, node: NodeId) -> None:
        """For the links: there is somebody to dial."""
        self.peers.heard_from(node)

    def on_slot_messages(self, sender: NodeId, messages: list[SlotMessage]) -> None:
        """For the core."""
        self.core.receive(sender, messages)

    def on_gossip(self, sender: NodeId, message: GossipMessage, epoch: int) -> None:
        """For the failure detector."""
        self.gossip.receive(sender, message)
        self.membership.heard(sender, epoch)

    def on_leads(self, sender: NodeId, leads: Leads) -> None:
        """For the directory, the core and whatever waits for a leader."""
        self.neighbours.on_leads(sender, leads)

    def is_full(self) -> bool:
        """What comes now is refused, as a rule."""
        return self.admission.requests >= self.admission.limit

    def refusal(self, request: Request | RequestHead) -> Failed | None:
        """What is over the limits is refused before any work, and counted."""
        refusal = self.admission.refusal(request)
        if refusal is not None:
            self._on_refused("overloaded")
        return refusal

    def on_request(
        self, request: Request, reply: Callable[[Response], None], waiter: Waiter
    ) -> None:
        """For the router."""
        self.core.submit(request, reply, waiter)

    def refused(self, reason: str) -> None:
        """Count a refusal."""
        self._on_refused(reason)

    def slot_count(self) -> int:
        """Slots of the cluster; 0 before it is founded."""
        return self.topology.slot_count if self.topology is not None else 0

    # -- what the doors see (`kvstore.node.view.NodeView`) ----------------------------------------

    async def submit(self, request: Request) -> Response:
        """Carry out operations on any keys; what goes wrong is in the results, never raised."""
        not_serving = self.membership.not_serving()
        if not_serving is not None:
            return Response(request.id, [not_serving] * len(request.ops), {})
        refusal = self.admission.refusal(request)  # counted by the door that answers it
        if refusal is not None:
            return Response(request.id, [refusal] * len(request.ops), {})
        awaited = Awaited(self._loop)
        self.on_request(request, awaited.settle, awaited)
        return await awaited.response

    def routes(self, id: int = 0, source: int = 0, since: int = 0) -> Routes:  # noqa: A002
        """The routing table as a client needs it."""
        return self.board.routes(id, source, since)

    def members(self) -> list[MemberStatus]:
        """Every node of the topology with its state by gossip."""
        return self.board.members()

    def slot_status(self, slot: int) -> SlotStatus:
        """Where a slot lives."""
        return self.board.slot_status(slot)

    def not_ready_reason(self) -> str:
        """Why this node does not serve yet."""
        return self.board.not_ready_reason()

    def status(self) -> NodeStatus:
        """This node's own figures."""
        return self.board.status()
