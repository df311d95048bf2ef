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
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cluster.ballot import NodeId
    from cluster.messages import SlotMessage
    from cluster.operations import Result

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
