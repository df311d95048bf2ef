"""A slot: one small replicated state machine, and what this node knows of it.

The durable half (`SlotRow` and the key log, from which ``sequence`` follows) is every replica's.
The volatile half is the *role*: nothing for a plain replica, a `Candidate` that is taking over
(rule 9), or a `Primary` that is being established or serves (rules 1 to 6). A node that restarts
has no role (rule 12). The rules themselves are functions over a slot, one file per rule group:

=====================  ====================================
`cluster.replica`      accept, promise, establish (2, 9)
`cluster.takeover`     the candidate (9, 10)
`cluster.primary`      writes (1, 3, 4, 5, 7, 8)
`cluster.reads`        confirmation of reads (6)
`cluster.scan`         a page of keys (6)
`cluster.expiry`       removal of what has expired (7)
`cluster.transfer`     one replica to another's state (11)
`cluster.copying`      the same, page by page
`cluster.reconfigure`  changes of members (13 to 15)
`cluster.watches`      telling others what commits
=====================  ====================================
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from cluster.ballot import NO_BALLOT, NO_POSITION, Ballot, NodeId, Position
from cluster.key_log import OperationId, Run, log_begin
from cluster.records import pack_ballot
from cluster.slot_config import NO_CONFIG, SlotConfig
from cluster.throttle import Throttle

if TYPE_CHECKING:
    from cluster.messages import Ask, Promise
    from cluster.operations import Operation, Result
    from cluster.outputs import Outputs, Ticket
    from cluster.store import Store
    from cluster.watches import Feed

SLOT_ROW_FORMAT = 1


class SlotRow(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A slot's durable state beside records and key log; rewritten when it changes."""

    format: int
    generation: int
    holds_state: bool
    promised: Ballot
    established: Ballot
    config: SlotConfig
    runs: tuple[Run, ...]
    left_at: Position
    damaged: bool = False


class Context:
    """What a handler is given of its node: identity, storage, outputs, and the tick's time."""

    __slots__ = (
        "brought",
        "damaged",
        "full",
        "leader_of",
        "me",
        "now_ms",
        "out",
        "reachable",
        "repaired_total",
        "retiring",
        "store",
        "throttle",
        "told",
        "unanswered",
        "unix_ms",
    )

    def __init__(self, me: NodeId, store: Store, out: Outputs) -> None:
        self.me = me
        self.store = store
        self.out = out
        self.now_ms = 0
        """Monotonic: all timers."""
        self.unix_ms = 0
        """The wall clock: expiry alone (R7); it may be wrong and may jump."""
        self.reachable: set[NodeId] = set()
        """Whom this node can talk to now, itself included: a matter of routing, never of safety."""
        self.retiring: set[NodeId] = set()
        """Who is about to stop and is to lead nothing any more, maybe this node."""
        self.brought: set[NodeId] = set()
        """Peers that came back and are told of one slot after another (`cluster.catching_up`)."""
        self.told: set[NodeId] = {me}
        """Who has told this node all that it leads, and goes on telling what changes."""
        self.throttle = Throttle(None)
        """How fast learners are brought their copies (R13)."""
        self.leader_of: dict[int, NodeId] = {}
        """Which other node serves a slot, as far as known: hints (rule 10)."""
        self.unanswered: dict[int, tuple[NodeId, Ask]] = {}
        """Slot -> who asked last for a promise while this node could reach a primary (rule 9)."""
        self.damaged: set[int] = set()
        """Slots whose copy here waits for a whole one from the others (R18)."""
        self.repaired_total = 0
        self.full: set[NodeId] = set()
        """Who is short of disk, this node included (`cluster.space`)."""


class Waiting:
    """An operation at its primary that is not answered yet."""

    __slots__ = ("confirmed", "needs", "queued", "result", "ticket")

    def __init__(self, needs: int, ticket: Ticket, result: Result, *, confirmed: bool) -> None:
        self.needs = needs
        """The sequence that must be committed first (R3, R6)."""
        self.ticket = ticket
        self.result = result
        self.confirmed = confirmed
        """False for a read whose confirmation is still out (R6)."""
        self.queued = False
        """Whether it stands in `Primary.waiting`."""


@dataclass(slots=True)
class Call:
    """An operation on its way into a slot, with what rule 5 needs to know of it."""

    operation: Operation
    client: int
    number: int
    seen: bytes
    retry: bool
    ticket: Ticket


class Candidate:
    """This node wants to be primary (rule 9)."""

    __slots__ = (
        "asked",
        "asking",
        "ballot",
        "copying",
        "forced",
        "promises",
        "since_ms",
        "willing",
    )

    def __init__(self, ballot: Ballot, now_ms: int, *, asking: bool) -> None:
        self.ballot = ballot
        self.asking = asking
        self.since_ms = now_ms
        self.willing: set[NodeId] = set()
        self.asked: set[NodeId] = set()
        self.promises: dict[NodeId, Promise] = {}
        self.copying: NodeId | None = None
        """Best, once the quorum has promised and while its state is awaited."""


