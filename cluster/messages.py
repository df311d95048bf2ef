"""What the replicas of a slot say to each other: one frozen record per meaning.

The union `SlotMessage` is closed and every dispatch over it is checked for exhaustiveness, so a new
message does not type-check until it is handled. All of a node's slots speak to a peer in one frame
per tick (`kvstore.wire.protocol.SlotMessages`). Rule numbers are those of `docs/protocol.md`.

Any message may be lost, late or doubled; each handler must be right then too.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from cluster.ballot import Ballot, NodeId, Position
from cluster.key_log import Run
from cluster.limits import SLOT_COUNT_MAX
from cluster.slot_config import SlotConfig

SlotNumber = Annotated[int, msgspec.Meta(ge=0, le=SLOT_COUNT_MAX)]
"""Checked while a frame is decoded; the highest one can only be the system slot."""


class Malformed(ValueError):
    """A message that no node of this cluster can have meant: it names a slot that there is not."""


Change = tuple[bytes, bytes | None]
"""A key and its record; None where it is absent (rule 8: a delete removes the record)."""


class Accept(msgspec.Struct, frozen=True, array_like=True, tag=1, gc=False):
    """The primary's next operation (R1): ``entry`` is the encoded key-log entry."""

    slot: SlotNumber
    ballot: Ballot
    sequence: int
    entry: bytes
    changes: list[Change]
    config: SlotConfig | None = None


class Ack(msgspec.Struct, frozen=True, array_like=True, tag=2, gc=False):
    """All up to ``sequence`` is durable here in this ballot (R2); sent after the fsync."""

    slot: SlotNumber
    ballot: Ballot
    sequence: int


class Refuse(msgspec.Struct, frozen=True, array_like=True, tag=3, gc=False):
    """The sender has promised a higher ballot (R2, R9)."""

    slot: SlotNumber
    promised: Ballot


class Gap(msgspec.Struct, frozen=True, array_like=True, tag=4, gc=False):
    """The sender cannot follow in this ballot; what it holds, so that it can be brought on (R11).

    ``position`` is None where the sender holds no state; ``left_at`` is then its stub (R15).
    """

    slot: SlotNumber
    ballot: Ballot
    position: Position | None
    runs: tuple[Run, ...]
    left_at: Position


class Ask(msgspec.Struct, frozen=True, array_like=True, tag=5, gc=False):
    """Would you promise this ballot? Has no effect (R9): who cannot win disturbs nobody."""

    slot: SlotNumber
    ballot: Ballot


class Willing(msgspec.Struct, frozen=True, array_like=True, tag=6, gc=False):
    """Yes to an `Ask`."""

    slot: SlotNumber
    ballot: Ballot


class Prepare(msgspec.Struct, frozen=True, array_like=True, tag=7, gc=False):
    """A candidate's ballot (R9), sent when its own promise is durable."""

    slot: SlotNumber
    ballot: Ballot


class Promise(msgspec.Struct, frozen=True, array_like=True, tag=8, gc=False):
    """Nothing below this ballot any more; where the sender stands (R9). Sent after the fsync."""

    slot: SlotNumber
    ballot: Ballot
    position: Position
    config: SlotConfig
    runs: tuple[Run, ...]
    damaged: bool = False
    """The sender stood there, but its content is damaged: it cannot be best (R9, R18)."""


class Pull(msgspec.Struct, frozen=True, array_like=True, tag=9, gc=False):
    """A candidate asks best for its state (R9, R11), saying what it holds itself.

    ``keys`` are those that the candidate touched above the newest entry that both logs share.
    """

    slot: SlotNumber
    ballot: Ballot
    position: Position
    common: int | None
    keys: list[bytes]


class TailQuery(msgspec.Struct, frozen=True, array_like=True, tag=10, gc=False):
    """Which keys did you touch above ``common``? Asked of a replica that has strayed (R11)."""

    slot: SlotNumber
    ballot: Ballot
    common: int


class Tail(msgspec.Struct, frozen=True, array_like=True, tag=11, gc=False):
    """The answer to a `TailQuery`, valid at ``position`` only."""

    slot: SlotNumber
    ballot: Ballot
    position: Position
    common: int
    keys: list[bytes]


