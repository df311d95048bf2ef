"""Bugs to plant in the rules: each a switch that takes one of them out of the production code.

A proof that finds nothing says little until it has been seen to find something. Each of these is a
mistake that somebody could make, in one function. Those around the rules (members, storage,
clients, gossip) are in `tests.simulation.planted_around`; `make plants` tells after how many seeds
the simulation notices each of all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from cluster import copying, primary, replica, takeover, transfer
from cluster.ballot import NO_BALLOT
from cluster.messages import Ack, Prepare
from cluster.outputs import Moved
from cluster.reads import Reads
from cluster.slot_table import SlotTable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import pytest

    from cluster.ballot import NodeId
    from cluster.messages import Accept, Content, Establish, Install, Promise
    from cluster.operations import Result
    from cluster.outputs import Outputs, Ticket
    from cluster.slot import Call, Context, Copy, Primary, Slot
    from cluster.slot_config import SlotConfig

    Plant = Callable[[pytest.MonkeyPatch], None]


def ack_before_fsync(patch: pytest.MonkeyPatch) -> None:
    """R2: what a replica says that it holds is only in its memory."""
    take = SlotTable.take

    def bad(table: SlotTable) -> Outputs:
        out = take(table)
        for node, messages in out.after_fsync.items():
            if node != table._ctx.me:
                out.send[node] += [m for m in messages if isinstance(m, Ack)]
                messages[:] = [m for m in messages if not isinstance(m, Ack)]
        return out

    patch.setattr(SlotTable, "take", bad)


def accept_gap(patch: pytest.MonkeyPatch) -> None:
    """R2: a replica misses an operation and takes the next one."""

    def bad(slot: Slot, sender: NodeId, accept: Accept, ctx: Context) -> None:
        if slot.established == accept.ballot == slot.promised and accept.sequence > slot.sequence:
            slot.sequence = accept.sequence - 1
        replica.on_accept(slot, sender, accept, ctx)

    patch.setattr("cluster.dispatch.on_accept", bad)


def accept_promised_higher(patch: pytest.MonkeyPatch) -> None:
    """R2: an old primary's operation is taken although a newer ballot was promised."""

    def bad(slot: Slot, sender: NodeId, accept: Accept, ctx: Context) -> None:
        promised = slot.promised
        if slot.established == accept.ballot and accept.sequence == slot.sequence + 1:
            slot.promised = accept.ballot
        replica.on_accept(slot, sender, accept, ctx)
        slot.promised = promised

    patch.setattr("cluster.dispatch.on_accept", bad)


def commit_on_one(patch: pytest.MonkeyPatch) -> None:
    """R3: one durable copy is called committed."""

    def bad(durable: Mapping[NodeId, int], config: SlotConfig) -> int:
        return max(durable.values())

    patch.setattr("cluster.primary.committed_sequence", bad)


def retry_not_looked_up(patch: pytest.MonkeyPatch) -> None:
    """R5: a repeated attempt is carried out again."""

    def bad(slot: Slot, primary: Primary, call: Call, ctx: Context) -> None:
        return None

    patch.setattr("cluster.primary.look_up", bad)


def conflict_not_logged(patch: pytest.MonkeyPatch) -> None:
    """R5: the failed condition of a retry is not written down."""
    write = primary.write

    def bad(slot: Slot, role: Primary, call: Call, ctx: Context) -> Result | None:
        call.retry = False
        return write(slot, role, call, ctx)

    patch.setattr("cluster.slot_table.write", bad)


def read_unconfirmed(patch: pytest.MonkeyPatch) -> None:
    """R6: a primary answers reads without asking whether it still is one."""

    def bad(reads: Reads, slot: Slot, role: Primary, ticket: Ticket, result: Result) -> None:
        _answer(reads, ticket, result)

    def send_round(reads: Reads, ctx: Context) -> None:
        ctx.out.answers += _ANSWERS.pop(id(reads), [])

    patch.setattr(Reads, "join", bad)
    patch.setattr(Reads, "send_round", send_round)


_ANSWERS: dict[int, list[tuple[Any, Any]]] = {}


def _answer(reads: Reads, ticket: Ticket, result: Result) -> None:
    _ANSWERS.setdefault(id(reads), []).append((ticket, result))


