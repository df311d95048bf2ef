"""Links to the other nodes: one outgoing connection each for data, one for gossip.

A node dials each peer and sends over its own connections only; answers to a forwarded request come
back over the connection that carried it. Gossip has a connection of its own, so that a probe is not
stuck behind megabytes of data. A link that is refused, reset or closed is dialled again with a
growing, jittered pause, or as soon as the peer itself says hello. What is sent to a peer without a
link is dropped: the protocol brings it up to date when it is back (rule 11), which costs less than
unbounded memory.

So does a peer *fall behind* that does not take what it is sent, be it frozen, cut off without a
word, or slow: beyond `PEER_UNSENT_BYTES_MAX` it is sent no slot messages and no requests until it
has taken nearly all of it, and is then brought up to date like one that comes back. One that
acknowledges nothing for `UNACKNOWLEDGED_MS_MAX`, or has no room for more for so long, loses the
connection.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from cluster.limits import PEER_UNSENT_BYTES_MAX
from kvstore.log import get_logger
from kvstore.node.connection import Connection
from kvstore.node.tasks import background
from kvstore.wire.frames import FrameError, encode_frame
from kvstore.wire.packing import encode_slots
from kvstore.wire.protocol import (
    MAGIC,
    MESSAGES_MAX,
    PROTOCOL_VERSION,
    Hello,
    Refused,
    Response,
    TopologyDocument,
    Welcome,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from random import Random

    from cluster.ballot import NodeId
    from cluster.messages import SlotMessage
    from kvstore.wire.protocol import Frame, Request

log = get_logger(__name__)

CONNECT_TIMEOUT_S: Final = 2.0
"""For a TCP connection and its handshake."""

UNACKNOWLEDGED_MS_MAX: Final = 1_500
"""A connection breaks when the other machine has taken nothing that was sent for so long.

