"""Watchers in the random walk: what they hear, put together over all failovers, is the history.

A watcher here is what a client is: it asks some node to start behind what it heard last, hears what
that node says in order, and when the node crashes or gives the slot away it asks another one. At
the end each must have heard every operation since it began, once, in order, and a mirror that
follows what it heard must hold what the slot holds.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import pytest

from cluster import watches
from cluster.key_log import decode_entry
from cluster.outputs import Changed, Told, WatchState
from cluster.records import record_version, unpack_version
from cluster.slot import Primary
from cluster.watches import SUPERSEDED
from tests.simulation.test_walk import BusyWorld
from tests.simulation.walk import SLOT, SimNode, Violation

if TYPE_CHECKING:
    from collections.abc import Callable

    from cluster.outputs import Outputs
    from cluster.slot import Slot
    from cluster.watches import Joining

CHUNK_SEEDS = 20
PLANTED_SEEDS_MAX = 300


class Link:
    """A connection of a listener to one life of a node; what is said is not heard at once."""

    def __init__(self, node: SimNode) -> None:
        self.node, self.epoch = node, node.epoch
        self.wire: deque[Changed | Told] = deque()

    @property
    def is_broken(self) -> bool:
        return self.epoch != self.node.epoch


class Listener:
    """One watcher and everything that it heard."""

    def __init__(self) -> None:
        self.link: Link | None = None
        self.began: int | None = None
        self.position: int | None = None
        self.heard: list[Changed] = []

    def hear(self, link: Link) -> None:
        """One thing."""
        told = link.wire.popleft()
        if isinstance(told, Changed):
            self.heard.append(told)
            self.position = unpack_version(told.version).sequence
            return
        if told.state is not WatchState.STARTED:
            self.link = None
        if told.state is WatchState.TOO_OLD:
            raise Violation("the key log reaches everything in a walk this short")
        if told.state is not WatchState.MOVED:
            if self.position is None:
                self.began = told.sequence
            elif self.position != told.sequence:
                raise Violation(f"heard up to {self.position}, told {told}")
            self.position = told.sequence


class WatchedWorld(BusyWorld):
    """The busy world with watchers in it."""

    def __post_init__(self) -> None:
        self.listeners = [Listener() for _ in range(3)]
        super().__post_init__()

    def watched(self, node: SimNode, told: Changed | Told) -> None:
        watchers = told.watchers if isinstance(told, Changed) else (told.watcher,)
        for link in watchers:
            link.wire.append(told)

    def ordinary_step(self, kind: str) -> None:
        if self.rng.random() < 0.25:
            self.watch_step(self.rng.choice(self.listeners))
        else:
            super().ordinary_step(kind)

    def watch_step(self, listener: Listener) -> None:
        link = listener.link
        if link is not None:
            if link.is_broken or self.rng.random() < 0.01:
                link.node.table.watches.stop(link, SLOT)
                listener.link = None
            elif link.wire:
                listener.hear(link)
            return
        leading = [n for n in self.nodes if isinstance(_slot(n).role, Primary)]
        node = self.rng.choice(leading if leading and self.rng.random() < 0.8 else self.nodes)
        listener.link = Link(node)
        node.table.watches.start(listener.link, SLOT, listener.position)

    def judge(self) -> None:
        super().judge()
        for _ in range(200):
            for node in self.nodes:
                node.end_tick()
            for listener in self.listeners:
                self.watch_step(listener)
        node = self.nodes[0]
        slot = _slot(node)
        log = [(at, decode_entry(raw)) for at, raw in node.store.log_entries(slot.prefix, 0)]
        records = dict(node.store.scan(slot.prefix, b"", 100))
        for listener in self.listeners:
            assert listener.began is not None
            heard = [
                (unpack_version(c.version).sequence, c.version[4:12], [key for key, _ in c.changes])
                for c in listener.heard
            ]
            wanted = [
                (at, entry.ballot_node.to_bytes(8, "big"), entry.keys)
                for at, entry in log
                if at > listener.began
            ]
            if heard != wanted:
                raise Violation(f"heard {heard}, not {wanted}")
            self.judge_mirror(listener, records)

    @staticmethod
    def judge_mirror(listener: Listener, records: dict[bytes, bytes]) -> None:
        mirror: dict[bytes, bytes | None] = {}
        for changed in listener.heard:
            for key, record in changed.changes:
                if record and record_version(record) != changed.version:
                    raise Violation(f"{changed} has another operation's record")
                mirror[key] = record
        for key, record in mirror.items():
            if record == SUPERSEDED:
                raise Violation(f"{key!r} was called superseded, and nothing followed")
            if record != records.get(key):
                raise Violation(f"the mirror of {key!r} is not what is stored")


def _slot(node: SimNode) -> Slot:
    slot = node.table.slots[SLOT]
    assert slot is not None
    return slot


def walk(seeds: range) -> None:
    for seed in seeds:
        WatchedWorld(seed).run()


@pytest.mark.parametrize("chunk", range(4))
def test_watchers_hear_all_once_and_in_order(chunk: int) -> None:
    walk(range(chunk * CHUNK_SEEDS, (chunk + 1) * CHUNK_SEEDS))


def test_watchers_in_a_walk_hear_something() -> None:
    """Superseded values and changes of primaries included, or the walk proves little."""
    heard = superseded = ballots = 0
    for seed in range(20):
        world = WatchedWorld(seed)
        world.run()
        for listener in world.listeners:
            heard += len(listener.heard)
            ballots += len({changed.version[:12] for changed in listener.heard}) > 1
            superseded += sum(r == SUPERSEDED for c in listener.heard for _, r in c.changes)
    assert heard > 100
    assert ballots > 10
    assert superseded > 5


def join_at_once(patch: pytest.MonkeyPatch) -> None:
    """What is in flight supersedes, though it may be lost."""
    make = watches._joining

    def bad(*arguments: object) -> Joining:
        joining: Joining = make(*arguments)  # type: ignore[arg-type]
        joining.goal = 0
        return joining

    patch.setattr("cluster.watches._joining", bad)


def tell_before_commit(patch: pytest.MonkeyPatch) -> None:
    """A change is told when it is proposed."""

    def bad(feed: watches.Feed, primary: Primary, out: Outputs) -> None:
        for sequence, changes, _ in feed.pending:
            version = primary.ballot_bytes + sequence.to_bytes(8, "big")
            out.watched.append(Changed(feed.watchers, feed.number, version, changes))
        feed.pending.clear()
        feed._admit(primary.committed, out)

    patch.setattr(watches.Feed, "release", bad)


@pytest.mark.parametrize("plant", [join_at_once, tell_before_commit])
def test_a_planted_bug_is_found(
    plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    with pytest.raises(Violation):
        walk(range(PLANTED_SEEDS_MAX))
