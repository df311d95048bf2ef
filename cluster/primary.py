"""The primary's part: rules 1, 3, 4, 5, 7 and 8.

A write is judged against the newest state, in-flight writes included, gets the next sequence, and
goes into the own store and to every peer in the same tick. It is answered when a quorum is durable
at its sequence; the primary counts itself by the same acknowledgement as everyone (rule 2). A blind
put reads nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cluster.evaluate import evaluate, expired_keys
from cluster.key_log import LogEntry, decode_entry, encode_entry
from cluster.limits import RETRIED_OPERATIONS_MAX, SLOT_OPERATIONS_IN_FLIGHT_MAX
from cluster.messages import Accept, Ack
from cluster.operations import (
    Code,
    Deleted,
    Done,
    Failed,
    Get,
    Number,
    Result,
    Scan,
    Stale,
)
from cluster.quorum import committed_sequence, is_quorum
from cluster.records import VERSION_BYTES, pack_version, unpack_version
from cluster.replica import apply
from cluster.slot import Primary, Waiting

if TYPE_CHECKING:
    from cluster.ballot import NodeId
    from cluster.messages import Change
    from cluster.slot import Call, Context, Slot
    from cluster.slot_config import SlotConfig

_BALLOT_BYTES = 12
_OVERLOADED = Failed(Code.OVERLOADED, "too many operations are in flight in this slot", 50)
_UNKNOWN = Failed(
    Code.UNKNOWN,
    "this is a retry, and the slot's key log does not reach back to its first attempt any more",
)


def write(slot: Slot, primary: Primary, call: Call, ctx: Context) -> Result | None:
    """Carry out a write, once however often it is sent (R1, R5).

    Returns:
        What must be answered like a read: a failed condition (R3). None for all else.
    """
    if len(primary.waiting) >= SLOT_OPERATIONS_IN_FLIGHT_MAX:
        ctx.out.answers.append((call.ticket, _OVERLOADED))
        return None
    op_id = (call.client, call.number)
    retried = call.retry or (bool(primary.retried) and op_id in primary.retried)
    if call.retry:
        primary.retried.add(op_id)
    if retried or call.seen[:_BALLOT_BYTES] != primary.ballot_bytes:  # R5
        known = look_up(slot, primary, call, ctx)
        if known is not None:
            answer_when(slot, primary, known[0], call, known[1], ctx)
            return None
    version = primary.ballot_bytes + (slot.sequence + 1).to_bytes(8, "big")
    assert not isinstance(call.operation, Get | Scan)
    changes, result = evaluate(call.operation, version, slot.prefix, ctx)
    if changes is None:
        expired = expired_keys(call.operation, slot.prefix, ctx)  # R7
        if not retried:
            if expired:
                delete_expired(slot, primary, expired, ctx)
            return result
        # R5: written down, even without a change, so that no other attempt can still succeed
        changes = [(key, None) for key in expired]
    propose(slot, primary, op_id, changes, result, ctx)
    queue(primary, Waiting(slot.sequence, call.ticket, result, confirmed=True))
    return None


def look_up(slot: Slot, primary: Primary, call: Call, ctx: Context) -> tuple[int, Result] | None:
    """The recorded (sequence, result), or why it cannot be told; None to execute (R5)."""
    seen = unpack_version(call.seen).sequence if len(call.seen) == VERSION_BYTES else 0
    above = ctx.store.log_entries(slot.prefix, seen) if seen < slot.sequence else ()
    for sequence, raw in above:
        entry = decode_entry(raw)
        if entry.client == call.client and entry.number == call.number:
            return sequence, logged_result(entry, sequence)
    if not call.seen or seen + 1 >= slot.log_begin:
        return None  # nothing above `seen` was ever evicted, or the sender cannot keep `seen`
    if call.retry:
        return 0, _UNKNOWN
    return 0, Stale(pack_version(primary.ballot, primary.committed))


def logged_result(entry: LogEntry, sequence: int) -> Result:
    """What the operation of this entry answered; the version is its place in the log."""
    version = entry.ballot_round.to_bytes(4, "big") + entry.ballot_node.to_bytes(8, "big")
    version += sequence.to_bytes(8, "big")
    match entry.result:
        case None:
            return Done(version)
        case Deleted(existed=existed):
            return Deleted(version, existed)
        case Number(value=value):
            return Number(version, value)
        case other:
            return other


def propose(
    slot: Slot,
    primary: Primary,
    op_id: tuple[int, int],
    changes: list[Change],
    result: Result | None,
    ctx: Context,
    config: SlotConfig | None = None,
) -> None:
    """The next operation: into the own store and to every peer in parallel (R1)."""
    ballot, sequence = primary.ballot, slot.sequence + 1
    recorded = None if isinstance(result, Done) else result
    keys = [key for key, _ in changes]
    entry = encode_entry(LogEntry(ballot.round, ballot.node, op_id[0], op_id[1], keys, recorded))
    accept = Accept(slot.number, ballot, sequence, entry, changes, config)
    send, peers = ctx.out.send, primary.peers
    if config is not None:  # R14: who is left out by it is told of it, and of nothing after it
        primary.config_at = sequence
        primary.peers = tuple(node for node in config.everyone if node != ctx.me)
        peers = tuple(dict.fromkeys((*peers, *primary.peers)))
    for peer in peers:
        send[peer].append(accept)
    apply(slot, sequence, entry, changes, config, ctx)
    ctx.out.after_fsync[ctx.me].append(Ack(slot.number, ballot, sequence))
    if primary.feed is not None:
        primary.feed.add(sequence, changes)


def delete_expired(slot: Slot, primary: Primary, keys: list[bytes], ctx: Context) -> None:
    """Delete what was found to be over, in one operation that no client asked for (R7)."""
    propose(slot, primary, (0, 0), [(key, None) for key in keys], None, ctx)


def answer_when(
    slot: Slot, primary: Primary, needs: int, call: Call, result: Result, ctx: Context
) -> None:
    """Answer now if ``needs`` is committed, else when it is (R3)."""
    if needs <= primary.committed:
        ctx.out.answers.append((call.ticket, result))
        return
    waiting = Waiting(needs, call.ticket, result, confirmed=True)
    waiting.queued = True
    place = len(primary.waiting)
    while place and primary.waiting[place - 1].needs > needs:
        place -= 1
    primary.waiting.insert(place, waiting)
    assert needs <= slot.sequence


def queue(primary: Primary, waiting: Waiting) -> None:
    """Behind everything that waits; ``needs`` is the newest sequence."""
    waiting.queued = True
    primary.waiting.append(waiting)


def on_ack(slot: Slot, sender: NodeId, ack: Ack, ctx: Context) -> None:
    """Count who is durable; commit and answer what a quorum has (R3)."""
    primary = slot.role
    if not isinstance(primary, Primary) or primary.ballot != ack.ballot:
        return
    if ack.sequence <= primary.durable.get(sender, -1):
        return
    primary.durable[sender] = ack.sequence
    primary.bringing.pop(sender, None)
    if not primary.serving:
        if is_quorum(primary.durable, slot.config):  # R9: established
            primary.serving = True
            assert primary.committed == slot.sequence, "no operation of this ballot exists before"
            ctx.out.leads_changed.add(slot.number)
        return
    if ack.sequence > primary.committed:
        committed = committed_sequence(primary.durable, slot.config)
        if committed > primary.committed:
            primary.committed = committed
            release(primary, ctx)
            if primary.feed is not None:
                primary.feed.release(primary, ctx.out)


def release(primary: Primary, ctx: Context) -> None:
    """Answer in commit order what the committed sequence lets go (R3)."""
    waiting, committed = primary.waiting, primary.committed
    answers = ctx.out.answers
    while waiting and waiting[0].needs <= committed:
        head = waiting.popleft()
        head.queued = False
        if head.confirmed:
            answers.append((head.ticket, head.result))


def must_renew(primary: Primary) -> bool:
    """Whether the ids of retries have filled their room, so that a new ballot is due (R5)."""
    return len(primary.retried) >= RETRIED_OPERATIONS_MAX