TCP by itself tries for a quarter of an hour, and ever more rarely, so that a way that is open again
stays unused. Where only this way is cut, gossip finds the peer alive by the others, and nothing
else tells that what is forwarded to it never arrives.
"""

PAUSE_S_MIN: Final = 0.05
PAUSE_S_MAX: Final = 1.0
"""Between attempts; doubled at each failure, with full jitter."""


CAUGHT_UP_BYTES: Final = PEER_UNSENT_BYTES_MAX // 16
"""A peer that fell behind is sent to again when no more than this is unsent."""


class Link:
    """The outgoing connection to one peer for one purpose ("node" or "gossip")."""

    def __init__(self, peers: Peers, node: NodeId, name: str, address: str, role: str) -> None:
        self.node = node
        self.name = name
        self.address = address
        self.role = role
        self.behind = False
        """Whether it is sent nothing more until it has taken what it was sent."""
        self._peers = peers
        self._sent_before = 0
        self._connection: Connection | None = None
        self._lost = asyncio.Event()
        self._hurry = asyncio.Event()
        self._welcomed: asyncio.Future[None] | None = None
        self.task = background(self._run(), f"link to {name}")

    @property
    def up(self) -> bool:
        """Whether frames can be sent."""
        connection = self._connection
        return connection is not None and connection.is_open

    @property
    def sent_bytes(self) -> int:
        """Over all its connections so far."""
        connection = self._connection
        return self._sent_before + (connection.sent_bytes if connection is not None else 0)

    @property
    def unsent_bytes(self) -> int:
        """What the peer has not taken yet."""
        return self._connection.unsent_bytes if self._connection is not None else 0

    def takes_more(self) -> bool:
        """Whether slot messages and requests may be sent now; notes a peer that falls behind."""
        connection = self._connection
        if connection is None or not connection.is_open or self.behind:
            return False
        if connection.unsent_bytes > PEER_UNSENT_BYTES_MAX:
            self.behind = True
            log.warning("peer does not take what it is sent", peer=self.name)
        return not self.behind

    def send(self, frame: Frame) -> bool:
        """Send, or drop if the link is down (False)."""
        connection = self._connection
        if connection is None or not connection.is_open:
            return False
        connection.send(frame)
        return True

    def send_frames(self, frames: list[bytes]) -> None:
        """As `send`, for frames that are encoded already; call it if the peer takes more."""
        for place, frame in enumerate(frames):
            if self._connection is not None and (not place or self.takes_more()):
                self._connection.send_bytes(frame)

    async def _run(self) -> None:
        pause_s = PAUSE_S_MIN
        while True:
            try:
                await self._connect()
            except (OSError, TimeoutError, ConnectionError) as error:
                self._peers.failed(self, error)
            else:
                pause_s = PAUSE_S_MIN
                await self._lost.wait()
                self._sent_before = self.sent_bytes
                self._connection, self.behind = None, False
                self._peers.lost(self)
            with suppress(TimeoutError):
                async with asyncio.timeout(self._peers.rng.uniform(0.3, 1.0) * pause_s):
                    await self._hurry.wait()
            self._hurry.clear()
            pause_s = min(pause_s * 2, PAUSE_S_MAX)

    def hurry(self) -> None:
        """The peer is there: dial without waiting any longer."""
        if not self.up:
            self._hurry.set()

    async def _connect(self) -> None:
        self._lost.clear()
        welcomed = self._welcomed = asyncio.get_running_loop().create_future()
        try:
            connection = await self._dial(welcomed)
        finally:
            if not welcomed.cancel() and not welcomed.cancelled():
                welcomed.exception()  # whoever closed the connection has said it; nobody waits
        self._connection = connection
        self._peers.opened(self)

    async def _dial(self, welcomed: asyncio.Future[None]) -> Connection:
        loop = asyncio.get_running_loop()
        host, _, port = self.address.rpartition(":")
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            _, connection = await loop.create_connection(
                lambda: Connection(self._on_frames, self._on_open, self._on_close, listening=False),
                host.strip("[]"),
                int(port),
            )
            try:
                await welcomed
            except BaseException:
                connection.abort("no handshake")
                raise
        return connection

    def _on_open(self, connection: Connection) -> None:
        connection.break_when_unacknowledged(UNACKNOWLEDGED_MS_MAX)
        connection.send_bytes(MAGIC + encode_frame(self._peers.hello(self.role)))

    def _on_frames(self, connection: Connection, frames: list[Frame]) -> None:
        for frame in frames:
            match frame:
                case Welcome():
                    self._on_welcome(connection, frame)
                case Refused(reason=reason, detail=detail):
                    connection.close(f"refused ({reason}): {detail}")
                case _:
                    self._peers.on_answer(self, frame)

    def _on_welcome(self, connection: Connection, welcome: Welcome) -> None:
        if welcome.node != self.node:
            detail = f"{self.address} is node {welcome.name!r}, not {self.name!r}"
            connection.close(detail)
            return
        connection.welcome_frames()
        if self._welcomed is not None and not self._welcomed.done():
            self._welcomed.set_result(None)

    def _on_close(self, connection: Connection, reason: str) -> None:
        self._lost.set()
        if self._welcomed is not None and not self._welcomed.done():
            self._welcomed.set_exception(ConnectionError(reason))

    def close(self, reason: str) -> None:
        """Stop dialling and close; nobody is told that it is down."""
        self.task.cancel()
        if self._connection is None:
            return
        if self.behind:  # it would have to be waited for
            self._connection.abort(reason)
        else:
            self._connection.close(reason)


class Peers:
    """All links of a node.

    Args:
        hello: Makes the handshake for a role.
        on_up: A data link is open.
        on_down: A data link was refused, could not be made, or broke; every time.
        on_caught_up: A peer that fell behind is sent to again; what it missed is gone.
        on_response: An answer to a forwarded request.
        on_topology: A peer's document.
        rng: For jitter.
    """

    def __init__(
        self,
        hello: Callable[[str], Hello],
        on_up: Callable[[NodeId], None],
        on_down: Callable[[NodeId], None],
        on_caught_up: Callable[[NodeId], None],
        on_response: Callable[[Response], None],
        on_topology: Callable[[bytes], None],
        rng: Random,
    ) -> None:
        self.hello = hello
        self.rng = rng
        self._on_up = on_up
        self._on_down = on_down
        self._on_caught_up = on_caught_up
        self._on_response = on_response
        self._on_topology = on_topology
        self._data: dict[NodeId, Link] = {}
        self._gossip: dict[NodeId, Link] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def add(self, node: NodeId, name: str, address: str) -> None:
        """Keep links to this node from now on."""
        self._data[node] = Link(self, node, name, address, "node")
        self._gossip[node] = Link(self, node, name, address, "gossip")

    def remove(self, node: NodeId) -> None:
        """Keep no links to this node any more; whoever asks for this knows that it is gone."""
        for links in (self._data, self._gossip):
            link = links.pop(node, None)
            if link is not None:
                link.close("it is no member any more")
                self._closing.add(link.task)
                link.task.add_done_callback(self._closing.discard)

    def heard_from(self, node: NodeId) -> None:
        """A peer said hello over a connection of its own, so it can be dialled."""
        for links in (self._data, self._gossip):
            if node in links:
                links[node].hurry()

    @property
    def sent_bytes(self) -> int:
        """To all present peers over their data links."""
        return sum(link.sent_bytes for link in self._data.values())

    def names(self) -> dict[NodeId, bool]:
        """Each peer, and whether its data link is up."""
        return {node: link.up for node, link in self._data.items()}

    def is_up(self, node: NodeId) -> bool:
        """Whether the data link to this peer is up."""
        link = self._data.get(node)
        return link is not None and link.up

    def send(self, node: NodeId, frame: Frame) -> bool:
        """Send over the data link, or drop (False)."""
        link = self._data.get(node)
        return link is not None and link.send(frame)

    def send_tick(self, out: Mapping[NodeId, list[SlotMessage]]) -> None:
        """One tick's slot messages; what goes to several peers is encoded once."""
        before: list[SlotMessage] = []
        frames: list[bytes] = []
        for node, messages in out.items():
            link = self._data.get(node)
            if link is not None and link.takes_more():
                if messages != before:  # the same objects, if they are equal
                    before, frames = messages, _encoded(messages, link.name)
                link.send_frames(frames)

    def send_slots(self, node: NodeId, messages: list[SlotMessage]) -> None:
        """One tick's slot messages to one peer."""
        link = self._data.get(node)
        if link is not None and link.takes_more():
            link.send_frames(_encoded(messages, link.name))

    def send_gossip(self, node: NodeId, frame: Frame) -> bool:
        """Send over the gossip link, or drop (False)."""
        link = self._gossip.get(node)
        return link is not None and link.send(frame)

    def forward(self, node: NodeId, request: Request) -> bool:
        """See `kvstore.node.router.PeerLinks`."""
        link = self._data.get(node)
        return link is not None and link.takes_more() and link.send(request)

    def tick(self) -> None:
        """Look who caught up; call it some times a second."""
        for node, link in self._data.items():
            if link.behind and link.unsent_bytes <= CAUGHT_UP_BYTES:
                link.behind = False
                log.info("peer takes what it is sent again", peer=link.name)
                self._on_caught_up(node)

    def opened(self, link: Link) -> None:
        """A link is open."""
        if link.role == "node":
            log.info("link up", peer=link.name)
            self._on_up(link.node)

    def failed(self, link: Link, error: Exception) -> None:
        """A link could not be made."""
        if link.role == "node":
            log.debug("link failed", peer=link.name, error=str(error) or type(error).__name__)
            self._on_down(link.node)

    def lost(self, link: Link) -> None:
        """An open link broke."""
        if link.role == "node":
            log.info("link lost", peer=link.name)
            self._on_down(link.node)

    def on_answer(self, link: Link, frame: Frame) -> None:
        """What came back over a link."""
        if isinstance(frame, Response):
            self._on_response(frame)
        elif isinstance(frame, TopologyDocument):
            self._on_topology(frame.topology)
        else:
            log.warning("unexpected frame", peer=link.name, frame=type(frame).__name__)

    async def close(self) -> None:
        """Close all links."""
        links = [*self._data.values(), *self._gossip.values()]
        for link in links:
            link.close("this node stops")
        tasks = [link.task for link in links]
        await asyncio.gather(*tasks, *self._closing, return_exceptions=True)


def _encoded(messages: list[SlotMessage], peer: str) -> list[bytes]:
    """In one frame, or in several if they do not fit, without what fits into none."""
    try:
        if len(messages) > MESSAGES_MAX:
            raise FrameError(f"{len(messages)} messages in one frame")
        return [encode_slots(messages)]
    except FrameError:
        if len(messages) == 1:
            log.error("slot message over the frame limit", peer=peer, kind=type(messages[0]))
            return []
        middle = len(messages) // 2
        return [*_encoded(messages[:middle], peer), *_encoded(messages[middle:], peer)]


def make_hello(role: str, cluster_id: str, cluster_name: str, node: NodeId, name: str) -> Hello:
    """This node's side of the handshake."""
    return Hello(PROTOCOL_VERSION, role, cluster_id, cluster_name, node, name)
