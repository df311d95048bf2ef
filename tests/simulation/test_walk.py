"""The walk over fixed seeds, and over tables with a planted bug, which it must notice.

`World` alone spends most of its steps on elections. `BusyWorld` is the same world with another
mixture: it starts at rest, clients mostly find the primary and have patience, messages and ticks
come thicker than time passes, and now and then all nodes lose power at once. So far more operations
are between two takeovers, which is where replication bugs hide.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest

from cluster import replica, transfer
from cluster.messages import Ack
from cluster.slot import Primary
from cluster.slot_table import SlotTable
from tests.simulation.walk import SLOT, Op, Violation, World

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cluster.ballot import NodeId
    from cluster.messages import Accept, Content, Establish, Promise
    from cluster.outputs import Outputs
    from cluster.slot import Call, Context, Slot
    from cluster.slot_config import SlotConfig

CHUNK_SEEDS = 10
BUSY_CHUNK_SEEDS = 30
PLANTED_SEEDS_MAX = 250
"""The shyest planted bug shows itself in about one seed of fifty."""
POWER_CUT_RATE = 0.004


class BusyWorld(World):
    """Many operations between faults."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.steps = 800
        self.crash_rate = self.rng.choice([0, 0.003, 0.01])
        self.cut_rate = self.rng.choice([0, 0.005, 0.01])
        drop, copy = self.drop, self.copy
        self.heal()
        self.drop, self.copy, self.chaos = drop, copy, True

    def step(self) -> None:
        if self.rng.random() < POWER_CUT_RATE:
            for node in self.nodes:
                node.crash()
        super().step()

    def ordinary_step(self, kind: str) -> None:
        rng = self.rng
        if kind == "t":
            self.now_ms += rng.choice([1, 5, 20, 20, 100, 800])
            node = rng.choice(self.nodes)
            node.table.set_time(self.now_ms, 0)
            node.table.tick()
        elif kind == "e":
            for node in self.nodes:
                if rng.random() < 0.5:
                    node.end_tick()
        elif kind == "d" or (kind == "s" and rng.random() < 0.5):  # an fsync is slower than a hop
            for _ in range(rng.randrange(1, 4)):
                self.deliver()
        else:
            super().ordinary_step(kind)

    def client_step(self, client: int, *, fresh: bool = True) -> None:
        op = self.calls[client]
        if self.chaos and op is not None and op.tries and self.rng.random() < 0.8:
            return
        super().client_step(client, fresh=fresh)

    def attempt(self, op: Op) -> None:
        """Mostly at a node that calls itself primary, rightly or not."""
        everyone = self.nodes
        leading = [n for n in everyone if isinstance(_slot(n.table).role, Primary)]
        if leading and self.rng.random() < 0.8:
            self.nodes = leading
        try:
            super().attempt(op)
        finally:
            self.nodes = everyone


def _slot(table: SlotTable) -> Slot:
    slot = table.slots[SLOT]
    assert slot is not None
    return slot


@pytest.mark.parametrize("chunk", range(6))
def test_random_walks_keep_every_promise(chunk: int) -> None:
    for seed in range(chunk * CHUNK_SEEDS, (chunk + 1) * CHUNK_SEEDS):
        World(seed).run()


@pytest.mark.parametrize("chunk", range(6))
def test_busy_walks_keep_every_promise(chunk: int) -> None:
    _walk(range(chunk * BUSY_CHUNK_SEEDS, (chunk + 1) * BUSY_CHUNK_SEEDS))


def test_a_busy_walk_gets_work_done_under_faults() -> None:
    """A walk in which nothing happens would keep every promise too."""
    done = changed_primary = 0
    for seed in range(20):
        world = BusyWorld(seed)
        for _ in range(world.steps):
            world.step()
        done += sum(op.done for op in world.history)
        changed_primary += max(_slot(node.table).established.round for node in world.nodes) > 2
    assert done >= 60
    assert changed_primary >= 5


@pytest.mark.parametrize("world", [World, BusyWorld])
def test_a_seed_is_one_walk(world: type[World]) -> None:
    assert world(11).run() == world(11).run()
    assert world(11).run() != world(12).run()


# -- planted bugs ------------------------------------------------------------------------------


def acknowledge_before_fsync(patch: pytest.MonkeyPatch) -> None:
    """R2: what a replica says that it holds is only in its memory."""
    take = SlotTable.take

    def bad(table: SlotTable) -> Outputs:
        out = take(table)
        for node, messages in out.after_fsync.items():
            out.send[node] += [m for m in messages if isinstance(m, Ack)]
            messages[:] = [m for m in messages if not isinstance(m, Ack)]
        return out

    patch.setattr(SlotTable, "take", bad)


def accept_over_a_gap(patch: pytest.MonkeyPatch) -> None:
    """R2: a replica misses an operation and takes the next one."""

    def bad(slot: Slot, sender: NodeId, accept: Accept, ctx: Context) -> None:
        if slot.established == accept.ballot == slot.promised and accept.sequence > slot.sequence:
            slot.sequence = accept.sequence - 1
        replica.on_accept(slot, sender, accept, ctx)

    patch.setattr("cluster.dispatch.on_accept", bad)


def answer_before_a_quorum(patch: pytest.MonkeyPatch) -> None:
    """R3: one durable copy is called committed."""

    def bad(durable: Mapping[NodeId, int], config: SlotConfig) -> int:
        return max(durable.values())

    patch.setattr("cluster.primary.committed_sequence", bad)


def execute_retries(patch: pytest.MonkeyPatch) -> None:
    """R5: a retry is not looked up."""

    def bad(slot: Slot, primary: Primary, call: Call, ctx: Context) -> None:
        return None

    patch.setattr("cluster.primary.look_up", bad)


def lead_with_stale_state(patch: pytest.MonkeyPatch) -> None:
    """R9: the candidate does not copy best."""

    def bad(promises: dict[NodeId, Promise], me: NodeId) -> NodeId:
        return me

    patch.setattr("cluster.takeover.best_of", bad)


def establish_any_position(patch: pytest.MonkeyPatch) -> None:
    """R9: a replica enters the ballot with whatever it holds."""

    def bad(slot: Slot, sender: NodeId, establish: Establish, ctx: Context) -> None:
        here = msgspec.structs.replace(establish, base=slot.position, newest=0)
        replica.on_establish(slot, sender, here, ctx)

    patch.setattr("cluster.dispatch.on_establish", bad)


def transfer_one_side(patch: pytest.MonkeyPatch) -> None:
    """R11: what the straying side touched is left as it is."""
    good = transfer.content_for

    def bad(slot: Slot, common: int | None, keys: list[bytes], ctx: Context) -> Content | None:
        return good(slot, common, [], ctx)

    patch.setattr("cluster.transfer.content_for", bad)
    patch.setattr("cluster.takeover.content_for", bad)


@pytest.mark.parametrize(
    "plant",
    [
        acknowledge_before_fsync,
        accept_over_a_gap,
        answer_before_a_quorum,
        execute_retries,
        lead_with_stale_state,
        establish_any_position,
        transfer_one_side,
    ],
)
def test_a_planted_bug_is_found(
    plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    with pytest.raises(Violation):
        _walk(range(PLANTED_SEEDS_MAX))


def _walk(seeds: range) -> None:
    for seed in seeds:
        BusyWorld(seed).run()
