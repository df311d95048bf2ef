"""A watch's decisions on a clock of the test: whom it asks, and what it makes of the answers."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import msgpack
import pytest

from cluster.ballot import Ballot
from cluster.operations import Page
from cluster.outputs import WatchState
from cluster.records import encode_record, pack_version
from kvstore.client.core import ClientCore
from kvstore.client.exchange import Exchange, LinkLost, Listen
from kvstore.client.watch_queue import Happened, Reset, State
from kvstore.client.watch_session import SILENCE_SECONDS, WatchSession
from kvstore.errors import SlowWatcher, Unavailable
from kvstore.wire.protocol import (
    FROM_NOW,
    Response,
    RouteNode,
    RouteQuery,
    Routes,
    SlotChanged,
    SlotTold,
    Watch,
    Watched,
)

if TYPE_CHECKING:
    from kvstore.client.exchange import Heard

SLOTS = 4
NODES = ("n1:1", "n2:2", "n3:3")
PRIMARIES = (0, 1, 2, 0)
"""Of each slot, by the routing table."""


class Fixed:
    """The chance that is none."""

    def random(self) -> float:
        return 0.5


class Cluster:
    """What a watch does, and what the test lets it hear."""

    def __init__(self, prefix: bytes = b"k", resume: str | None = None) -> None:
        self.now = 100.0
        self.core = ClientCore([NODES[0]], now=lambda: self.now, chance=Fixed())
        self.core.table.load(self.routes(), self.now)
        self.session = WatchSession(self.core, prefix, resume)
        self.asked: list[tuple[str, list[int], list[int]]] = []
        """Node, slots, behind what; since the last look."""
        self.dropped: list[str] = []
        self.routes_asked = 0
        self.waits = 0
        """How often it waited for something to be heard."""
        self.pages: dict[int, Page] = {}
        self.inbox: list[Heard] = []

    @staticmethod
    def routes() -> Routes:
        nodes = [RouteNode(at + 1, f"n{at + 1}", a, "", "", "alive") for at, a in enumerate(NODES)]
        primaries = b"".join(at.to_bytes(2, "big") for at in PRIMARIES)
        return Routes(0, "c1", "test", 1, SLOTS, nodes, primaries, bytes(20 * SLOTS))

    def run(self, flow: Any) -> Any:
        """Drive a flow; time passes to the deadline where nothing is to be heard."""
        try:
            step = next(flow)
            while True:
                if isinstance(step, Listen):
                    step = flow.send(self._listen(step))
                elif isinstance(step, Exchange):
                    step = flow.send([self._answer(send.frame) for send in step.sends])
                else:
                    self.now += step.seconds
                    step = flow.send([])
        except StopIteration as stop:
            return stop.value

    def _listen(self, step: Listen) -> list[Heard]:
        self.waits += 1
        assert self.waits < 100_000, "it waits for nothing, over and over"
        self.dropped += step.drops
        for address, frame in step.sends:
            if isinstance(frame, Watch):
                self.asked.append((address, frame.slots, frame.after))
            else:
                self.routes_asked += isinstance(frame, RouteQuery)
        heard, self.inbox = self.inbox, []
        if not heard:
            self.now = max(self.now, step.deadline)
        return heard

    def _answer(self, frame: Any) -> Response:
        return Response(frame.id, [self.pages[op.slot] for op in frame.ops], {})

    def hears(self, address: str, *items: SlotChanged | SlotTold) -> None:
        self.inbox.append((address, Watched(list(items))))

    def loses(self, address: str, reason: str = "") -> None:
        self.inbox.append((address, LinkLost(reason, f"{address} is gone")))

    def begin(self, *, sequence: int = 5) -> Cluster:
        for slot, node in enumerate(PRIMARIES):
            self.hears(NODES[node], started(slot, sequence))
        self.run(self.session.begin(self.now + 5))
        self.asked.clear()
        return self

    def next(self, seconds: float = 0.0) -> Any:
        """The next item within so much time."""
        return self.run(self.session.next_item(self.now + seconds))

    def behind(self) -> dict[int, int]:
        """Behind what each slot was asked for."""
        return {
            slot: after
            for _, slots, afters in self.asked
            for slot, after in zip(slots, afters, strict=True)
        }

    def pump(self) -> None:
        """One look at what is there."""
        assert self.next(1e-9) is None


def version(sequence: int) -> bytes:
    return pack_version(Ballot(1, 7), sequence)


def record(sequence: int, value: object = 0) -> bytes:
    return encode_record(version(sequence), msgpack.packb(value))


def started(slot: int, sequence: int) -> SlotTold:
    return SlotTold(slot, WatchState.STARTED, sequence, 0)


def moved(slot: int, leader: int = 0) -> SlotTold:
    return SlotTold(slot, WatchState.MOVED, 0, leader)


def changed(slot: int, sequence: int, *keys: bytes) -> SlotChanged:
    return SlotChanged(slot, version(sequence), [(key, record(sequence)) for key in keys])


def test_each_primary_is_asked_once_for_all_its_slots() -> None:
    c = Cluster()
    with pytest.raises(Unavailable, match="4 of 4 slots"):
        c.run(c.session.begin(c.now + 1))
    now = [FROM_NOW]
    assert c.asked == [(NODES[0], [0, 3], now * 2), (NODES[1], [1], now), (NODES[2], [2], now)]


def test_a_prefix_with_a_tag_asks_for_its_slot_alone() -> None:
    c = Cluster(b"{t}")
    with pytest.raises(Unavailable, match="1 of 1 slots"):
        c.run(c.session.begin(c.now + 1))
    assert [len(slots) for _, slots, _ in c.asked] == [1]


def test_a_slot_that_moved_is_asked_for_where_it_went_behind_what_was_heard() -> None:
    c = Cluster().begin()
    c.hears(NODES[0], changed(0, 6, b"k1"), moved(0, leader=3))
    assert c.next(1) == Happened(version(6), b"k1", record(6))
    c.pump()
    assert c.asked == [(NODES[2], [0], [6])]


def test_a_slot_that_nobody_leads_is_asked_for_more_and_more_rarely_and_everywhere() -> None:
    c = Cluster().begin()
    c.hears(NODES[1], moved(1))
    times, nodes = [], set()
    for _ in range(12):
        while not c.asked:
            for node in (0, 2):
                c.hears(NODES[node])
            c.next(0.002)
        ((address, slots, _),) = c.asked
        assert slots == [1]
        c.asked.clear()
        times.append(c.now)
        nodes.add(address)
        c.hears(address, moved(1))
        c.next(0.001)
    gaps = [after - before for before, after in pairwise(times)]
    assert gaps == sorted(gaps)
    assert 1 < gaps[-1] < 3.1
    assert nodes == set(NODES)
    assert c.routes_asked > 0


def test_a_lost_link_loses_nothing() -> None:
    c = Cluster().begin()
    c.hears(NODES[0], changed(0, 6, b"k1"))
    c.loses(NODES[0])
    c.hears(NODES[0], changed(0, 7, b"k2"))  # of the link that is gone
    assert c.next(1).key == b"k1"
    c.pump()
    assert c.behind() == {0: 6, 3: 5}
    assert NODES[0] not in {node for node, _, _ in c.asked}


def test_what_is_told_twice_is_heard_once() -> None:
    c = Cluster().begin()
    c.hears(NODES[0], changed(0, 6, b"k1"), changed(0, 6, b"k1"), changed(0, 5, b"k0"))
    assert c.next(1).key == b"k1"
    assert c.next(0.5) is None


def test_a_silent_node_is_left() -> None:
    c = Cluster().begin()
    while not c.dropped:
        for node in (0, 2):
            c.hears(NODES[node])
        c.next(0.1)
        assert c.now < 100 + SILENCE_SECONDS + 1
    assert c.dropped == [NODES[1]]
    c.pump()
    ((address, slots, after),) = c.asked
    assert (address != NODES[1], slots, after) == (True, [1], [5])


def test_a_busy_caller_is_nobodys_silence() -> None:
    c = Cluster().begin()
    for _ in range(5):
        c.now += 10 * SILENCE_SECONDS
        c.pump()
    assert c.dropped == []


def test_who_is_cut_off_gets_everything_first() -> None:
    c = Cluster().begin()
    c.hears(NODES[0], changed(0, 6, b"k1", b"k2"))
    c.loses(NODES[0], "slow")
    assert [c.next(1).key, c.next(1).key] == [b"k1", b"k2"]
    with pytest.raises(SlowWatcher, match="n1:1 cut off"):
        c.next(1)


def test_too_old_brings_the_state_and_leaves_out_what_it_contains() -> None:
    c = Cluster().begin()
    c.hears(NODES[1], SlotTold(1, WatchState.TOO_OLD, 400, 0))
    c.pages[1] = Page([b"k1", b"k2"], [record(390), record(402)], more=False)
    assert c.next(1) == Reset(frozenset({1}))
    token = c.session.token()
    assert [c.next(1), c.next(1)] == [State(b"k1", record(390)), State(b"k2", record(402))]
    c.pump()
    assert c.asked == [(NODES[1], [1], [400])]
    c.hears(
        NODES[1],
        changed(1, 401, b"k2"),  # the scan saw what came after it
        changed(1, 402, b"k2", b"k3"),
        changed(1, 403, b"k1"),
        started(1, 403),
        changed(1, 404, b"k2"),
    )
    heard = [(c.next(1).key, c.session.heard.handed[1]) for _ in range(3)]
    assert heard == [(b"k3", 402), (b"k1", 403), (b"k2", 404)]
    assert c.next(0.5) is None
    again = Cluster(resume=token)
    with pytest.raises(Unavailable):
        again.run(again.session.begin(again.now + 1))
    assert again.behind()[1] == 5


def test_what_is_too_old_waits_until_all_slots_are_heard() -> None:
    c = Cluster()
    c.hears(NODES[0], started(0, 5), started(3, 5))
    c.hears(NODES[1], SlotTold(1, WatchState.TOO_OLD, 400, 0))
    with pytest.raises(Unavailable):
        c.run(c.session.begin(c.now + 5))  # slot 2 is not heard


def test_a_state_of_many_pages_is_fetched_page_by_page() -> None:
    c = Cluster().begin()
    c.hears(NODES[1], SlotTold(1, WatchState.TOO_OLD, 400, 0))
    c.pages[1] = Page([b"k1"], [record(390)], more=True)
    assert c.next(1) == Reset(frozenset({1}))
    assert c.next(1) == State(b"k1", record(390))
    c.pages[1] = Page([], [], more=False)
    c.pump()
    c.pump()
    assert c.asked == [(NODES[1], [1], [400])]


def test_there_is_a_token_however_early_the_first_event_came() -> None:
    c = Cluster()
    c.hears(NODES[0], started(0, 5), changed(0, 6, b"k"), changed(0, 7, b"k"), started(3, 5))
    c.hears(NODES[1], started(1, 5))
    c.hears(NODES[2], started(2, 7))
    c.run(c.session.begin(c.now + 5))
    assert c.next(1).key == b"k"
    again = Cluster(resume=c.session.token())
    with pytest.raises(Unavailable):
        again.run(again.session.begin(again.now + 1))
    assert again.behind() == {0: 6, 1: 5, 2: 7, 3: 5}


def test_a_token_counts_only_what_was_handed_out() -> None:
    c = Cluster().begin()
    c.hears(NODES[0], changed(0, 6, b"k1", b"k2"), changed(3, 9, b"k3"), changed(0, 70))
    c.next(1)
    token = c.session.token()
    again = Cluster(resume=token).begin()
    again.hears(NODES[0], changed(0, 6, b"k1", b"k2"), changed(3, 9, b"k3"))
    assert [again.next(1).key, again.next(1).key] == [b"k2", b"k3"]
    assert [c.next(1).key, c.next(1).key] == [b"k2", b"k3"]
    assert c.session.heard.handed[0] == 6
    c.session.token()
    assert c.session.heard.handed[0] == 70