def promise_not_durable(patch: pytest.MonkeyPatch) -> None:
    """R9: a promise is forgotten in a crash."""

    def bad(slot: Slot, sender: NodeId, prepare: Prepare, ctx: Context) -> None:
        save = type(slot).save
        patch_save(slot, lambda: replica.on_prepare(slot, sender, prepare, ctx), save)

    def patch_save(slot: Slot, call: Callable[[], None], save: Any) -> None:
        kind = type(slot)
        kind.save = lambda self, ctx: None  # type: ignore[method-assign]
        try:
            call()
        finally:
            kind.save = save  # type: ignore[method-assign]

    patch.setattr("cluster.dispatch.on_prepare", bad)


def lead_with_stale_state(patch: pytest.MonkeyPatch) -> None:
    """R9: the candidate does not copy best."""

    def bad(promises: dict[NodeId, Promise], me: NodeId) -> NodeId:
        return me

    patch.setattr("cluster.takeover.best_of", bad)


def best_by_sequence(patch: pytest.MonkeyPatch) -> None:
    """R9: best is who has the highest sequence, of whatever ballot."""

    def bad(promises: dict[NodeId, Promise], me: NodeId) -> NodeId:
        return max(promises, key=lambda n: (promises[n].position.sequence, n == me))

    patch.setattr("cluster.takeover.best_of", bad)


def establish_any_position(patch: pytest.MonkeyPatch) -> None:
    """R9: a replica enters the ballot with whatever it holds."""

    def bad(slot: Slot, sender: NodeId, establish: Establish, ctx: Context) -> None:
        here = msgspec.structs.replace(establish, base=slot.position, newest=0)
        replica.on_establish(slot, sender, here, ctx)

    patch.setattr("cluster.dispatch.on_establish", bad)


def serve_before_established(patch: pytest.MonkeyPatch) -> None:
    """R9: the candidate serves as soon as it has prepared."""
    good = takeover.establish

    def bad(slot: Slot, ctx: Context) -> None:
        good(slot, ctx)
        role = slot.role
        assert role is not None
        role.serving = True  # type: ignore[union-attr]
        ctx.out.leads_changed.add(slot.number)

    patch.setattr("cluster.takeover.establish", bad)
    patch.setattr("cluster.copying.establish", bad)


def transfer_one_side(patch: pytest.MonkeyPatch) -> None:
    """R11: what the straying side touched is left as it is."""
    good = transfer.content_for

    def bad(slot: Slot, common: int | None, keys: list[bytes], ctx: Context) -> Content | None:
        return good(slot, common, [], ctx)

    patch.setattr("cluster.transfer.content_for", bad)
    patch.setattr("cluster.takeover.content_for", bad)


def transfer_merges_logs(patch: pytest.MonkeyPatch) -> None:
    """R11: the key log is merged instead of replaced."""
    good = transfer.install

    def bad(slot: Slot, content: Content, promised: Any, established: Any, ctx: Context) -> None:
        common = max(content.common, slot.sequence)
        good(slot, msgspec.structs.replace(content, common=common), promised, established, ctx)

    patch.setattr("cluster.transfer.install", bad)
    patch.setattr("cluster.takeover.install", bad)


def self_before_fsync(patch: pytest.MonkeyPatch) -> None:
    """R2: the primary counts itself for what is only in its memory."""
    take = SlotTable.take

    def bad(table: SlotTable) -> Outputs:
        ctx = table._ctx
        own = ctx.out.after_fsync.get(ctx.me, [])
        acks = [m for m in own if isinstance(m, Ack)]
        own[:] = [m for m in own if not isinstance(m, Ack)]
        table.receive(ctx.me, acks)
        out = take(table)
        if not out.after_fsync.get(ctx.me, True):  # an fsync for nothing would ask for the next one
            del out.after_fsync[ctx.me]
        return out

    patch.setattr(SlotTable, "take", bad)


def accept_not_established(patch: pytest.MonkeyPatch) -> None:
    """R2: who has promised takes operations, whatever it holds."""

    def bad(slot: Slot, sender: NodeId, accept: Accept, ctx: Context) -> None:
        if slot.holds_state and slot.promised == accept.ballot != slot.established:
            slot.established, slot.sequence = accept.ballot, accept.sequence - 1
        replica.on_accept(slot, sender, accept, ctx)

    patch.setattr("cluster.dispatch.on_accept", bad)


