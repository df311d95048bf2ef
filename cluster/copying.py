"""A whole copy, taken page by page, for a replica that the key log cannot bring up to date (R11).

The receiver builds the copy in a new generation of the slot, beside what it holds, and switches in
one atomic step when it is complete; a crash midway leaves what it held. It drives the copy: each
`Chunk` is fetched when the one before was taken, so one page is under way, whatever the size of the
slot, and a slow receiver slows nobody. The source remembers nothing.

A primary goes on writing meanwhile. Its Accepts are applied to the copy too (`replica.follow`), so
that the copy stands where the primary stands, however long it takes: no second copy, and no key log
that must reach back to the first page. Every chunk names the sequence at which it was read. Only if
the copy stands at that sequence is the chunk taken; otherwise an Accept overtook it, and what it
says of some key may be older than what the copy has. A lost Accept leaves a gap that nothing fills:
then the copy is given up, and the primary begins another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cluster.ballot import NO_POSITION, Position
from cluster.key_log import log_begin
from cluster.messages import Ack, Chunk, Fetch, Refuse
from cluster.records import is_intact
from cluster.replica import step_down
from cluster.slot import Candidate, Copy, Slot
from cluster.slot_config import shared
from cluster.takeover import establish

if TYPE_CHECKING:
    from cluster.ballot import NodeId
    from cluster.messages import Head
    from cluster.slot import Context


def on_chunk(slot: Slot, sender: NodeId, chunk: Chunk, ctx: Context) -> None:
    """Take the next page, ask for the one after it, or switch to the copy (R11)."""
    if slot.promised > chunk.ballot:
        slot.copy = None
        ctx.out.send[sender].append(Refuse(slot.number, slot.promised))
        return
    if not _is_awaited(slot, sender, chunk, ctx):
        return
    copy = slot.copy
    if copy is not None and (copy.ballot, copy.source) != (chunk.ballot, sender):
        copy = slot.copy = None
    if chunk.head is not None and (copy is None or chunk.head.position != copy.content.position):
        copy = slot.copy = begin_copy(slot, sender, chunk, chunk.head, ctx)
    if copy is None:
        return
    copy.heard_ms = ctx.now_ms
    if chunk.at > copy.content.sequence:  # an Accept was lost: no page can fit any more
        slot.copy = None
        return
    if slot.damaged and not all(is_intact(record) for _, record in chunk.changes if record):
        slot.copy = None  # R18: damage does not replace damage
        return
    if chunk.after == copy.after and chunk.at == copy.content.sequence:
        for key, record in chunk.changes:
            ctx.store.write(copy.content.prefix + key, record)
        if not chunk.more:
            switch(slot, copy, ctx)
            return
        copy.after, copy.taken_ms = chunk.changes[-1][0], ctx.now_ms
    elif chunk.after != copy.after and chunk.head is None:
        return  # doubled
    ctx.out.send[sender].append(Fetch(slot.number, chunk.ballot, copy.after))


def _is_awaited(slot: Slot, sender: NodeId, chunk: Chunk, ctx: Context) -> bool:
    """Whether the sender may bring this replica anything, and to somewhere above its position."""
    candidate = slot.role
    if isinstance(candidate, Candidate) and candidate.copying == sender:
        candidate.since_ms = ctx.now_ms  # it makes progress
        return candidate.ballot == chunk.ballot
    if chunk.ballot.node != sender:
        return False
    stands = slot.position if slot.holds_state else slot.left_at
    brought = Position(chunk.ballot, chunk.at)
    # R11: never backwards; R15: above the stub; R18: the same position, but undamaged
    return brought > stands or (slot.damaged and brought == stands)


def begin_copy(slot: Slot, source: NodeId, chunk: Chunk, head: Head, ctx: Context) -> Copy:
    """An empty generation with the source's key log; an unfinished copy before it is dropped."""
    prefix = ctx.store.prefix(slot.number, slot.generation + 1)
    if slot.has_leftovers:
        ctx.store.drop(prefix)
    slot.has_leftovers = True
    content = Slot(slot.number, prefix)
    content.generation = slot.generation + 1
    content.established, content.sequence = head.position
    content.config, content.runs = head.config, head.runs
    for sequence, entry in head.entries:
        if sequence >= log_begin(content.sequence):
            ctx.store.log(prefix, sequence, entry)
    if not slot.holds_state:
        slot.save(ctx)  # so that a node that restarts knows where an unfinished copy lies
    return Copy(chunk.ballot, source, content, ctx.now_ms)


def switch(slot: Slot, copy: Copy, ctx: Context) -> None:
    """The copy is complete: become it, in this tick's one batch (R11)."""
    content = copy.content
    candidate = slot.role
    taking_over = isinstance(candidate, Candidate) and candidate.copying == copy.source
    if not taking_over:
        step_down(slot, ctx)
    slot.copy = None
    if slot.holds_state:
        assert content.position >= slot.position or not taking_over
        ctx.store.drop(slot.prefix)
    slot.holds_state = True
    slot.generation, slot.prefix = content.generation, content.prefix
    slot.has_leftovers = False
    slot.sequence, slot.runs = content.sequence, content.runs
    slot.config = shared(content.config)
    slot.established, slot.left_at = content.established, NO_POSITION
    slot.promised = copy.ballot
    if slot.damaged:
        slot.damaged = False
        ctx.damaged.discard(slot.number)
        ctx.repaired_total += 1
    slot.save(ctx)
    if taking_over:
        establish(slot, ctx)
    else:
        assert slot.established == copy.ballot
        ctx.out.after_fsync[copy.source].append(Ack(slot.number, copy.ballot, slot.sequence))
