"""The peer and client port: who may speak, and to whom each frame goes.

A connection says who it is in its first frame (`Hello`); another cluster, another protocol version
or anything that is no frame is told so, counted, and closed. Then frames go straight to where they
belong: slot messages and leads into the core, gossip to the failure detector (answered at once,
before any data), requests through the door to the router. A connection with too many unanswered
requests is not read from until some are answered.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

from cluster.limits import CONNECTION_REQUESTS_IN_FLIGHT_MAX
from cluster.messages import Malformed
from kvstore.errors import SetupError
from kvstore.log import get_logger
from kvstore.node.connection import Connection
from kvstore.node.door import (
    check_operation,
    check_request,
    check_system_operation,
    fitting,
    without,
)
from kvstore.node.turning_away import Refusing, TurningAway
from kvstore.wire.frames import FrameError
from kvstore.wire.packing import unpack
from kvstore.wire.protocol import (
    PROTOCOL_VERSION,
    ChangeTopology,
    Founding,
    Gossip,
    Hello,
    Leads,
    Packed,
    Refused,
    Request,
    Response,
    RouteQuery,
    Routes,
    SlotMessages,
    TopologyChanged,
    TopologyDocument,
    TopologyQuery,
    Watch,
    Watched,
    Welcome,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from cluster.ballot import NodeId
    from cluster.messages import SlotMessage
    from cluster.operations import Failed, Result
    from cluster.swim_messages import GossipMessage
    from kvstore.node.gathering import Waiter
    from kvstore.node.membership import Membership
    from kvstore.node.watching import Watching
    from kvstore.wire.protocol import Frame

log = get_logger(__name__)

HANDSHAKE_TIMEOUT_S: Final = 5.0
FRAME_TIMEOUT_S: Final = 30.0
"""A frame that has begun must be whole within this: slow senders do not hold memory for ever."""
SWEEP_INTERVAL_S: Final = 1.0
CLOSE_S: Final = 0.01
"""For what is queued to leave, and for connections on their way in to arrive, when a node stops."""
CONNECTIONS_MAX: Final = 10_000
TURN_FRAMES_MAX: Final = 128
"""Frames of one connection in one turn of the loop: a millisecond where all are refused."""

FOR_NODES: Final = frozenset((SlotMessages, Packed, Leads, Gossip))
"""What only a member of this cluster may send, beside requests on the system slot."""


class Host(Refusing, Protocol):
    """What the server needs of its node."""

    def welcome(self) -> Welcome:
        """This node's side of the handshake."""

    def knows(self, node: NodeId) -> bool:
        """Whether the topology lists this node."""

    def heard_from(self, node: NodeId) -> None:
        """A node says hello."""

    def on_slot_messages(self, sender: NodeId, messages: list[SlotMessage]) -> None:
        """For the core."""

    def on_leads(self, sender: NodeId, leads: Leads) -> None:
        """For the directory."""

    def on_gossip(self, sender: NodeId, message: GossipMessage, epoch: int) -> None:
        """For the failure detector, and for whoever keeps the topology at its newest."""

    @property
    def membership(self) -> Membership:
        """The room of the topology."""

    def on_request(
        self, request: Request, reply: Callable[[Response], None], waiter: Waiter
    ) -> None:
        """For the router."""

    @property
    def watching(self) -> Watching:
        """The room of the watches."""

    def routes(self, id: int = 0, source: int = 0, since: int = 0) -> Routes:  # noqa: A002
        """The routing table, or what has changed in it (`RouteQuery`)."""

    def slot_count(self) -> int:
        """Slots of this cluster; 0 before it is founded."""

    def refused(self, reason: str) -> None:
        """Count a refusal."""


