"""Bugs to plant around the rules: members, storage, clients, watches, gossip (`planted` has more).

`CHEAP` are those that `make test` finds again, within a few seeds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from cluster import moves, quorum, reconfigure
from cluster.ballot import NO_BALLOT, NO_POSITION
from cluster.members import Member, MemberState
from cluster.messages import Drop
from cluster.operations import Code, Failed
from cluster.scrub import Scrub
from cluster.slot_config import SlotConfig
from cluster.swim import Swim
from cluster.watches import Feed
from kvstore.client.core import ClientCore
from kvstore.client.watch_session import WatchSession
from kvstore.node.loop import CoreLoop
from kvstore.node.membership import Membership
from kvstore.node.router import Router
from kvstore.storage.engine import Table
from kvstore.storage.tick_store import TickStore
from kvstore.wire.protocol import FROM_NOW
from tests.simulation import planted
from tests.simulation.planted import PLANTS

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Mapping

    import pytest

    from cluster.ballot import NodeId
    from cluster.members import MemberUpdate
    from cluster.slot import Context, Primary, Slot
    from kvstore.client.runs import Run
    from kvstore.storage.engine import Batch
    from tests.simulation.planted import Plant


# -- members ---------------------------------------------------------------------------------


def _old(config: SlotConfig) -> SlotConfig:
    return SlotConfig(config.sets[:1], config.learners)


def joint_old_only(patch: pytest.MonkeyPatch) -> None:
    """R14: while joint, a majority of the old members alone decides."""

    def is_quorum(who: Container[NodeId], config: SlotConfig) -> bool:
        return quorum.is_quorum(who, _old(config))

    def committed(durable: Mapping[NodeId, int], config: SlotConfig) -> int:
        return quorum.committed_sequence(durable, _old(config))

    for module in ("primary", "takeover", "reads", "slot_table"):
        patch.setattr(f"cluster.{module}.is_quorum", is_quorum)
    patch.setattr("cluster.primary.committed_sequence", committed)


def config_in_one_step(patch: pytest.MonkeyPatch) -> None:
    """R14: the members change without the joint config."""

    def bad(config: SlotConfig, wanted: tuple[NodeId, ...]) -> SlotConfig | None:
        step = reconfigure.next_config(config, wanted)
        return SlotConfig((wanted,)) if step is not None and len(step.sets) == 2 else step

    patch.setattr("cluster.moves.next_config", bad)


def learner_uncaught(patch: pytest.MonkeyPatch) -> None:
    """R14: members are changed before the new ones have the content; one step, so that it tells."""

    def bad(slot: Slot, primary: Primary, step: SlotConfig, ctx: Context) -> bool:
        return True

    config_in_one_step(patch)
    patch.setattr("cluster.moves.is_ready", bad)


def learners_volatile(patch: pytest.MonkeyPatch) -> None:
    """R13: learners are not replicated, so a late Drop hits one that has become a member."""

    def bad(slot: Slot, drop: Drop, ctx: Context) -> None:
        nobody = msgspec.structs.replace(drop, config=SlotConfig(((),)), position=slot.position)
        reconfigure.on_drop(slot, nobody, ctx)

    patch.setattr("cluster.dispatch.on_drop", bad)


def drop_without_stub(patch: pytest.MonkeyPatch) -> None:
    """R15: who was left out forgets everything, what it promised included."""

    def bad(slot: Slot, drop: Drop, ctx: Context) -> None:
        reconfigure.on_drop(slot, drop, ctx)
        if not slot.holds_state:
            slot.promised, slot.left_at = NO_BALLOT, NO_POSITION
            slot.save(ctx)

    patch.setattr("cluster.dispatch.on_drop", bad)


def drop_uncommitted(patch: pytest.MonkeyPatch) -> None:
    """R15: whoever is not in the newest config drops its state, be that committed or not."""
    change = reconfigure.change

    def bad(slot: Slot, primary: Primary, step: SlotConfig, ctx: Context) -> None:
        before = slot.config
        change(slot, primary, step, ctx)
        for node in set(before.everyone) - set(step.everyone):
            if node != ctx.me:
                drop = Drop(slot.number, slot.position, step)
                ctx.out.send[node].append(drop)

    patch.setattr("cluster.moves.change", bad)


def learners_count(patch: pytest.MonkeyPatch) -> None:
    """R13: a learner's acknowledgement counts as a member's."""

    def bad(durable: Mapping[NodeId, int], config: SlotConfig) -> int:
        if not config.learners:
            return quorum.committed_sequence(durable, config)
        held = sorted((durable.get(node, -1) for node in config.everyone), reverse=True)
        return held[len(config.members) // 2]

    patch.setattr("cluster.primary.committed_sequence", bad)


def moves_forgotten(patch: pytest.MonkeyPatch) -> None:
    """R13: a new primary does not go on with the move that it finds."""

    def led(self: moves.Moves, slot: Slot) -> None:
        return None

    def look(self: moves.Moves, slot: Slot) -> None:
        return None

    patch.setattr(moves.Moves, "led", led)
    patch.setattr(moves.Moves, "_look_at", look)


# -- storage -----------------------------------------------------------------------------------


def reads_miss_the_tick(patch: pytest.MonkeyPatch) -> None:
    """A condition is judged by what the engine has, without what this tick has written."""

    def bad(store: TickStore, record_key: bytes) -> bytes | None:
        return store._engine.get(Table.RECORDS, record_key)

    patch.setattr(TickStore, "read", bad)


def scans_miss_the_tick(patch: pytest.MonkeyPatch) -> None:
    """Key logs and pages are read without what this tick has written."""
    patch.setattr(TickStore, "flush", lambda store: None)


def acks_overtake_the_sync(patch: pytest.MonkeyPatch) -> None:
    """A tick that writes nothing does not wait for the sync of what was written before it."""
    end_tick = CoreLoop._end_tick

    class Hasty:
        """A commit that lets empty batches pass."""

        def __init__(self, commit: Any) -> None:
            self.commit = commit

        def write(self, batch: Batch, done: Any) -> None:
            if len(batch):
                self.commit.write(batch, done)
            else:
                done()

    def bad(loop: CoreLoop) -> None:
        if not isinstance(loop._commit, Hasty):
            loop._commit = Hasty(loop._commit)
        end_tick(loop)

    patch.setattr(CoreLoop, "_end_tick", bad)


def log_never_trimmed(patch: pytest.MonkeyPatch) -> None:
    """Old entries of the key log stay on the disk."""
    patch.setattr(TickStore, "drop_log", lambda store, prefix, first, end: None)


def rot_not_looked_for(patch: pytest.MonkeyPatch) -> None:
    """R18: nobody compares; what nobody reads rots on."""
    patch.setattr(Scrub, "tick", lambda scrub: None)


def rot_is_copied(patch: pytest.MonkeyPatch) -> None:
    """R18: a record is believed whatever its checksum says."""
    for module in ("reads", "evaluate", "scan", "digest", "transfer"):
        patch.setattr(f"cluster.{module}.check_intact", lambda key, record: None)
    patch.setattr("cluster.copying.is_intact", lambda record: True)


# -- clients and doors -------------------------------------------------------------------------


def client_renews_the_id(patch: pytest.MonkeyPatch) -> None:
    """R5: each attempt of a client has an id of its own."""
    request = ClientCore._request

    def bad(core: ClientCore, run: Run, now: float, deadline: float) -> Any:
        if run.attempts:
            run.number, run.retry = core._draw(len(run.ops)), False
        return request(core, run, now, deadline)

    patch.setattr(ClientCore, "_request", bad)


def client_hides_the_retry(patch: pytest.MonkeyPatch) -> None:
    """R5: a repeated attempt does not say that it is one."""
    request = ClientCore._request

    def bad(core: ClientCore, run: Run, now: float, deadline: float) -> Any:
        run.retry = False
        return request(core, run, now, deadline)

    patch.setattr(ClientCore, "_request", bad)


def client_trusts_a_refusal(patch: pytest.MonkeyPatch) -> None:
    """R5: the refusal of a later attempt settles what an earlier one did."""
    patch.setattr("kvstore.client.core._refuses", lambda failed: False)


def client_calls_unknown_refused(patch: pytest.MonkeyPatch) -> None:
    """What nobody answered counts as not done."""

    def bad(core: ClientCore, run: Run, offset: int, detail: str) -> Failed:
        return Failed(Code.UNAVAILABLE, detail)

    patch.setattr(ClientCore, "_unsettled", bad)


def router_hides_the_retry(patch: pytest.MonkeyPatch) -> None:
    """R4: what a lost node was forwarded is sent on as a first attempt."""
    patch.setattr(Router, "_started", staticmethod(lambda ticket: None))


def scan_repeats_the_last_key(patch: pytest.MonkeyPatch) -> None:
    """A page begins with the key that the one before ended with."""
    from cluster import scan

    def bad(slot: Slot, primary: Primary, op: Any, ctx: Context) -> Any:
        again = msgspec.structs.replace(op, prefix=op.after or op.prefix, after=b"")
        page = scan.read_page(slot, primary, again, ctx) if op.after else None
        return page or scan.read_page(slot, primary, op, ctx)

    patch.setattr("cluster.slot_table.read_page", bad)


# -- watches -----------------------------------------------------------------------------------


def watch_tells_uncommitted(patch: pytest.MonkeyPatch) -> None:
    """Watchers hear what is proposed, committed or not."""
    release = Feed.release

    def bad(feed: Feed, primary: Primary, out: Any) -> None:
        committed, primary.committed = primary.committed, 1 << 60
        try:
            release(feed, primary, out)
        finally:
            primary.committed = committed

    patch.setattr(Feed, "release", bad)


def watch_resumes_at_the_present(patch: pytest.MonkeyPatch) -> None:
    """A slot that moved is heard from now on, not behind what was heard."""
    wishes = WatchSession._wishes

    def bad(session: WatchSession, now: float) -> Iterable[Any]:
        for slot, due in session._waits.items():
            if due <= now:
                session._arrived[slot - session._first] = FROM_NOW
        return wishes(session, now)

    patch.setattr(WatchSession, "_wishes", bad)


# -- gossip ------------------------------------------------------------------------------------


def epoch_not_heard(patch: pytest.MonkeyPatch) -> None:
    """R17: nobody asks for a topology that others are said to have."""
    patch.setattr(Membership, "heard", lambda membership, sender, epoch: None)


def dead_for_good(patch: pytest.MonkeyPatch) -> None:
    """A member that was declared dead is never believed to be back."""
    loses_to = Member.loses_to

    def bad(member: Member, update: MemberUpdate) -> bool:
        return member.state is not MemberState.DEAD and loses_to(member, update)

    patch.setattr(Member, "loses_to", bad)


def no_refutation(patch: pytest.MonkeyPatch) -> None:
    """A member that is accused does not say that it lives."""
    patch.setattr(Swim, "_refute", lambda swim, update, now_ms: None)


AROUND: list[Plant] = [
    joint_old_only,
    config_in_one_step,
    learner_uncaught,
    learners_volatile,
    learners_count,
    drop_without_stub,
    drop_uncommitted,
    moves_forgotten,
    reads_miss_the_tick,
    scans_miss_the_tick,
    acks_overtake_the_sync,
    log_never_trimmed,
    rot_not_looked_for,
    rot_is_copied,
    client_renews_the_id,
    client_hides_the_retry,
    client_trusts_a_refusal,
    client_calls_unknown_refused,
    router_hides_the_retry,
    scan_repeats_the_last_key,
    watch_tells_uncommitted,
    watch_resumes_at_the_present,
    epoch_not_heard,
    dead_for_good,
    no_refutation,
]

ALL: list[Plant] = [*PLANTS, *AROUND]

CHEAP: list[Plant] = [
    planted.accept_gap,
    client_calls_unknown_refused,
    scan_repeats_the_last_key,
]
