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
from typing import TYPE_CHECKING

from cluster.members import MemberState
from cluster.slot_table import SlotTable
from cluster.swim import Swim
from cluster.swim_settings import SwimSettings
from cluster.system_slot import owners
from cluster.topology import Node as Member
from cluster.topology import Topology, decode_topology, with_addresses
from kvstore.errors import SetupError
from kvstore.log import get_logger
from kvstore.node.clock import SystemClock
from kvstore.node.directory import Directory, pack_leads
from kvstore.node.founding import Founder, make_founding
from kvstore.node.gossip import GossipDriver
from kvstore.node.loop import CoreLoop
from kvstore.node.peers import Peers, make_hello
from kvstore.node.recovery import store_founding, stored_slots, stored_topology
from kvstore.node.router import Router
from kvstore.node.server import Server
from kvstore.node.status import StatusBoard
from kvstore.storage.tick_store import TickStore
from kvstore.wire.protocol import PROTOCOL_VERSION, Welcome

if TYPE_CHECKING:
    from collections.abc import Callable

    from cluster.ballot import NodeId
    from cluster.messages import SlotMessage
    from cluster.swim_messages import GossipMessage
    from kvstore.node.clock import Clock
    from kvstore.node.view import MemberStatus, NodeStatus, SlotStatus
    from kvstore.storage.engine import Engine
    from kvstore.storage.group_commit import Commit
    from kvstore.wire.protocol import Founding, Hello, Leads, Request, Response, Routes

log = get_logger(__name__)

TICK_INTERVAL_S = 0.05
"""Timers of the core and the router: takeovers, retries, deadlines."""

EXPECT_PEERS_S = 3.0
"""After its own start a node lets the others have so long to start too, before it stands in."""


