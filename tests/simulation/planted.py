"""Bugs to plant: each a switch that takes one rule out of the production code.

A proof that finds nothing says little until it has been seen to find something. Each of these is a
mistake that somebody could make, in one function; the simulation must notice it within
`SEEDS_MAX` seeds. `docs/correctness.md` says how many each one took.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from cluster import primary, replica, takeover, transfer
from cluster.messages import Ack
from cluster.reads import Reads
from cluster.slot_table import SlotTable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import pytest

    from cluster.ballot import NodeId
    from cluster.messages import Accept, Content, Establish, Prepare, Promise
    from cluster.operations import Result
    from cluster.outputs import Outputs, Ticket
    from cluster.slot import Call, Context, Primary, Slot
    from cluster.slot_config import SlotConfig

    Plant = Callable[[pytest.MonkeyPatch], None]


def ack_before_fsync(patch: pytest.MonkeyPatch) -> None:
    """R2: what a replica says that it holds is only in its memory."""
    take = SlotTable.take

    def bad(table: SlotTable) -> Outputs:
        out = take(table)
        for node, messages in out.after_fsync.items():
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
        common = max(content.common, min(slot.sequence, content.position.sequence))
        good(slot, msgspec.structs.replace(content, common=common), promised, established, ctx)

    patch.setattr("cluster.transfer.install", bad)
    patch.setattr("cluster.takeover.install", bad)


PLANTS: list[Plant] = [
    ack_before_fsync,
    accept_gap,
    accept_promised_higher,
    commit_on_one,
    retry_not_looked_up,
    conflict_not_logged,
    read_unconfirmed,
    promise_not_durable,
    lead_with_stale_state,
    best_by_sequence,
    establish_any_position,
    serve_before_established,
    transfer_one_side,
    transfer_merges_logs,
]