class Server:
    """Listens on the peer and client port."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._loop = asyncio.get_running_loop()
        self._server: asyncio.Server | None = None
        self._connections: dict[Connection, float] = {}
        self._sweeper: asyncio.TimerHandle | None = None
        self._closed = False
        self._turning_away = TurningAway(host)

    @property
    def connections(self) -> int:
        """Open connections, of clients and nodes."""
        return len(self._connections)

    async def listen(self, address: str, port: int, flag: str) -> int:
        """`bind` and `serve`; returns the port."""
        bound = await self.bind(address, port, flag)
        await self.serve()
        return bound

    async def bind(self, address: str, port: int, flag: str) -> int:
        """Bind and return the port (useful for 0); until `serve`, who connects is refused.

        `SetupError` where it cannot be bound; its message names `flag`, which changes the address.
        """
        try:
            self._server = await self._loop.create_server(
                self._make, address, port, backlog=1024, start_serving=False
            )
        except OSError as error:
            raise SetupError(
                f"cannot listen on {address}:{port}: {error.strerror or error}; "
                f"is another node running there? {flag} changes the port"
            ) from error
        return int(self._server.sockets[0].getsockname()[1])

    async def serve(self) -> None:
        """Take connections from now on."""
        assert self._server is not None, "bound before"
        await self._server.start_serving()
        self._sweep()

    def _make(self) -> Connection:
        return Connection(self._on_frames, self._on_open, self._on_close, listening=True)

    async def close(self) -> None:
        """Stop listening and close all connections."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        self._closed = True
        if self._server is not None:
            # Who is accepted and not made a transport of yet would be dropped, its socket open, by
            # CPython's `Server.close` (gh-109564): accept nobody for a turn of the loop first.
            for listener in self._server.sockets:
                self._loop.remove_reader(listener.fileno())
            await asyncio.sleep(0)
            self._server.close()
        for connection in list(self._connections):
            connection.close("this node stops")
        await asyncio.sleep(CLOSE_S)
        for connection in list(self._connections):
            connection.abort("this node stops")
        await asyncio.sleep(0)

    # -- connections -------------------------------------------------------------------------

    def _on_open(self, connection: Connection) -> None:
        if self._closed:  # it was on its way in
            connection.abort("this node stops")
        if len(self._connections) >= CONNECTIONS_MAX:
            detail = f"this node has its {CONNECTIONS_MAX} connections"
            connection.refuse("overloaded", detail, kind="connections")
        self._connections[connection] = self._loop.time()

    def _on_close(self, connection: Connection, reason: str) -> None:
        self._connections.pop(connection, None)
        self._host.watching.leave(connection)
        if connection.refusal:
            self._host.refused(connection.refusal)
            log.warning("connection refused", remote=connection.remote, reason=reason)

    def _sweep(self) -> None:
        """Close those that do not finish a handshake or a frame in time."""
        now = self._loop.time()
        for connection, since in list(self._connections.items()):
            if not connection.handshake_done and now - since > HANDSHAKE_TIMEOUT_S:
                connection.refuse("slow", f"no handshake within {HANDSHAKE_TIMEOUT_S:g} s")
            elif connection.partial_since and now - connection.partial_since > FRAME_TIMEOUT_S:
                connection.refuse("slow", f"a frame took over {FRAME_TIMEOUT_S:g} s to arrive")
        self._sweeper = self._loop.call_later(SWEEP_INTERVAL_S, self._sweep)

    def _on_frames(self, connection: Connection, frames: list[Frame]) -> None:
        """What one read brought, a part in each turn of the loop: a flood waits for gossip too."""
        if len(frames) > TURN_FRAMES_MAX:
            connection.hold()
            self._loop.call_soon(self._go_on, connection, frames[TURN_FRAMES_MAX:])
            frames = frames[:TURN_FRAMES_MAX]
        for frame in frames:
            if connection.peer is not None:
                self._on_frame(connection, frame)
            elif isinstance(frame, Hello):
                self._on_hello(connection, frame)
            else:
                connection.refuse("frame", f"{type(frame).__name__} before the handshake")
            if not connection.is_open:
                return

    def _go_on(self, connection: Connection, frames: list[Frame]) -> None:
        if connection.is_open:
            self._on_frames(connection, frames)
            connection.unhold()

    def _on_hello(self, connection: Connection, hello: Hello) -> None:
        mine = self._host.welcome()
        if hello.version != PROTOCOL_VERSION:
            connection.refuse(
                "version",
                f"this node speaks protocol version {PROTOCOL_VERSION}, you speak {hello.version}: "
                "run the same release on both sides",
            )
        elif hello.cluster_name and hello.cluster_name != mine.cluster_name:
            connection.refuse(
                "cluster", f"this is cluster {mine.cluster_name!r}, not {hello.cluster_name!r}"
            )
        elif hello.cluster_id and mine.cluster_id and hello.cluster_id != mine.cluster_id:
            connection.refuse(
                "cluster",
                f"this node is of another cluster of that name (id {mine.cluster_id}, "
                f"not {hello.cluster_id})",
            )
        elif hello.role not in ("client", "node", "gossip"):
            connection.refuse("frame", f"unknown role {hello.role!r}")
        elif hello.cluster_id and not mine.cluster_id and hello.role != "client":
            # The other founders are ready sooner: nothing is wrong, and they dial again.
            connection.close(f"{hello.name} is of a cluster that is not founded here yet")
        else:
            connection.peer = hello
            connection.welcome_frames(partial(self._turning_away.refuse, connection))
            connection.send(mine)
            if hello.role != "client":
                self._host.heard_from(hello.node)

    def break_links(self) -> int:
        """End the data links of other nodes to this one, with all that is unread; how many."""
        known = ((c, c.peer) for c in self._connections)
        links = [c for c, peer in known if isinstance(peer, Hello) and peer.role == "node"]
        for link in links:
            link.abort("what it was sent meanwhile is old")
        return len(links)

    # -- frames ------------------------------------------------------------------------------

    def _on_frame(self, connection: Connection, frame: Frame) -> None:
        host = self._host
        hello = connection.peer
        assert isinstance(hello, Hello)
        for_nodes = frame.system if type(frame) is Request else type(frame) in FOR_NODES
        if for_nodes and (hello.role == "client" or not host.knows(hello.node)):
            self._on_stranger(connection, hello)
            return
        match frame:
            case SlotMessages() | Packed():
                self._on_slot_messages(connection, hello.node, frame)
            case Request():
                self._on_request(connection, frame)
            case Gossip():
                host.on_gossip(hello.node, frame.message, frame.epoch)
            case Leads():
                self._on_leads(connection, hello.node, frame)
            case RouteQuery():
                connection.send(host.routes(frame.id, frame.source, frame.since))
            case Watch():
                host.watching.take(connection, frame)
            case Founding():
                self._on_founding(connection, frame)
            case TopologyQuery():
                connection.send(TopologyDocument(host.membership.document()))
            case ChangeTopology():
                host.membership.on_change(frame, connection.send)
            case (
                Hello()
                | Welcome()
                | Refused()
                | Response()
                | Routes()
                | TopologyDocument()
                | Watched()
                | TopologyChanged()
            ):
                connection.refuse("frame", f"{type(frame).__name__} is not for a server")

    def _on_stranger(self, connection: Connection, hello: Hello) -> None:
        """Not in this node's topology. One of this cluster's is told what that is."""
        document = self._host.membership.document()
        if hello.role != "client" and hello.cluster_id and document:  # the ids were compared
            connection.send(TopologyDocument(document))
            connection.close(f"{hello.name} is not in this node's topology")
            return
        connection.refuse("cluster", "only nodes of this cluster may send this", kind="stranger")

    def _on_slot_messages(
        self, connection: Connection, sender: NodeId, frame: SlotMessages | Packed
    ) -> None:
        try:
            whole = frame if isinstance(frame, SlotMessages) else unpack(frame)
            self._host.on_slot_messages(sender, whole.messages)
        except (FrameError, Malformed) as error:
            connection.refuse("frame", str(error))

    def _on_leads(self, connection: Connection, sender: NodeId, leads: Leads) -> None:
        try:
            self._host.on_leads(sender, leads)
        except ValueError as error:
            connection.refuse("frame", str(error))

    def _on_founding(self, connection: Connection, founding: Founding) -> None:
        try:
            answer = self._host.membership.on_founding(founding)
        except ValueError as error:
            connection.refuse("frame", str(error))
        else:
            connection.send(answer)

    def _on_request(self, connection: Connection, request: Request) -> None:
        refusal = self._host.refusal(request)
        if refusal is not None:  # before any work: overload must not cost what it refuses
            connection.send_soon(Response(request.id, [refusal] * len(request.ops), {}))
            return
        fault = check_request(request)
        if fault is not None:
            connection.refuse("frame", fault, kind="request")
            return
        connection.in_flight += 1
        if connection.in_flight == CONNECTION_REQUESTS_IN_FLIGHT_MAX:
            connection.hold()
        slot_count = self._host.slot_count()
        not_serving = self._host.membership.not_serving()
        if not_serving is not None:
            self._reply(connection, Response(request.id, [not_serving] * len(request.ops), {}))
            return
        faults: dict[int, Failed] = {}
        system = request.system
        for index, op in enumerate(request.ops):
            failed = check_system_operation(op) if system else check_operation(op, slot_count)
            if failed is not None:
                faults[index] = failed
        if not faults:
            self._host.on_request(request, partial(self._reply, connection), connection)
            return
        for _ in faults:
            self._host.refused("operation")
        good = without(request, faults)
        reply = partial(self._reply_with, connection, faults, len(request.ops))
        self._host.on_request(good, reply, connection)

    def _reply(self, connection: Connection, response: Response) -> None:
        if connection.in_flight == CONNECTION_REQUESTS_IN_FLIGHT_MAX:
            connection.unhold()
        connection.in_flight -= 1
        # Where others are under way, their answers come in this turn too, as a rule.
        send = connection.send_soon if connection.in_flight else connection.send
        try:
            send(response)
        except FrameError:
            send(fitting(response))

    def _reply_with(
        self, connection: Connection, faults: dict[int, Failed], count: int, response: Response
    ) -> None:
        rest = iter(response.results)
        results: list[Result] = [faults[i] if i in faults else next(rest) for i in range(count)]
        self._reply(connection, Response(response.id, results, response.leads))