class Primary:
    """This node leads the slot in ``ballot``: establishing first, then serving."""

    __slots__ = (
        "ballot",
        "ballot_bytes",
        "base",
        "bringing",
        "committed",
        "config_at",
        "copied",
        "durable",
        "feed",
        "handing_to",
        "held",
        "peers",
        "retried",
        "serving",
        "since_ms",
        "waiting",
    )

    def __init__(self, ballot: Ballot, base: Position, config: SlotConfig, now_ms: int) -> None:
        self.ballot = ballot
        self.ballot_bytes = pack_ballot(ballot)
        self.base = base
        self.serving = False
        self.since_ms = now_ms
        self.committed = base.sequence
        self.config_at = base.sequence
        """The newest sequence that may have changed the config."""
        self.durable: dict[NodeId, int] = {}
        """Node -> last sequence that it acknowledged in this ballot."""
        self.peers = tuple(node for node in config.everyone if node != ballot.node)
        """Whom the next operation is sent to."""
        self.waiting: deque[Waiting] = deque()
        """In order of what they need committed."""
        self.retried: set[OperationId] = set()
        self.held: list[Call] = []
        """Requests that wait for the end of establishing or of a handover (R10)."""
        self.handing_to: NodeId | None = None
        self.feed: Feed | None = None
        """While somebody watches the slot (`cluster.watches`)."""
        self.bringing: dict[NodeId, tuple[Position | None, int]] = {}
        """Node -> (position it was last sent content for, when)."""
        self.copied: dict[NodeId, tuple[int, int]] = {}
        """Learner -> bytes and records that it was sent (R13)."""


class Copy:
    """A whole copy that this replica is being brought (rule 11).

    ``content`` is a slot of its own beside the one that it will replace: it has a prefix, a
    sequence, a config, and no role.
    """

    __slots__ = ("after", "ballot", "content", "heard_ms", "source", "taken_ms")

    def __init__(self, ballot: Ballot, source: NodeId, content: Slot, now_ms: int) -> None:
        self.ballot = ballot
        self.source = source
        self.content = content
        self.taken_ms = now_ms
        """When the newest page came."""
        self.heard_ms = now_ms
        """When its source was last heard to be at it."""
        self.after = b""
        """The last key that was taken; empty before the first."""


class Slot:
    """One slot on this node. All handlers keep `check` true."""

    __slots__ = (
        "config",
        "copy",
        "damaged",
        "established",
        "generation",
        "has_leftovers",
        "holds_state",
        "left_at",
        "number",
        "prefix",
        "promised",
        "role",
        "round_seen",
        "runs",
        "sequence",
    )

    def __init__(self, number: int, prefix: bytes) -> None:
        self.number = number
        self.prefix = prefix
        self.generation = 0
        self.has_leftovers = False
        """Whether an unfinished copy may lie in the next generation (R11)."""
        self.holds_state = False
        self.promised = NO_BALLOT
        self.established = NO_BALLOT
        self.sequence = 0
        self.config = NO_CONFIG
        self.runs: tuple[Run, ...] = ()
        self.left_at = NO_POSITION
        self.damaged = False
        """The content is not what ``position`` says (R18): see `cluster.scrub`."""
        self.role: Candidate | Primary | None = None
        self.copy: Copy | None = None
        self.round_seen = 0
        """Highest round that a refusal named; the next ballot is picked above it (R9)."""

    @property
    def position(self) -> Position:
        """``(established, sequence)``."""
        return Position(self.established, self.sequence)

    @property
    def log_begin(self) -> int:
        """The oldest sequence in the key log."""
        return log_begin(self.sequence)

    def row(self) -> SlotRow:
        """The durable state as stored."""
        return SlotRow(
            SLOT_ROW_FORMAT,
            self.generation,
            self.holds_state,
            self.promised,
            self.established,
            self.config,
            self.runs,
            self.left_at,
            self.damaged,
        )

    def restore(self, row: SlotRow, prefix: bytes, sequence: int) -> None:
        """Take the durable state of last time; no role comes back with it (R12).

        Args:
            row: The slot's row.
            prefix: Of the row's generation.
            sequence: Of the newest key-log entry, 0 if there is none.
        """
        assert row.format == SLOT_ROW_FORMAT, "formats are checked when the store is opened"
        self.generation, self.holds_state = row.generation, row.holds_state
        self.promised, self.established = row.promised, row.established
        self.config, self.runs, self.left_at = row.config, row.runs, row.left_at
        self.damaged, self.has_leftovers = row.damaged, True
        self.prefix, self.sequence, self.role = prefix, sequence, None
        self.copy = None

    def save(self, ctx: Context) -> None:
        """Put the slot's row into the tick's batch."""
        ctx.store.set_slot(self.number, encode_row(self.row()))

    def check(self) -> None:
        """Assert what must hold between any two handlers."""
        assert self.established <= self.promised
        assert self.sequence >= 0
        assert self.holds_state or (self.role is None and not self.config.sets)
        assert not self.holds_state or 1 <= len(self.config.sets) <= 2
        assert self.holds_state or not self.damaged
        assert not (self.damaged and isinstance(self.role, Candidate))
        assert self.copy is None or self.copy.content.generation == self.generation + 1
        role = self.role
        if isinstance(role, Primary):
            assert self.established == self.promised == role.ballot
            assert role.base.sequence <= role.committed <= self.sequence
            assert role.base.sequence <= role.config_at <= self.sequence
            needs = [waiting.needs for waiting in role.waiting]
            assert needs == sorted(needs)
            assert not needs or needs[-1] <= self.sequence
        elif isinstance(role, Candidate) and not role.asking:
            assert self.promised == role.ballot


_encoder = msgspec.msgpack.Encoder()
_row_decoder = msgspec.msgpack.Decoder(SlotRow)
encode_row = _encoder.encode
decode_row = _row_decoder.decode
