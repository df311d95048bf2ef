"""Answers `kvstore.node.operator_view.OperatorView`'s questions about a node."""

from __future__ import annotations

import asyncio
from collections import Counter
from hashlib import blake2b
from typing import TYPE_CHECKING, Final

from cluster.limits import NODE_ID_BITS
from cluster.losses import losses
from cluster.members import MemberState
from cluster.membership import Join, apply_change
from cluster.rebalance import plan
from cluster.slot import Primary
from cluster.system_slot import owners, voters
from cluster.topology import Node
from kvstore.errors import Unavailable
from kvstore.node.operator_view import (
    ConfigStatus,
    LossStatus,
    MovesStatus,
    MoveStatus,
    Newcomer,
    PlanStatus,
    QuorumsStatus,
    ShareStatus,
    TopologyNode,
    TopologyStatus,
)
from kvstore.storage import keyspace
from kvstore.storage.engine import Table

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cluster.ballot import NodeId
    from cluster.membership import TopologyChange
    from cluster.move import Move
    from cluster.slot_config import SlotConfig
    from cluster.topology import Topology
    from kvstore.node.node import Node as Host
    from kvstore.node.operator_view import PlannedChange
    from kvstore.node.spreading import Aside

MOVES_SHOWN_MAX: Final = 100

SAMPLE_SLOTS: Final = 16
"""Slots whose size is measured to know the mean: keys are hashed, so slots are much alike."""

SAMPLE_ROWS: Final = 1_000
"""Records that are looked at in one turn of the loop."""

SAMPLE_PAGES_MAX: Final = 20
"""A slot of more is counted as if it ended there."""

SIZE_AGE_MS: Final = 30_000

UNIT_MS_ASSUMED: Final = 2.5
"""A step of a move where none was seen yet: three nodes on two cores brought a fourth one its slots
at full speed."""


