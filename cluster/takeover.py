"""Becoming primary: the candidate of rule 9.

::

    ask ──quorum willing──> prepare ──quorum promised──> (copy best) ──> establish ──> Primary
     └─ no effect             └─ own promise durable first    └─ rule 11

A candidate asks without effect first, so one that cannot win disturbs nobody. *Best* is the highest
position among the promises, and the quorum is counted by best's config. No operation of the new
ballot exists before a quorum is established.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cluster.ballot import Ballot, NodeId
from cluster.key_log import add_run, common_sequence, whole_log
from cluster.messages import (
    Ack,
    Ask,
    Establish,
    Prepare,
    Promise,
    Pull,
    Pulled,
    Refuse,
    Willing,
)
from cluster.quorum import is_quorum
from cluster.replica import step_down
from cluster.slot import Candidate, Primary
from cluster.transfer import BRING_AGAIN_MS, content_for, install, send_first_chunk, touched_keys

if TYPE_CHECKING:
    from cluster.slot import Context, Slot


def next_ballot(slot: Slot, ctx: Context) -> Ballot:
    """A ballot above all that this node has seen (R9)."""
    return Ballot(max(slot.promised.round, slot.round_seen) + 1, ctx.me)


def ask(slot: Slot, ctx: Context) -> None:
    """Begin: would a quorum promise? Nothing changes anywhere by this (R9).

    The first in ring order need not ask once every member has told that it leads nothing here: so
    it is when a whole cluster starts. It is only the first, or two would depose each other's
    establishing for ever.
    """
    assert slot.holds_state
    assert slot.role is None
    members = slot.config.members
    if members[0] == ctx.me and slot.number not in ctx.leader_of and ctx.told.issuperset(members):
        prepare(slot, ctx)
        return
    ballot = next_ballot(slot, ctx)
    candidate = slot.role = Candidate(ballot, ctx.now_ms, asking=True)
    candidate.willing.add(ctx.me)
    if is_quorum(candidate.willing, slot.config):
        prepare(slot, ctx)
        return
    for node in slot.config.members:
        if node != ctx.me:
            ctx.out.send[node].append(Ask(slot.number, ballot))


def on_ask(slot: Slot, sender: NodeId, message: Ask, ctx: Context) -> None:
    """Say yes unless this node can reach a primary, or the ballot is too low (R10).

    Where it does it says nothing, but remembers: the sender may only be the first to have noticed
    that the primary died (`answer_late`). Whoever brings this node a whole copy is as good as a
    primary: it may need this copy to be established, and a copy that takes longer than patience
    must still come to its end.
    """
    leader, copy = ctx.leader_of.get(slot.number), slot.copy
    led = isinstance(slot.role, Primary) or (leader in ctx.reachable and leader != sender)
    if copy is not None and copy.source in ctx.reachable and copy.source != sender:
        led = led or ctx.now_ms - copy.taken_ms <= BRING_AGAIN_MS
    if led:
        ctx.unanswered[slot.number] = (sender, message)
        # The sender may know of a higher ballot: then it refuses. One that came back has its turn.
        if isinstance(slot.role, Primary) and sender not in ctx.brought:
            again = Establish(slot.number, slot.role.ballot, slot.role.base, slot.sequence)
            ctx.out.send[sender].append(again)
    elif slot.holds_state and sender in slot.config.everyone:  # who has left cannot win
        if message.ballot <= slot.promised:
            ctx.out.send[sender].append(Refuse(slot.number, slot.promised))
        else:
            ctx.out.send[sender].append(Willing(slot.number, message.ballot))


def answer_late(slot: Slot, ctx: Context) -> None:
    """The primary is out of reach for this node too now."""
    asked = ctx.unanswered.pop(slot.number, None)
    if asked is not None:
        on_ask(slot, *asked, ctx)


def on_willing(slot: Slot, sender: NodeId, message: Willing, ctx: Context) -> None:
    """A quorum that would promise is reason enough to prepare."""
    candidate = slot.role
    if isinstance(candidate, Candidate) and candidate.asking and candidate.ballot == message.ballot:
        candidate.willing.add(sender)
        if is_quorum(candidate.willing, slot.config):
            prepare(slot, ctx)


def prepare(slot: Slot, ctx: Context) -> Candidate:
    """Promise to itself durably, then ask the members to promise (R9)."""
    assert slot.holds_state
    assert not slot.damaged, "who may stand is decided before"
    step_down(slot, ctx)
    ballot = next_ballot(slot, ctx)
    candidate = slot.role = Candidate(ballot, ctx.now_ms, asking=False)
    slot.promised = ballot
    slot.save(ctx)
    mine = Promise(slot.number, ballot, slot.position, slot.config, slot.runs)
    ctx.out.after_fsync[ctx.me].append(mine)
    for node in slot.config.members:
        if node != ctx.me:
            candidate.asked.add(node)
            ctx.out.after_fsync[node].append(Prepare(slot.number, ballot))
    return candidate


def on_promise(slot: Slot, sender: NodeId, promise: Promise, ctx: Context) -> None:
    """Collect promises until best's config says that they are a quorum (R9)."""
    candidate = slot.role
    if not isinstance(candidate, Candidate) or candidate.ballot != promise.ballot:
        return
    if candidate.copying is not None:  # R9: best is fixed; later promises change nothing
        return
    candidate.promises.setdefault(sender, promise)
    promises = candidate.promises
    if ctx.me not in promises:
        return
    best = best_of(promises, ctx.me)
    if best is None:
        return
    config = promises[best].config
    for node in config.members:  # R9: more promises may be needed
        if node != ctx.me and node not in candidate.asked:
            candidate.asked.add(node)
            ctx.out.send[node].append(Prepare(slot.number, candidate.ballot))
    if not is_quorum(promises, config):
        return
    if ctx.me not in config.members:
        slot.role = None
    elif promises[best].position == slot.position:
        establish(slot, ctx)
    else:
        candidate.copying = best
        pull(slot, best, promises[best], ctx)


