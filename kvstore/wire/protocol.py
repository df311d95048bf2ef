"""What goes over the peer and client port, beside the messages of the slots and of gossip.

A connection opens with the four magic bytes from the side that dialled, then each side speaks in
frames (`kvstore.wire.frames`). The first frame each way is the handshake: `Hello`, answered by
`Welcome` or `Refused`. After that a client sends `Request` and `RouteQuery` and gets `Response` and
`Routes`, matched by ``id``, in any order; a connection of its own carries a `Watch`. Between nodes
the same port also carries `SlotMessages` and `GossipMessages`; a forwarded operation is simply a
`Request` from a node.

Times are durations, never clock readings: clocks may be wrong.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from cluster.limits import REQUEST_OPERATIONS_MAX, SLOT_COUNT_MAX
from cluster.membership import TopologyChange
from cluster.messages import Change, SlotMessage
from cluster.operations import Failed, Operation, Result
from cluster.outputs import WatchState
from cluster.swim_messages import GossipMessage

MAGIC = b"RKV1"
"""First bytes of every connection; the digit is the framing's, not the protocol's version."""

PROTOCOL_VERSION = 1
"""Spoken by this release. A peer that cannot speak it is told so and closed."""

MESSAGES_MAX = 262_144
"""In one `SlotMessages`: what fills a frame with messages of 64 bytes."""

_ONE_PER_OPERATION = msgspec.Meta(max_length=REQUEST_OPERATIONS_MAX)
_ONE_PER_SLOT = msgspec.Meta(max_length=SLOT_COUNT_MAX)
"""Checked before the first item is decoded, so that a long list costs nothing."""


class Hello(msgspec.Struct, frozen=True, array_like=True, tag=60):
    """Who dials: ``role`` is "client", "node" or "gossip"; clients leave ``node`` 0.

    ``cluster_id`` may be empty for a client and for a node that is not founded yet;
    ``cluster_name`` is what the person typed.
    """

    version: int
    role: str
    cluster_id: str
    cluster_name: str
    node: int
    name: str


class Welcome(msgspec.Struct, frozen=True, array_like=True, tag=61):
    """Who answers."""

    version: int
    cluster_id: str
    cluster_name: str
    node: int
    name: str


class Refused(msgspec.Struct, frozen=True, array_like=True, tag=62):
    """Why the connection is closed: ``reason`` is stable ("cluster", "version", "frame", ...)."""

    reason: str
    detail: str


class Request(msgspec.Struct, frozen=True, array_like=True, tag=70):
    """Operations for the node, answered together in one `Response` with the results in order.

    Operation ``i`` has the id ``(client, number + i)``, or ``number + offsets[i]`` where offsets
    are given because only some of a batch are sent (again) (rule 5). ``seen[i]`` is the newest
    committed position (20 bytes, `cluster.records.pack_version`) that the client knew of operation
    ``i``'s slot before its first attempt, empty if none; an empty list stands for "none at all".
    ``timeout_ms`` is the time left to the caller; ``hops`` counts forwards. ``system``: the
    operations are on the system slot (rule 17), whatever their keys hash to; for nodes only.
    """

    id: int
    client: int
    number: int
    retry: bool
    timeout_ms: int
    hops: int
    ops: Annotated[list[Operation], _ONE_PER_OPERATION]
    seen: Annotated[list[bytes], _ONE_PER_OPERATION]
    offsets: Annotated[list[int], _ONE_PER_OPERATION] = []
    system: bool = False


class Response(msgspec.Struct, frozen=True, array_like=True, tag=71):
    """The results of the `Request` with this id.

    ``leads`` names the primary (member id) of each slot that was asked at the wrong node.
    """

    id: int
    results: list[Result]
    leads: dict[int, int]


class RouteQuery(msgspec.Struct, frozen=True, array_like=True, tag=72):
    """Ask for the routing table; for what has changed in it since a version of that source."""

    id: int
    source: int = 0
    since: int = 0


class RouteNode(msgspec.Struct, frozen=True, array_like=True):
    """A node as a client needs it."""

    id: int
    name: str
    address: str
    http_address: str
    zone: str
    state: str


class Routes(msgspec.Struct, frozen=True, array_like=True, tag=73):
    """The routing table: hints, never rules.

    ``primaries`` has two bytes a slot (big-endian index into ``nodes``, 65,535 = not known);
    ``positions`` has 20 bytes a slot: a committed position told by its serving primary, or zeros.

    ``source`` is the node's process and ``version`` counts its changes. With ``since`` above 0 this
    is the difference from that version: ``slots`` (two bytes each) are those that ``primaries`` and
    ``positions`` are about, and ``nodes`` holds those that are named or have changed.
    """

    id: int
    cluster_id: str
    cluster_name: str
    epoch: int
    slot_count: int
    nodes: list[RouteNode]
    primaries: bytes
    positions: bytes
    source: int = 0
    version: int = 0
    since: int = 0
    slots: bytes = b""


class Leads(msgspec.Struct, frozen=True, array_like=True, tag=80):
    """What the sending node leads: exchanged on connect and on change.

    ``slots`` has two bytes each, ``positions`` 20 bytes each (ballot and committed sequence).
    ``complete`` = all that it leads, otherwise only what is new; ``lost`` lists slots it leads no
    more.
    """

    complete: bool
    slots: bytes
    positions: bytes
    lost: bytes


class SlotMessages(msgspec.Struct, frozen=True, array_like=True, tag=81):
    """One tick's messages between the slots of two nodes."""

    messages: Annotated[list[SlotMessage], msgspec.Meta(max_length=MESSAGES_MAX)]


