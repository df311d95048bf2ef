"""What a node says of itself and its cluster: read-only views, made when they are asked for."""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from cluster.losses import has_quorum
from cluster.members import MemberState
from cluster.slot import Candidate, Primary
from cluster.topology import AWAY, LEAVING
from kvstore.node.route_table import RouteTable
from kvstore.node.view import MemberStatus, NodeStatus, SlotStatus
from kvstore.wire.protocol import Routes

if TYPE_CHECKING:
    from cluster.ballot import NodeId
    from kvstore.node.node import Node

SPREAD = 0x9E3779B97F4A7C15
"""Odd and large: ids that differ little, and times that do, make numbers that differ."""

PROBLEM_FSYNC_MS = 50.0
"""A mean fsync above this is worth a word: every write waits for two of them."""

COUNT_MS = 500
"""The slots without a primary are counted anew after this, while there is the same one at least."""


class Without(NamedTuple):
    """Slots without a primary, as they were counted."""

    slot: int
    """One of them."""
    total: int
    lost: int
    """Those of them without a quorum."""
    counted_ms: int


NONE = Without(0, 0, 0, 0)


class StatusBoard:
    """Answers `kvstore.node.view.NodeView`'s questions about a node."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._table: RouteTable | None = None
        self._batches = -1
        """Written when the walk over the routing table began its round."""
        self._without = NONE

    def tick(self) -> None:
        """Go on round the routing table, unless nothing was written since the round before."""
        table, batches = self._table, self._node.commit.batches
        if table is None or (table.is_round and batches == self._batches):
            return
        if table.is_round:
            self._batches = batches
        table.walk()

    def routes(self, frame_id: int, source: int = 0, since: int = 0) -> Routes:
        """The routing table as a client needs it; empty before the cluster is founded."""
        node = self._node
        if node.topology is None:
            return Routes(frame_id, "", node.welcome().cluster_name, 0, 0, [], b"", b"")
        now_ms = node.clock.now_ms()
        if self._table is None:
            born = (node.id * SPREAD + node.clock.unix_ms()) % 2**63
            self._table = RouteTable(node.id, node.directory, node.table.led_of, born)
        if not self._table.is_fresh(now_ms):
            states = {n: m.state.name.lower() for n, m in node.gossip.swim.members().items()}
            self._table.look(node.topology, states, now_ms)
        return msgspec.structs.replace(self._table.routes(source, since), id=frame_id)

    def members(self) -> list[MemberStatus]:
        """Every node of the topology with its state by gossip."""
        node = self._node
        if node.topology is None:
            return []
        now_ms = node.clock.now_ms()
        data = range(node.topology.slot_count)
        led = Counter(node.table.leaders_of(data))
        held: Counter[NodeId] = Counter()
        configs = [slot.config for slot in node.table.slots[: len(data)] if slot is not None]
        shared = {id(config): config for config in configs}  # to compare thousands takes 5 ms
        for key, count in Counter(map(id, configs)).items():
            for holder in shared[key].members:
                held[holder] += count
        known = node.gossip.swim.members()
        found = []
        for listed in node.topology.nodes:
            member = known.get(listed.id)
            found.append(
                MemberStatus(
                    listed.id,
                    listed.name,
                    listed.address,
                    listed.http_address,
                    listed.zone,
                    member.state.name.lower() if member is not None else "alive",
                    now_ms - (member.state_since_ms if member is not None else node.started_ms),
                    led[listed.id],
                    held[listed.id],
                    listed.state == LEAVING,
                    listed.state == AWAY,
                )
            )
        return found

    def name_of(self, node: NodeId) -> str:
        """A member's name; its id if the topology does not list it."""
        topology = self._node.topology
        listed = topology.node(node) if topology is not None else None
        return listed.name if listed is not None else f"{node:012x}"

    def slot_status(self, slot: int) -> SlotStatus:
        """Where a slot lives, as far as this node knows; members are named only by one of them."""
        node = self._node
        assert node.topology is not None
        names = {n.id: n.name for n in node.topology.nodes}
        leader = node.table.leader_of(slot)
        primary = names.get(leader) if leader is not None else None
        mine = node.table.slots[slot]
        if mine is None:
            return SlotStatus(slot, [], [], primary, "none", "", 0, None)
        role, committed = "replica", None
        if isinstance(mine.role, Primary):
            role, committed = "primary", mine.role.committed
        elif isinstance(mine.role, Candidate):
            role = "candidate"
        ballot = f"{mine.established.round}.{names.get(mine.established.node, '?')}"
        return SlotStatus(
            slot,
            [names.get(n, f"{n:012x}") for n in mine.config.members],
            [names.get(n, f"{n:012x}") for n in mine.config.learners],
            primary,
            role,
            ballot,
            mine.sequence,
            committed,
        )

    def not_ready_reason(self) -> str:
        """Why this node does not serve yet; empty when it does.

        Slots that too many dead members keep from being served are no reason: whoever spreads
        requests over the nodes by this would take all of them out for what none can help. A node
        that has a quorum for nothing is not ready: it is the one that is cut off.
        """
        return self._why_not_ready(self._without_primary())

    def _why_not_ready(self, without: Without) -> str:
        node = self._node
        if node.topology is None:
            return "the cluster is not founded yet: this node waits for the other founders"
        if not node.knows(node.id):
            return f"this node is no member of the cluster any more (epoch {node.topology.epoch})"
        waiting = without.total - without.lost
        if waiting:
            return f"{waiting} slots have no primary that this node knows"
        held = (slot.number for slot in node.table.slots if slot is not None and slot.holds_state)
        if without.lost and not any(map(self._has_quorum, held)):
            return "this node reaches too few others to serve any slot"
        return ""

    def _without_primary(self) -> Without:
        """Exact when there are none: to count takes milliseconds, and who waits asks often."""
        node, known, now_ms = self._node, self._without, self._node.clock.now_ms()
        if node.topology is None:
            return NONE
        is_new = known.total and now_ms - known.counted_ms < COUNT_MS
        if is_new and node.table.leader_of(known.slot) is None:
            return known
        leaders = node.table.leaders_of(range(node.topology.slot_count))
        count = leaders.count(None)
        if not count:
            return NONE
        without = [number for number, leader in enumerate(leaders) if leader is None]
        lost = count - sum(map(self._has_quorum, without))
        self._without = Without(without[0], count, lost, now_ms)
        return self._without

    def _has_quorum(self, number: int) -> bool:
        table = self._node.table
        owners = table.moves.wanted[number] if table.moves.wanted else ()
        return has_quorum(table.slots[number], owners, table.reachable)

    def status(self) -> NodeStatus:
        """This node's own figures."""
        node = self._node
        stats = node.engine.stats()
        without = self._without_primary()
        reason = self._why_not_ready(without)
        commit = node.commit
        sync_ms = 1_000 * commit.sync_seconds_total / commit.syncs if commit.syncs else 0.0
        data = range(node.topology.slot_count if node.topology is not None else 0)
        founded = len(data) > 0
        return NodeStatus(
            node.id,
            node.name,
            _version(),
            not reason,
            reason,
            node.clock.now_ms() - node.started_ms,
            stats.records_count,
            stats.disk_bytes,
            _memory_bytes(),
            node.table.leaders_of(data).count(node.id) if founded else 0,
            sum(s is not None and s.holds_state for s in node.table.slots[: len(data)])
            if founded
            else 0,
            node.router.in_flight if founded else 0,
            node.router.reads_total if founded else 0,
            node.router.writes_total if founded else 0,
            commit.syncs,
            sync_ms,
            self._problems(reason, without.lost, sync_ms),
            *self._health(),
        )

    def _health(self) -> tuple[int, ...]:
        """Free space, what the background comparison did and found, what is moved."""
        node = self._node
        if node.topology is None:
            return ()
        scrub = node.table.scrub
        return (
            node.health.free_bytes,
            scrub.bytes_total,
            scrub.passes_total,
            scrub.found_total,
            scrub.damaged,
            scrub.repaired_total,
            node.table.moves.pending,
            node.table.moves.throttle.spent_total,
        )

    def _problems(self, reason: str, lost: int, sync_ms: float) -> list[str]:
        node = self._node
        problems = [reason] if reason else []
        if lost:
            problems.append(f"{lost} slots have no quorum: too many of their members are down")
        known = node.gossip.swim.members() if node.topology is not None else {}
        for listed in node.topology.nodes if node.topology is not None else ():
            state = known[listed.id].state if listed.id in known else MemberState.ALIVE
            others = ": others keep its slots until it is back" if listed.state == AWAY else ""
            if state is not MemberState.ALIVE:
                problems.append(f"{listed.name} is {state.name.lower()}{others}")
        if sync_ms > PROBLEM_FSYNC_MS:
            problems.append(f"an fsync takes {sync_ms:.0f} ms on average: writes wait for the disk")
        if node.topology is not None:
            unlinked = [n for n, up in node.peers.names().items() if not up]
            names = {n.id: n.name for n in node.topology.nodes}
            problems += [f"no connection to {names[n]}" for n in unlinked]
            problems += node.health.problems()
        return problems


@cache
def _version() -> str:
    from importlib.metadata import version  # here and below: a node starts without

    return version("ringkv")


def _memory_bytes() -> int:
    import psutil

    resident: int = psutil.Process().memory_info().rss
    return resident