class OperatorBoard:
    """The answers of one node.

    Args:
        node: Asked for its parts when it is asked itself.
        aside: See `kvstore.node.spreading.Aside`.
    """

    def __init__(self, node: Host, aside: Aside) -> None:
        self._node = node
        self._aside = aside
        self._named: Topology | None = None
        self._name_of: dict[NodeId, str] = {}
        """Of the topology ``_named``."""
        self._slot_bytes = 0.0
        self._measured_ms = -SIZE_AGE_MS

    async def change(self, change: TopologyChange, timeout_ms: int) -> TopologyStatus:
        """See `OperatorView`."""
        return _status(await self._node.membership.change(change, timeout_ms))

    def topology(self) -> TopologyStatus | None:
        """See `OperatorView`."""
        topology = self._node.topology
        return None if topology is None else _status(topology)

    async def moves(self) -> MovesStatus:
        """See `OperatorView`."""
        topology = self._founded()
        core = self._node.table.moves
        moves = core.first(MOVES_SHOWN_MAX)
        copies = core.copies_pending
        slot_bytes = await self._mean_slot_bytes() if copies else 0.0
        begun = sum(move.copied_bytes for move in moves)
        return MovesStatus(
            self._node.name,
            topology.epoch,
            core.paused,
            core.throttle.bytes_per_s or 0,
            core.pending,
            copies,
            max(int(copies * slot_bytes) - begun, 0),
            core.throttle.spent_total,
            core.done_total,
            [self._move(move) for move in moves],
            self._node.membership.is_placed(),
        )

    def quorums(self) -> QuorumsStatus:
        """See `OperatorView`."""
        topology, table = self._founded(), self._node.table
        led: Counter[tuple[SlotConfig, bool]] = Counter()
        unled: Counter[tuple[SlotConfig, bool]] = Counter()
        moving = {move.slot for move in table.moves.view()}
        total = topology.system_slot + 1
        for number, leader in enumerate(table.leaders_of(range(total))):
            slot = table.slots[number]
            if slot is not None and isinstance(slot.role, Primary) and slot.role.serving:
                led[slot.config, number not in moving] += 1
            elif leader is None and slot is not None and slot.holds_state:
                unled[slot.config, True] += 1
        return QuorumsStatus(
            self._node.name,
            topology.epoch,
            led.total(),
            total,
            self._configs(led),
            table.leaders_of(range(total)).count(None),
            self._configs(unled),
            self._losses(topology, led),
        )

    def _losses(
        self, topology: Topology, led: Counter[tuple[SlotConfig, bool]]
    ) -> list[LossStatus]:
        """What the next one or two failures would cost, by node and by zone."""
        slots_of: Counter[SlotConfig] = Counter()
        for (config, _), count in led.items():
            slots_of[config] += count
        gone = (MemberState.DEAD, MemberState.LEFT)
        known = self._node.gossip.swim.members()
        up = {n for n in {node.id for node in topology.nodes} if known[n].state not in gone}
        names = {node.id: node.name for node in topology.nodes}
        zones = {node.id: node.zone for node in topology.nodes if node.zone}
        return [
            LossStatus(f"{kind}s" if len(failed) > 1 else kind, list(failed), slots)
            for kind, group_of in (("zone", zones), ("node", names))
            for failed, slots in losses(slots_of, up, group_of).most_common()
        ]

    async def plan(self, change: PlannedChange) -> PlanStatus:
        """See `OperatorView`."""
        topology = self._founded()
        if isinstance(change, Newcomer):
            changed = apply_change(topology, Join(_imagined(change)))
        else:
            changed = apply_change(topology, change)
        before = await self._aside(owners, topology)
        after = await self._aside(owners, changed)
        found = plan(before[:-1], after[:-1])  # without the system slot: it is one small record
        slot_bytes = await self._mean_slot_bytes()
        unit_ms = self._node.table.moves.unit_ms or UNIT_MS_ASSUMED
        names = {node.id: node.name for node in (*changed.nodes, *topology.nodes)}
        return PlanStatus(
            _reason(topology, changed),
            found.slots,
            found.copies,
            int(found.copies * slot_bytes),
            found.seconds(slot_bytes, topology.copy_bytes_per_s, unit_ms),
            [
                ShareStatus(
                    names[share.node],
                    *(share.held_before, share.held_after),
                    *(share.led_before, share.led_after),
                    *(share.receives, share.sends),
                )
                for share in found.shares
            ],
        )

    async def _mean_slot_bytes(self) -> float:
        """The mean size of the slots here, from a sample of them."""
        now_ms = self._node.clock.now_ms()
        if now_ms - self._measured_ms < SIZE_AGE_MS:
            return self._slot_bytes
        held = [
            slot.prefix
            for slot in self._node.table.slots[: self._founded().slot_count]
            if slot is not None and slot.holds_state
        ]
        sample = held[:: max(1, len(held) // SAMPLE_SLOTS)][:SAMPLE_SLOTS]
        size = 0
        for prefix in sample:
            size += await self._slot_size(prefix)
        self._slot_bytes = size / len(sample) if sample else 0.0
        self._measured_ms = now_ms
        return self._slot_bytes

    async def _slot_size(self, prefix: bytes) -> int:
        begin, end, size = prefix, keyspace.prefix_end(prefix), 0
        for _ in range(SAMPLE_PAGES_MAX):
            rows = self._node.engine.scan(Table.RECORDS, begin, end, limit=SAMPLE_ROWS)
            size += sum(len(key) - len(prefix) + len(record) for key, record in rows)
            if len(rows) < SAMPLE_ROWS:
                break
            begin = rows[-1][0] + b"\0"
            await asyncio.sleep(0)
        return size

    def _founded(self) -> Topology:
        not_serving = self._node.membership.not_serving()
        if not_serving is not None or self._node.topology is None:
            raise Unavailable(not_serving.detail if not_serving is not None else "not founded")
        return self._node.topology

    def _names(self, nodes: Iterable[NodeId]) -> list[str]:
        topology = self._node.topology
        if topology is not self._named:
            listed = topology.nodes if topology is not None else ()
            self._named, self._name_of = topology, {node.id: node.name for node in listed}
        return [self._name_of.get(node) or f"{node:012x}" for node in nodes]

    def _move(self, move: Move) -> MoveStatus:
        return MoveStatus(
            move.slot,
            move.stage.name.lower(),
            self._names(move.members),
            self._names(move.learners),
            self._names(move.wanted),
            move.urgent,
            move.copied_bytes,
            move.copied_records,
        )

    @staticmethod
    def _configs(counts: Counter[tuple[SlotConfig, bool]]) -> list[ConfigStatus]:
        return [
            ConfigStatus(
                [list(members) for members in config.sets],
                list(config.learners),
                count,
                wanted,
            )
            for (config, wanted), count in counts.items()
        ]


def _imagined(newcomer: Newcomer) -> Node:
    """A member like it. Its id is drawn when its disk is made: whichever, the shares are alike."""
    digest = blake2b(newcomer.name.encode(), digest_size=NODE_ID_BITS // 8).digest()
    name, nowhere = newcomer.name, "plan.invalid"  # RFC 2606: never anybody's address
    return Node(
        *(int.from_bytes(digest, "big"), name, f"{nowhere}:1", f"{nowhere}:2"),
        *(newcomer.zone, newcomer.weight),
    )


def _reason(before: Topology, after: Topology) -> str:
    """Why slots move, for a person."""
    former = {node.id: node for node in before.nodes}
    reasons = []
    for node in after.nodes:
        old = former.pop(node.id, None)
        if old is None:
            reasons.append(f"{node.name} joins")
        elif old.state != node.state:
            reasons.append(f"{node.name} is {node.state}")
        elif old.weight != node.weight:
            reasons.append(f"{node.name} has weight {node.weight:g} instead of {old.weight:g}")
        elif old.zone != node.zone:
            reasons.append(f"{node.name} is in zone {node.zone!r} instead of {old.zone!r}")
    reasons += [f"{node.name} is removed" for node in former.values()]
    if before.replicas != after.replicas:
        reasons.append(f"{after.replicas} copies of each key instead of {before.replicas}")
    return "; ".join(reasons) or "nothing moves: the owners of all slots stay as they are"


def _status(topology: Topology) -> TopologyStatus:
    names = {node.id: node.name for node in topology.nodes}
    return TopologyStatus(
        topology.cluster_name,
        topology.cluster_id,
        topology.epoch,
        topology.slot_count,
        topology.replicas,
        topology.paused,
        topology.copy_bytes_per_s,
        topology.away_after_s,
        [names[node] for node in voters(topology)],
        [
            TopologyNode(
                *(node.id, node.name, node.address, node.http_address),
                *(node.zone, node.weight, node.state, node.joined),
            )
            for node in topology.nodes
        ],
    )