class Packed(msgspec.Struct, frozen=True, array_like=True, tag=86):
    """`SlotMessages` in bulk: its MessagePack, compressed with zlib (`kvstore.wire.packing`)."""

    data: bytes


class Gossip(msgspec.Struct, frozen=True, array_like=True, tag=82):
    """One message of the failure detector, and the epoch of its sender's topology (rule 17)."""

    message: GossipMessage
    epoch: int = 0


class Founding(msgspec.Struct, frozen=True, array_like=True, tag=83):
    """The founding document (rule 16), offered by the founder, asked for with an empty one.

    ``node`` is the sender as the topology would list it (`cluster.topology.Node`, encoded). The
    answer is the same message from the other side.
    """

    topology: bytes
    node: bytes


class TopologyQuery(msgspec.Struct, frozen=True, array_like=True, tag=84):
    """Ask a node for the newest topology that it knows."""


class TopologyDocument(msgspec.Struct, frozen=True, array_like=True, tag=85):
    """The newest topology that the sender knows (`cluster.topology`), committed (rule 17).

    Also sent unasked to a node of this cluster that is not in it: it is new and the sender does not
    know yet, or it has been removed and does not know yet itself. The epochs tell which.
    """

    topology: bytes


FROM_NOW = -1
"""In place of a sequence: whatever commits from now on."""


class Watch(msgspec.Struct, frozen=True, array_like=True, tag=90):
    """Tell me what commits under ``prefix`` in these slots, each behind its own sequence.

    ``after[i]`` is a sequence that was told of ``slots[i]``, or `FROM_NOW`. The first one of a
    connection makes it a watch, until it is closed; further ones with the same prefix add slots.
    """

    prefix: bytes
    slots: Annotated[list[int], _ONE_PER_SLOT]
    after: Annotated[list[int], _ONE_PER_SLOT]


class SlotChanged(msgspec.Struct, frozen=True, array_like=True, tag=1, gc=False):
    """A committed operation and its changes under the prefix.

    A change is a key and its record, None where it was removed, or empty bytes where it was changed
    again later and its value is not known any more (`cluster.watches.SUPERSEDED`).
    """

    slot: int
    version: bytes
    changes: list[Change]


class SlotTold(msgspec.Struct, frozen=True, array_like=True, tag=2, gc=False):
    """What became of the wish to watch a slot: ``state`` is a `cluster.outputs.WatchState`.

    All up to ``sequence`` has been told, or is too old to be told. ``leader`` is the member to ask
    where the slot has moved, 0 if that is not known. Whatever is not started can be asked for
    again.
    """

    slot: int
    state: WatchState
    sequence: int
    leader: int


class Watched(msgspec.Struct, frozen=True, array_like=True, tag=91):
    """What a watch has to hear, in order; an empty one says that the node is there."""

    items: list[SlotChanged | SlotTold]


class ChangeTopology(msgspec.Struct, frozen=True, array_like=True, tag=88):
    """Make this change, please: of an operator's command, or of a node that wants to come in."""

    id: int
    change: TopologyChange


class TopologyChanged(msgspec.Struct, frozen=True, array_like=True, tag=89):
    """The answer: the topology in which the change is true, or why there is none."""

    id: int
    topology: bytes
    failed: Failed | None = None


Frame = (
    Hello
    | Welcome
    | Refused
    | Request
    | Response
    | RouteQuery
    | Routes
    | Leads
    | SlotMessages
    | Packed
    | Gossip
    | Founding
    | TopologyQuery
    | TopologyDocument
    | Watch
    | Watched
    | ChangeTopology
    | TopologyChanged
)