class Node:
    """One member of a cluster, or an embedded store (a cluster of one without ports).

    Args:
        me: Itself, as the topology lists it; addresses are those that it advertises.
        cluster_name: As the person typed it.
        engine: Open, and its own.
        commit: Makes its batches durable.
        on_refused: Told each refusal of a door, by its kind.
        founders: Addresses that found the cluster together; empty for a cluster of one.
        clock: The machine's if None.
        rng: For jitter and the cluster's id; seeded by the system if None.
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
        slot_count: int,
        replicas: int,
        clock: Clock | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self.id = me.id
        self.name = me.name
        self.topology: Topology | None = None
        self.clock = clock or SystemClock()
        self.started_ms = self.clock.now_ms()
        self.engine = engine
        self.commit = commit
        self._me = me
        self._cluster_name = cluster_name
        self._founders = founders
        self._slot_count = slot_count
        self._replicas = replicas
        self._on_refused = on_refused
        self._loop = asyncio.get_running_loop()
        self._adopted: asyncio.Future[Topology] = self._loop.create_future()
        self._timer: asyncio.TimerHandle | None = None
        self._reached: dict[NodeId, bool] = {}
        """What the core was told of each peer; nothing while it is only hoped for."""
        self._leads_moved = asyncio.Event()
        self._expected: set[NodeId] = set()
        self._rng = rng or random.Random()
        self.server = Server(self)
        self.peers = Peers(
            self._hello, self._link_up, self._link_down, self._on_response, self._rng
        )
        self.board = StatusBoard(self)
        self.store = TickStore(engine)
        self.table: SlotTable
        self.core: CoreLoop
        self.router: Router
        self.directory: Directory
        self.gossip: GossipDriver

    # -- life --------------------------------------------------------------------------------

    async def start(self) -> None:
        """From the disk, or by founding, to a node that takes part.

        Raises:
            SetupError: the cluster refuses it, or the disk belongs to another one.
        """
        topology = stored_topology(self.engine)
        founding = topology is None
        if topology is None:
            founder = Founder(
                self._me,
                self._cluster_name,
                self._founders,
                self._hello("node"),
                slot_count=self._slot_count,
                replicas=self._replicas,
                rng=self._rng,
            )
            topology = await founder.found(self._adopted)
        elif topology.cluster_name != self._cluster_name:
            raise SetupError(
                f"the data directory belongs to cluster {topology.cluster_name!r}, not "
                f"{self._cluster_name!r}: choose another --data-dir or --cluster"
            )
        topology = self._check_addresses(topology)
        self._assemble(topology, founding=founding)
        self.gossip.start()
        self._tick()

    async def wait_ready(self) -> None:
        """Until each slot has a primary that this node knows."""
        while self.board.not_ready_reason():
            self._leads_moved.clear()
            await self._leads_moved.wait()

    def _check_addresses(self, topology: Topology) -> Topology:
        """The topology with this node as it was started; only a cluster of one may have moved."""
        listed = topology.node(self.id)
        if listed is None:
            raise SetupError(f"the data directory's cluster does not list member {self.id:012x}")
        mine = (self._me.address, self._me.http_address)
        if mine == (listed.address, listed.http_address):
            return topology
        if len(topology.nodes) == 1:
            return with_addresses(topology, self.id, *mine)
        raise SetupError(
            f"the cluster knows this node at {listed.address} (HTTP {listed.http_address}), but it "
            f"was started at {mine[0]} (HTTP {mine[1]}): start it with the ports that it had"
        )

    def _assemble(self, topology: Topology, *, founding: bool) -> None:
        now_ms = self.clock.now_ms
        self.topology = topology
        slots = topology.system_slot + 1
        self.directory = Directory(slots)
        self.table = SlotTable(self.id, slots, self.store, self._rng)
        self.core = CoreLoop(
            self.id, self.table, self.store, self.commit, self._leads_changed, self.clock
        )
        self.router = Router(
            self.id, self.table, topology.slot_count, self.peers, self.core.wake, now_ms
        )
        self.core.peers, self.core.router = self.peers, self.router
        self.core.wake()
        swim = Swim(self.id, SwimSettings(), self._rng, now_ms())
        self.gossip = GossipDriver(swim, self.peers, self._member_state, now_ms)
        for node in topology.nodes:
            if node.id != self.id:
                self.table.peer_hoped(node.id)
                self.peers.add(node.id, node.name, node.address)
                self._expected.add(node.id)
        self._loop.call_later(EXPECT_PEERS_S, self._stop_expecting)
        swim.join([node.id for node in topology.nodes], now_ms())
        if founding:
            self.table.found(owners(topology))
            store_founding(self.engine, self.store, topology, self.id)
        else:
            self.table.restore(stored_slots(self.engine))

    def _tick(self) -> None:
        self.core.wake()
        self.table.tick()
        self.router.tick()
        self._timer = self._loop.call_later(TICK_INTERVAL_S, self._tick)

    async def close(self) -> None:
        """Stop cleanly: what is acknowledged is durable already; leave and let go of everything."""
        if self._timer is not None:
            self._timer.cancel()
        if self.topology is not None:
            self.gossip.close()
            self.core.close()
        await self.server.close()
        await self.peers.close()
        await self.commit.close()
        self.engine.close()

    # -- neighbours --------------------------------------------------------------------------

    def _hello(self, role: str) -> Hello:
        cluster_id = self.topology.cluster_id if self.topology is not None else ""
        return make_hello(role, cluster_id, self._cluster_name, self.id, self.name)

    def _stop_expecting(self) -> None:
        late, self._expected = self._expected, set()
        for node in late:
            self._judge(node)

    def _link_up(self, node: NodeId) -> None:
        self._expected.discard(node)
        self.peers.send(node, pack_leads(self.table.led(), (), complete=True))
        self._judge(node)

    def _link_down(self, node: NodeId) -> None:
        self.gossip.unreachable(node)
        self.router.peer_lost(node)
        self._judge(node)

    def _judge(self, node: NodeId) -> None:
        """Tell the core whether a peer can be reached: over a link, and not dead by gossip."""
        gone = self.gossip.swim.state(node) in (MemberState.DEAD, MemberState.LEFT)
        reached = self.peers.is_up(node) and not gone
        if reached == self._reached.get(node):
            return
        if not reached and node in self._expected:
            return  # all nodes are starting: do not lead for one that comes yet
        self._reached[node] = reached
        self.core.wake()
        if reached:
            self.table.peer_up(node)
            # What it told last still holds: it does not tell again over its own link if that held.
            self.table.peer_leads(node, self.directory.led_by(node))
        else:
            self.table.peer_down(node)

    def _member_state(self, node: NodeId, state: MemberState) -> None:
        listed = self.topology.node(node) if self.topology is not None else None
        name = listed.name if listed is not None else f"{node:012x}"
        log.info("member", peer=name, state=state.name.lower())
        if node != self.id:
            self._judge(node)

    def _leads_changed(self, slots: set[int]) -> None:
        led = list(self.table.led_of(sorted(slots)))
        lost = slots.difference(number for number, _ in led)
        leads = pack_leads(led, sorted(lost), complete=False)
        for node in self.peers.names():
            self.peers.send(node, leads)
        self.router.leads_changed([number for number, _ in led])
        self._leads_moved.set()

    def _on_response(self, response: Response) -> None:
        self.router.on_response(response)
        self.core.wake()

    # -- what the server hands on (`kvstore.node.server.Host`) -----------------------------------

    def welcome(self) -> Welcome:
        """This node's side of the handshake."""
        cluster_id = self.topology.cluster_id if self.topology is not None else ""
        return Welcome(PROTOCOL_VERSION, cluster_id, self._cluster_name, self.id, self.name)

    def knows(self, node: NodeId) -> bool:
        """Whether the topology lists this node."""
        return self.topology is not None and self.topology.node(node) is not None

    def on_slot_messages(self, sender: NodeId, messages: list[SlotMessage]) -> None:
        """For the core."""
        self.core.receive(sender, messages)

    def on_gossip(self, sender: NodeId, message: GossipMessage) -> None:
        """For the failure detector."""
        self.gossip.receive(sender, message)

    def on_leads(self, sender: NodeId, leads: Leads) -> None:
        """For the directory, the core and whatever waits for a leader."""
        led, lost = self.directory.take(sender, leads)
        if self._reached.get(sender) is False:  # the directory keeps it until `_judge` says so
            return
        self.core.wake()
        self.table.peer_leads_no_more(sender, lost)
        self.table.peer_leads(sender, led, complete=leads.complete)
        self.router.leads_changed(led)
        self._leads_moved.set()

    def on_founding(self, founding: Founding) -> Founding:
        """Somebody founds, or asks whether this node is founded."""
        if founding.topology and self.topology is None and not self._adopted.done():
            topology = decode_topology(founding.topology)
            if topology.node(self.id) is not None:
                self._adopted.set_result(topology)
        return make_founding(self.topology, self._me)

    def on_request(self, request: Request, reply: Callable[[Response], None]) -> None:
        """For the router."""
        self.core.wake()
        self.router.submit(request, reply)

    def refused(self, reason: str) -> None:
        """Count a refusal."""
        self._on_refused(reason)

    def slot_count(self) -> int:
        """Slots of the cluster; 0 before it is founded."""
        return self.topology.slot_count if self.topology is not None else 0

    # -- what the doors see (`kvstore.node.view.NodeView`) ----------------------------------------

    async def submit(self, request: Request) -> Response:
        """Carry out operations on any keys; what goes wrong is in the results, never raised."""
        answered: asyncio.Future[Response] = self._loop.create_future()

        def reply(response: Response) -> None:
            if not answered.done():
                answered.set_result(response)

        self.on_request(request, reply)
        return await answered

    def routes(self, id: int = 0) -> Routes:  # noqa: A002 - the frame's field
        """The routing table as a client needs it."""
        return self.board.routes(id)

    def members(self) -> list[MemberStatus]:
        """Every node of the topology with its state by gossip."""
        return self.board.members()

    def slot_status(self, slot: int) -> SlotStatus:
        """Where a slot lives."""
        return self.board.slot_status(slot)

    def status(self) -> NodeStatus:
        """This node's own figures."""
        return self.board.status()