def ballot_reused(patch: pytest.MonkeyPatch) -> None:
    """R9: a candidate asks before its own promise is durable, and may pick the ballot again."""
    take = SlotTable.take

    def bad(table: SlotTable) -> Outputs:
        out = take(table)
        for node, messages in out.after_fsync.items():
            out.send[node] += [m for m in messages if isinstance(m, Prepare)]
            messages[:] = [m for m in messages if not isinstance(m, Prepare)]
        return out

    patch.setattr(SlotTable, "take", bad)


def read_uncommitted(patch: pytest.MonkeyPatch) -> None:
    """R6: a read does not wait for the write that it saw."""

    def bad(reads: Reads, slot: Slot, role: Primary, ticket: Ticket, result: Result) -> None:
        reads._reads_of(slot, role).answers.append((ticket, result))

    patch.setattr(Reads, "join", bad)


def conflict_unconfirmed(patch: pytest.MonkeyPatch) -> None:
    """R3: a failed condition is answered at once."""

    def bad(slot: Slot, role: Primary, call: Call, ctx: Context) -> Result | None:
        refused = primary.write(slot, role, call, ctx)
        if refused is not None:
            ctx.out.answers.append((call.ticket, refused))
        return None

    patch.setattr("cluster.slot_table.write", bad)


def seen_ignored(patch: pytest.MonkeyPatch) -> None:
    """R5: an id that is not found is executed, however much of the key log is gone."""
    look_up = primary.look_up

    def bad(slot: Slot, role: Primary, call: Call, ctx: Context) -> tuple[int, Result] | None:
        known = look_up(slot, role, call, ctx)
        return None if known is not None and not known[0] else known

    patch.setattr("cluster.primary.look_up", bad)


def fast_path_always(patch: pytest.MonkeyPatch) -> None:
    """R5: a first attempt is never looked up, whatever ballot its ``seen`` is of."""

    def bad(slot: Slot, role: Primary, call: Call, ctx: Context) -> Result | None:
        call.seen = role.ballot_bytes + call.seen[12:]
        return primary.write(slot, role, call, ctx)

    patch.setattr("cluster.slot_table.write", bad)


def retried_not_kept(patch: pytest.MonkeyPatch) -> None:
    """R5: a late first attempt is executed although a retry of it came."""

    def bad(slot: Slot, role: Primary, call: Call, ctx: Context) -> Result | None:
        role.retried.clear()
        return primary.write(slot, role, call, ctx)

    patch.setattr("cluster.slot_table.write", bad)


def seen_uncommitted(patch: pytest.MonkeyPatch) -> None:
    """R5: clients are told the newest position, committed or not."""
    look_up = primary.look_up

    def bad(slot: Slot, role: Primary, call: Call, ctx: Context) -> tuple[int, Result] | None:
        call.seen = role.ballot_bytes + slot.sequence.to_bytes(8, "big")
        return look_up(slot, role, call, ctx)

    patch.setattr("cluster.primary.look_up", bad)


def answers_before_commit(patch: pytest.MonkeyPatch) -> None:
    """R3: a write is answered when it is proposed."""

    def bad(role: Primary, waiting: Any) -> None:
        _EARLY.append((waiting.ticket, waiting.result))

    take = SlotTable.take

    def take_early(table: SlotTable) -> Outputs:
        out = take(table)
        out.answers += _EARLY
        _EARLY.clear()
        return out

    patch.setattr("cluster.primary.queue", bad)
    patch.setattr(SlotTable, "take", take_early)


_EARLY: list[tuple[Any, Any]] = []


def deposed_says_refused(patch: pytest.MonkeyPatch) -> None:
    """R4: what was in flight at a deposed primary counts as if it had never been given to one."""

    def bad(slot: Slot, ctx: Context) -> None:
        before = len(ctx.out.moved)
        replica.step_down(slot, ctx)
        moved = ctx.out.moved
        moved[before:] = [Moved(m.ticket, started=False) for m in moved[before:]]

    patch.setattr("cluster.takeover.step_down", bad)
    patch.setattr("cluster.transfer.step_down", bad)
    patch.setattr("cluster.copying.step_down", bad)


