"""The replica's part: rules 2 and 9, and being brought to a primary's content.

Each handler answers a message from a primary or candidate. What it acknowledges or promises is
fixed when the answer is queued and leaves only after the fsync that covers it
(`Outputs.after_fsync`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cluster.key_log import add_run, log_begin
from cluster.messages import Accept, Ack, Establish, Gap, Prepare, Promise, Refuse
from cluster.outputs import Moved
from cluster.slot import Primary
from cluster.slot_config import shared
from cluster.space import is_refused

if TYPE_CHECKING:
    from cluster.ballot import NodeId
    from cluster.messages import Change, Compare, Condemn
    from cluster.slot import Context, Copy, Slot
    from cluster.slot_config import SlotConfig


def apply(
    slot: Slot,
    sequence: int,
    entry: bytes,
    changes: list[Change],
    config: SlotConfig | None,
    ctx: Context,
) -> None:
    """One operation into the store: records, log entry, config, in one atomic batch (R1, R2)."""
    assert sequence == slot.sequence + 1
    store, prefix = ctx.store, slot.prefix
    for key, record in changes:
        store.write(prefix + key, record)  # R8: absence is absence
    store.log(prefix, sequence, entry)
    slot.sequence = sequence
    begin = log_begin(sequence)
    if begin != log_begin(sequence - 1):
        store.drop_log(prefix, log_begin(sequence - 1), begin)
    if config is not None:  # R14: it counts from now on, committed or not
        slot.config = shared(config)
        slot.save(ctx)


def on_accept(slot: Slot, sender: NodeId, accept: Accept, ctx: Context) -> None:
    """Take the primary's next operation, or say what is in the way (R2)."""
    ballot = accept.ballot
    in_ballot = slot.established == ballot == slot.promised and not slot.damaged  # R18
    if in_ballot and accept.sequence <= slot.sequence + 1:
        if accept.sequence == slot.sequence + 1:
            if ctx.full and is_refused(accept.changes, ctx):
                return
            apply(slot, accept.sequence, accept.entry, accept.changes, accept.config, ctx)
        ctx.out.after_fsync[sender].append(Ack(slot.number, ballot, slot.sequence))
    elif slot.promised > ballot:
        ctx.out.send[sender].append(Refuse(slot.number, slot.promised))
    elif slot.copy is not None and slot.copy.ballot == ballot:
        follow(slot, slot.copy, sender, accept, ctx)
    elif slot.holds_state and not (ctx.me in ctx.full and slot.established == ballot):
        send_gap(slot, sender, accept, ctx)


def follow(slot: Slot, copy: Copy, sender: NodeId, accept: Accept, ctx: Context) -> None:
    """Keep a copy that is under way where its primary is; it counts for nothing yet (R11)."""
    content = copy.content
    if accept.sequence == content.sequence + 1:
        apply(content, accept.sequence, accept.entry, accept.changes, None, ctx)
        content.config = accept.config or content.config
    elif accept.sequence > content.sequence:
        slot.copy = None
        send_gap(slot, sender, accept, ctx)


def send_gap(
    slot: Slot, sender: NodeId, message: Accept | Establish | Compare | Condemn, ctx: Context
) -> None:
    """Say where this replica stands, so that the primary runs rule 11."""
    position = slot.position if slot.holds_state and not slot.damaged else None  # R18: whole
    ctx.out.send[sender].append(Gap(slot.number, message.ballot, position, slot.runs, slot.left_at))


def on_prepare(slot: Slot, sender: NodeId, prepare: Prepare, ctx: Context) -> None:
    """Promise a higher ballot, answering only once that is durable (R9)."""
    ballot = prepare.ballot
    if not slot.holds_state:  # R9: nobody without state promises
        return
    if ballot < slot.promised:
        ctx.out.send[sender].append(Refuse(slot.number, slot.promised))
        return
    if ballot > slot.promised:
        step_down(slot, ctx)
        slot.promised = ballot
        slot.save(ctx)
    ctx.out.after_fsync[sender].append(
        Promise(slot.number, ballot, slot.position, slot.config, slot.runs, slot.damaged)
    )


def on_establish(slot: Slot, sender: NodeId, establish: Establish, ctx: Context) -> None:
    """Enter the candidate's ballot if the content is equal, else ask to be brought to it (R9)."""
    ballot = establish.ballot
    if slot.promised > ballot:
        ctx.out.send[sender].append(Refuse(slot.number, slot.promised))
        return
    entered = slot.holds_state and slot.established == ballot
    whole = slot.holds_state and not slot.damaged
    if whole and not entered and (slot.established, slot.sequence) == establish.base:
        step_down(slot, ctx)
        slot.copy = None
        slot.promised = slot.established = ballot
        slot.runs = add_run(slot.runs, ballot, slot.sequence)
        slot.save(ctx)
    if slot.copy is not None and slot.copy.ballot == ballot:
        slot.copy.heard_ms = ctx.now_ms
    in_ballot = whole and slot.established == ballot
    in_step = in_ballot and slot.sequence >= establish.newest
    if not in_step and not (entered and ctx.me in ctx.full):  # full: only what a takeover needs
        send_gap(slot, sender, establish, ctx)
    if in_ballot:
        ctx.out.after_fsync[sender].append(Ack(slot.number, ballot, slot.sequence))


def step_down(slot: Slot, ctx: Context) -> None:
    """Stop being candidate or primary; what was in flight goes to the next primary (R4)."""
    role, slot.role = slot.role, None
    if not isinstance(role, Primary):
        return
    ctx.out.moved += [Moved(waiting.ticket, started=True) for waiting in role.waiting]
    ctx.out.moved += [Moved(call.ticket, started=call.retry) for call in role.held]
    if role.feed is not None:
        role.feed.end(ctx.out)
    if role.serving:
        ctx.out.leads_changed.add(slot.number)
