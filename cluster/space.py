"""Short of disk: what is still taken, so that a full disk stops writes and nothing else.

A node whose free space has fallen below its reserve is *full*. The reserve is kept for what makes
room and for what keeps the cluster going: deletes, promises, takeovers, and being brought to a new
primary's content. What grows a slot is refused at the door of the primary, before it is given a
sequence, so that "nothing was written" is true; a full replica leaves such operations to the
others of the quorum, acknowledges nothing that it did not take, and is brought up to date (rule 11)
once it has room.

A node tells its peers when it becomes full and when it has room again (`cluster.messages.Space`).
That is a hint, as who leads is: where it is wrong an operation waits for a quorum longer than it
had to, and no promise depends on it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cluster.messages import Space
from cluster.operations import Atomic, Code, Delete, Failed
from cluster.quorum import is_quorum

if TYPE_CHECKING:
    from cluster.ballot import NodeId
    from cluster.messages import Change
    from cluster.operations import Write
    from cluster.slot import Context, Slot

RETRY_AFTER_MS = 2_000
"""Free space is looked at once a second."""

_HERE = "the disk of this node is full"
_THERE = "the disks of so many of the slot's members are full that no quorum could take it"


def is_refused(changes: list[Change], ctx: Context) -> bool:
    """Whether this node is full and the operation would store something."""
    return ctx.me in ctx.full and any(record is not None for _, record in changes)


class Room:
    """Who is full, as far as this node knows."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx

    @property
    def full(self) -> frozenset[NodeId]:
        """Members that are short of disk, this node included."""
        return frozenset(self._ctx.full)

    def set_full(self, *, full: bool) -> None:
        """This node is short of disk, or is no more: its peers are told."""
        ctx = self._ctx
        if full == (ctx.me in ctx.full):
            return
        (ctx.full.add if full else ctx.full.discard)(ctx.me)
        for peer in ctx.reachable - {ctx.me}:
            ctx.out.send[peer].append(Space(full))

    def on_space(self, sender: NodeId, space: Space) -> None:
        """A peer says how it stands."""
        (self._ctx.full.add if space.full else self._ctx.full.discard)(sender)

    def peer_up(self, node: NodeId) -> None:
        """There is a connection to this peer: it has to know."""
        if self._ctx.me in self._ctx.full:
            self._ctx.out.send[node].append(Space(full=True))

    def peer_down(self, node: NodeId) -> None:
        """Who is away is not full but away; it says how it stands when it is back."""
        self._ctx.full.discard(node)

    def refusal(self, slot: Slot, op: Write) -> Failed | None:
        """Why the primary cannot take a write now; None while it can, or it makes room."""
        ctx = self._ctx
        if isinstance(op, Delete) or (
            isinstance(op, Atomic) and all(isinstance(write, Delete) for write in op.writes)
        ):
            return None
        if ctx.me in ctx.full:
            why = _HERE
        elif not is_quorum(ctx.reachable - ctx.full, slot.config):
            why = _THERE
        else:
            return None
        detail = f"{why}: only reads and deletes go on until there is room; nothing was written"
        return Failed(Code.OVERLOADED, detail, RETRY_AFTER_MS)