def stateless_promises(patch: pytest.MonkeyPatch) -> None:
    """R9: a node that has left the slot promises, and its word counts."""

    def bad(slot: Slot, sender: NodeId, prepare: Prepare, ctx: Context) -> None:
        holds, config = slot.holds_state, slot.config
        if not holds:
            slot.holds_state = True
        replica.on_prepare(slot, sender, prepare, ctx)
        slot.holds_state, slot.config = holds, config

    patch.setattr("cluster.dispatch.on_prepare", bad)


def transfer_not_atomic(patch: pytest.MonkeyPatch) -> None:
    """R11: records first, the position as a step of its own."""
    good = transfer.install

    def bad(slot: Slot, content: Content, promised: Any, established: Any, ctx: Context) -> None:
        for key, record in content.changes:
            ctx.store.write(slot.prefix + key, record)
        ctx.store.flush()  # type: ignore[attr-defined]
        good(slot, content, promised, established, ctx)

    patch.setattr("cluster.transfer.install", bad)
    patch.setattr("cluster.takeover.install", bad)


def transfer_keeps_deleted(patch: pytest.MonkeyPatch) -> None:
    """R11: what the source does not have is left where it is."""
    good = transfer.install

    def bad(slot: Slot, content: Content, promised: Any, established: Any, ctx: Context) -> None:
        there = [change for change in content.changes if change[1] is not None]
        there_only = msgspec.structs.replace(content, changes=there)
        good(slot, there_only, promised, established, ctx)

    patch.setattr("cluster.transfer.install", bad)
    patch.setattr("cluster.takeover.install", bad)


def transfer_at_any_position(patch: pytest.MonkeyPatch) -> None:
    """R11: content is taken at another position than the one it was computed for."""

    def bad(slot: Slot, sender: NodeId, message: Install, ctx: Context) -> None:
        here = msgspec.structs.replace(message, base=slot.position)
        transfer.on_install(slot, sender, here, ctx)

    patch.setattr("cluster.dispatch.on_install", bad)


def copy_misses_operations(patch: pytest.MonkeyPatch) -> None:
    """R11: what is written while a whole copy is under way is not applied to it."""
    follow = replica.follow

    def bad(slot: Slot, copy: Copy, sender: NodeId, accept: Accept, ctx: Context) -> None:
        if accept.sequence == copy.content.sequence + 1:
            copy.content.sequence = accept.sequence
        else:
            follow(slot, copy, sender, accept, ctx)

    patch.setattr("cluster.replica.follow", bad)


def copy_skips_a_row(patch: pytest.MonkeyPatch) -> None:
    """R11: between two pages of a whole copy a record is lost."""

    def bad(slot: Slot, after: bytes, ctx: Context) -> tuple[list[Any], bool]:
        changes, more = transfer_page(slot, after, ctx)
        return (changes[1:] if after and len(changes) > 1 else changes), more

    transfer_page = transfer.page
    patch.setattr("cluster.transfer.page", bad)


def copy_forgets_the_promise(patch: pytest.MonkeyPatch) -> None:
    """R11: a whole copy is switched to although a higher ballot was promised meanwhile."""

    def bad(slot: Slot, sender: NodeId, chunk: Any, ctx: Context) -> None:
        if slot.promised > chunk.ballot:
            slot.promised = slot.established = NO_BALLOT
        copying.on_chunk(slot, sender, chunk, ctx)

    patch.setattr("cluster.dispatch.on_chunk", bad)


PLANTS: list[Plant] = [
    ack_before_fsync,
    self_before_fsync,
    accept_gap,
    accept_promised_higher,
    accept_not_established,
    commit_on_one,
    answers_before_commit,
    conflict_unconfirmed,
    deposed_says_refused,
    retry_not_looked_up,
    conflict_not_logged,
    seen_ignored,
    seen_uncommitted,
    fast_path_always,
    retried_not_kept,
    read_unconfirmed,
    read_uncommitted,
    promise_not_durable,
    ballot_reused,
    stateless_promises,
    lead_with_stale_state,
    best_by_sequence,
    establish_any_position,
    serve_before_established,
    transfer_one_side,
    transfer_merges_logs,
    transfer_not_atomic,
    transfer_keeps_deleted,
    transfer_at_any_position,
    copy_misses_operations,
    copy_skips_a_row,
    copy_forgets_the_promise,
]
