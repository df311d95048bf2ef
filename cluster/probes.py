"""Questions that are on their way: a node's own, and those that it asks for others."""

from __future__ import annotations

import msgspec

from cluster.ballot import NodeId


class Probe(msgspec.Struct, gc=False):
    """A member of which an answer is awaited.

    When it is to be asked again, and when the period is over.
    """

    target: NodeId
    indirect_due_ms: int
    due_ms: int
    is_repeated: bool = False
    asked: int = 0
    nacks: int = 0


class Relay(msgspec.Struct, frozen=True, gc=False):
    """A ping made for another node."""

    origin: NodeId
    number: int
    due_ms: int
