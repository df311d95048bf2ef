"""State transfer: one replica to another's content, in one atomic step (rule 11).

The two key logs are compared by their runs (`cluster.key_log`). From the newest entry that both
hold, the source sends its records (or their absence) for every key that *either* side touched
since, all of one moment, with its own log entries. Beyond the key log's reach it sends a whole
copy, which goes into a new generation of the slot. Either way the receiver's change is one batch of
the tick: a crash leaves the old state or the new one, and the position names which.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cluster.ballot import Ballot, NodeId, Position
from cluster.key_log import common_sequence, decode_entry, log_begin
from cluster.messages import Ack, Content, Establish, Gap, Install, Refuse, Tail, TailQuery
from cluster.replica import send_gap, step_down
from cluster.slot import Primary

if TYPE_CHECKING:
    from cluster.messages import Change
    from cluster.slot import Context, Slot

BRING_AGAIN_MS = 1_000
"""A peer that stands where it stood is sent content again only after this: messages may be lost."""

_EVERYTHING = 2**31


def touched_keys(slot: Slot, above: int, ctx: Context) -> list[bytes]:
    """Keys of the key log's entries above a sequence, each once."""
    entries = ctx.store.log_entries(slot.prefix, above)
    return list(dict.fromkeys(key for _, raw in entries for key in decode_entry(raw).keys))


def content_for(slot: Slot, common: int | None, their_keys: list[bytes], ctx: Context) -> Content:
    """The content since ``common``, for somebody who touched ``their_keys`` since (R11)."""
    changes: list[Change]
    if common is None:
        changes = list(ctx.store.scan(slot.prefix, b"", _EVERYTHING))
        entries = ctx.store.log_entries(slot.prefix, 0)
    else:
        entries = ctx.store.log_entries(slot.prefix, common)
        mine = (key for _, raw in entries for key in decode_entry(raw).keys)
        keys = dict.fromkeys((*mine, *their_keys))
        changes = [(key, ctx.store.read(slot.prefix + key)) for key in keys]
    return Content(common, slot.position, slot.config, slot.runs, entries, changes)


def install(
    slot: Slot, content: Content, promised: Ballot, established: Ballot, ctx: Context
) -> None:
    """Become what ``content`` says, in this tick's one batch (R11)."""
    store = ctx.store
    sequence = content.position.sequence
    begin = log_begin(sequence)
    if content.common is None:
        if slot.holds_state:
            store.drop(slot.prefix)
        slot.generation += 1
        slot.prefix = store.prefix(slot.number, slot.generation)
    else:
        store.drop_log(slot.prefix, content.common + 1, slot.sequence + 1)  # replaced, not merged
        store.drop_log(slot.prefix, slot.log_begin, begin)
    for key, record in content.changes:
        store.write(slot.prefix + key, record)
    for at, entry in content.entries:
        if at >= begin:
            store.log(slot.prefix, at, entry)
    slot.holds_state = True
    slot.sequence = sequence
    slot.config = content.config
    slot.runs = content.runs
    slot.promised, slot.established = promised, established
    slot.save(ctx)


def on_gap(slot: Slot, sender: NodeId, gap: Gap, ctx: Context) -> None:
    """A peer cannot follow: bring it here (R11)."""
    primary = slot.role
    if not isinstance(primary, Primary) or primary.ballot != gap.ballot:
        return
    if gap.position is not None and gap.position >= slot.position:
        return
    last = primary.bringing.get(sender)
    if last is not None and last[0] == gap.position and ctx.now_ms - last[1] < BRING_AGAIN_MS:
        return
    primary.bringing[sender] = (gap.position, ctx.now_ms)
    if gap.position is None:
        send_install(slot, primary, sender, None, None, [], ctx)
        return
    common = common_sequence(slot.runs, slot.sequence, gap.runs, gap.position.sequence)
    if common is not None and gap.position.sequence > common:  # it strayed: which keys?
        ctx.out.send[sender].append(TailQuery(slot.number, primary.ballot, common))
        return
    send_install(slot, primary, sender, gap.position, common, [], ctx)


def on_tail_query(slot: Slot, sender: NodeId, query: TailQuery, ctx: Context) -> None:
    """Name the keys that this replica touched since it strayed."""
    if slot.holds_state and slot.promised <= query.ballot:
        keys = touched_keys(slot, query.common, ctx)
        ctx.out.send[sender].append(
            Tail(slot.number, query.ballot, slot.position, query.common, keys)
        )


def on_tail(slot: Slot, sender: NodeId, tail: Tail, ctx: Context) -> None:
    """Now everything that must be sent is known."""
    primary = slot.role
    if isinstance(primary, Primary) and primary.ballot == tail.ballot:
        common = tail.common if tail.common + 1 >= slot.log_begin else None
        send_install(slot, primary, sender, tail.position, common, tail.keys, ctx)


def send_install(
    slot: Slot,
    primary: Primary,
    peer: NodeId,
    base: Position | None,
    common: int | None,
    keys: list[bytes],
    ctx: Context,
) -> None:
    """Send this primary's content, valid for a peer that stands at ``base``."""
    content = content_for(slot, common, keys, ctx)
    ctx.out.send[peer].append(Install(slot.number, primary.ballot, base, content))


def on_install(slot: Slot, sender: NodeId, message: Install, ctx: Context) -> None:
    """Take the primary's content and enter its ballot, both at once (R11)."""
    ballot, content = message.ballot, message.content
    if slot.promised > ballot:
        ctx.out.send[sender].append(Refuse(slot.number, slot.promised))
        return
    if (slot.position if slot.holds_state else None) != message.base:
        again = Establish(slot.number, ballot, content.position, content.position.sequence)
        if not (slot.holds_state and slot.established == ballot):
            send_gap(slot, sender, again, ctx)
        return
    target = Position(ballot, content.position.sequence)
    if target <= (slot.position if slot.holds_state else slot.left_at):
        return  # R11: never backwards; R15: only above the stub
    step_down(slot, ctx)
    install(slot, content, ballot, ballot, ctx)
    ctx.out.after_fsync[sender].append(Ack(slot.number, ballot, slot.sequence))