class Content(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What takes a replica from a common point to the source's state (R11), all of one moment.

    ``entries`` are ``(sequence, encoded entry)``, those above ``common``.
    """

    common: int
    position: Position
    config: SlotConfig
    runs: tuple[Run, ...]
    entries: list[tuple[int, bytes]]
    changes: list[Change]


class Pulled(msgspec.Struct, frozen=True, array_like=True, tag=12, gc=False):
    """Best's content for a candidate that stands at ``base`` (R9); void at any other position."""

    slot: SlotNumber
    ballot: Ballot
    base: Position
    content: Content


class Install(msgspec.Struct, frozen=True, array_like=True, tag=13, gc=False):
    """The primary's content for a member or learner that stands at ``base`` (R11)."""

    slot: SlotNumber
    ballot: Ballot
    base: Position
    content: Content


class Head(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Beside its records: what a whole copy begins with (R11)."""

    position: Position
    config: SlotConfig
    runs: tuple[Run, ...]
    entries: list[tuple[int, bytes]]


class Chunk(msgspec.Struct, frozen=True, array_like=True, tag=19, gc=False):
    """A page of a whole copy: the records behind ``after``, as of sequence ``at`` (R11).

    The first one has the ``head``. Sent by the primary or candidate of ``ballot``, or to it.
    """

    slot: SlotNumber
    ballot: Ballot
    head: Head | None
    at: int
    after: bytes
    changes: list[Change]
    more: bool


class Fetch(msgspec.Struct, frozen=True, array_like=True, tag=20, gc=False):
    """The next page of a whole copy, please: the records behind ``after`` (R11)."""

    slot: SlotNumber
    ballot: Ballot
    after: bytes


class Establish(msgspec.Struct, frozen=True, array_like=True, tag=14, gc=False):
    """Be at ``base`` in this ballot (R9); ``newest`` is the sender's last sequence."""

    slot: SlotNumber
    ballot: Ballot
    base: Position
    newest: int


class Confirm(msgspec.Struct, frozen=True, array_like=True, tag=15, gc=False):
    """Have you promised anything higher in these slots (R6)? One message for all reads of a tick.

    ``slots`` has two bytes each, ``rounds`` four; the ballots' node is the sender.
    """

    number: int
    slots: bytes
    rounds: bytes


class Confirmed(msgspec.Struct, frozen=True, array_like=True, tag=16, gc=False):
    """No, except for ``denied`` (two bytes a slot): promised higher there, or no state."""

    number: int
    denied: bytes


class HandOver(msgspec.Struct, frozen=True, array_like=True, tag=17, gc=False):
    """This ballot's primary let its writes commit and holds new ones: take over now (R10)."""

    slot: SlotNumber
    ballot: Ballot


class Retiring(msgspec.Struct, frozen=True, array_like=True, tag=21, gc=False):
    """The sender is about to stop and hands over what it leads: hand it nothing (R10)."""

    node: NodeId


class Drop(msgspec.Struct, frozen=True, array_like=True, tag=18, gc=False):
    """You are in neither members nor learners of this committed config (R15)."""

    slot: SlotNumber
    position: Position
    config: SlotConfig


class Surplus(msgspec.Struct, frozen=True, array_like=True, tag=22, gc=False):
    """Has the sender left this slot, which it holds and the ring does not give it (R15)?"""

    slot: SlotNumber


class Compare(msgspec.Struct, frozen=True, array_like=True, tag=31, gc=False):
    """The digest of your records in ``[begin, end)``, please, as of this position (R18).

    An empty ``end`` is the slot's: then key log and config count too. ``rows`` is how many the
    sender has there.
    """

    slot: SlotNumber
    ballot: Ballot
    sequence: int
    begin: bytes
    end: bytes
    rows: int


class Compared(msgspec.Struct, frozen=True, array_like=True, tag=32, gc=False):
    """The answer; without a digest and without damage it is void: the sender stands elsewhere."""

    slot: SlotNumber
    ballot: Ballot
    sequence: int
    begin: bytes
    digest: bytes
    damage: str


class Condemn(msgspec.Struct, frozen=True, array_like=True, tag=33, gc=False):
    """Your copy is damaged: let yourself be brought a whole one (R18). From its primary only.

    ``number`` grows from one to the next, so that a late one does not condemn the new copy. With
    ``failed`` something in the stretch was unreadable or failed its checksum, which the receiver
    can see for itself; otherwise it differed from the other copies.
    """

    slot: SlotNumber
    ballot: Ballot
    number: int
    failed: bool
    begin: bytes
    end: bytes
    rows: int


class Space(msgspec.Struct, frozen=True, array_like=True, tag=34, gc=False):
    """Whether the sending node is so short of disk that it takes no operation that grows it."""

    full: bool


SlotMessage = (
    Accept
    | Ack
    | Refuse
    | Gap
    | Ask
    | Willing
    | Prepare
    | Promise
    | Pull
    | TailQuery
    | Tail
    | Pulled
    | Install
    | Chunk
    | Fetch
    | Establish
    | Confirm
    | Confirmed
    | HandOver
    | Retiring
    | Drop
    | Surplus
    | Compare
    | Compared
    | Condemn
    | Space
)
