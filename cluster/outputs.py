"""What the core wants done, collected over one tick.

The order is a promise (compare etcd/raft's ``Ready``): the tick's store batch is written; ``send``
may leave at once, beside it (rule 1); ``after_fsync`` leaves only when an fsync that began after
the batch was written has succeeded, in order. Messages to the own node are given back to the core
in the same way, which is how a primary counts itself on the same terms as everyone (rule 2).

``answers`` were released by commits that are already durable on a quorum, or need nothing to be
durable.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cluster.ballot import NodeId
    from cluster.messages import Change, SlotMessage
    from cluster.operations import Result
    from cluster.scrub import Finding

Ticket = Any
"""Whatever the node needs to find the caller again; opaque to the core."""


@dataclass(slots=True)
class Moved:
    """An operation that this node cannot finish because it lost the slot (rule 4).

    ``started``: it may have been given a sequence, so whoever sends it again says that it is a
    retry.
    """

    ticket: Ticket
    started: bool


Watcher = Any
"""Whatever the node needs to find who watches; opaque to the core, compared by identity."""


class WatchState(IntEnum):
    """What became of a watcher's wish for a slot (`cluster.watches`)."""

    STARTED = 1
    """It was told all up to this sequence, and will be told all that commits after it."""
    MORE = 2
    """It was told all up to this sequence; start again behind it, in another tick."""
    TOO_OLD = 3
    """The key log does not reach back: fetch the state, then start behind this sequence."""
    MOVED = 4
    """This node does not serve the slot, or serves it no more; the sequence means nothing."""


@dataclass(slots=True)
class Changed:
    """One committed operation for these watchers: its version and what it changed."""

    watchers: tuple[Watcher, ...]
    slot: int
    version: bytes
    changes: list[Change]


@dataclass(slots=True)
class Told:
    """A word for one watcher of a slot."""

    watcher: Watcher
    slot: int
    state: WatchState
    sequence: int


@dataclass(slots=True)
class Outputs:
    """One tick's wishes."""

    send: defaultdict[NodeId, list[SlotMessage]] = field(default_factory=lambda: defaultdict(list))
    after_fsync: defaultdict[NodeId, list[SlotMessage]] = field(
        default_factory=lambda: defaultdict(list)
    )
    answers: list[tuple[Ticket, Result]] = field(default_factory=list)
    moved: list[Moved] = field(default_factory=list)
    leads_changed: set[int] = field(default_factory=set)
    watched: list[Changed | Told] = field(default_factory=list)
    """In the order in which each watcher must hear it."""
    alarms: list[Finding] = field(default_factory=list)
    """Damage that was found in this tick, for a person to hear of (R18)."""