def best_of(promises: dict[NodeId, Promise], me: NodeId) -> NodeId | None:
    """Who has the highest position; this node itself if nobody has a higher one (R9).

    A damaged replica promises where it stood, but cannot be best (R18). None while its promise is
    needed for the quorum and nobody undamaged stands as high: somebody who does has to promise too.
    """
    best, position = me, promises[me].position
    for node, promise in promises.items():
        if promise.position > position and not promise.damaged:
            best, position = node, promise.position
    whole = {node for node, promise in promises.items() if not promise.damaged}
    missed = len(whole) < len(promises) and any(p.position > position for p in promises.values())
    return None if missed and not is_quorum(whole, promises[best].config) else best


def pull(slot: Slot, best: NodeId, promise: Promise, ctx: Context) -> None:
    """Ask best for its state (R11)."""
    common = common_sequence(slot.runs, slot.sequence, promise.runs, promise.position.sequence)
    common = whole_log(common, promise.position.sequence, slot.sequence)
    keys = [] if common is None else touched_keys(slot, common, ctx)
    ctx.out.send[best].append(Pull(slot.number, promise.ballot, slot.position, common, keys))


def on_pull(slot: Slot, sender: NodeId, message: Pull, ctx: Context) -> None:
    """Give a candidate this replica's state, while the promise to it stands (R11)."""
    if slot.holds_state and slot.promised == message.ballot:
        content = content_for(slot, message.common, message.keys, ctx)
        if content is None:
            send_first_chunk(slot, message.ballot, sender, ctx)
            return
        ctx.out.send[sender].append(Pulled(slot.number, message.ballot, message.position, content))


def on_pulled(slot: Slot, sender: NodeId, message: Pulled, ctx: Context) -> None:
    """Take best's state in one atomic step, and establish it (R9, R11)."""
    candidate = slot.role
    if not isinstance(candidate, Candidate) or candidate.ballot != message.ballot:
        return
    assert candidate.copying == sender
    assert slot.promised == candidate.ballot
    if slot.position != message.base:
        return
    assert message.content.position >= slot.position
    install(slot, message.content, candidate.ballot, message.content.position.established, ctx)
    establish(slot, ctx)


def establish(slot: Slot, ctx: Context) -> None:
    """All of this state belongs to the new ballot now; bring the others to it (R9)."""
    candidate = slot.role
    assert isinstance(candidate, Candidate)
    assert slot.promised == candidate.ballot
    ballot, base = candidate.ballot, slot.position
    slot.role = primary = Primary(ballot, base, slot.config, ctx.now_ms)
    slot.established = ballot
    slot.runs = add_run(slot.runs, ballot, slot.sequence)
    slot.save(ctx)
    ctx.out.after_fsync[ctx.me].append(Ack(slot.number, ballot, slot.sequence))
    for peer in primary.peers:
        ctx.out.send[peer].append(Establish(slot.number, ballot, base, slot.sequence))


def on_refuse(slot: Slot, sender: NodeId, refuse: Refuse, ctx: Context) -> None:
    """Somebody promised a higher ballot: stop, and remember the round (R4)."""
    slot.round_seen = max(slot.round_seen, refuse.promised.round)
    if slot.role is not None and refuse.promised > slot.role.ballot:
        step_down(slot, ctx)
