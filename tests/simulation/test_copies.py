"""Whole copies: the walk with key logs of a few entries, pages of one record, and every difference
too large for one message; and the ways in which a page can come too late."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cluster import key_log, replica, transfer
from cluster.ballot import Ballot
from cluster.messages import Accept, Ask, Chunk, Fetch, Willing
from cluster.transfer import BRING_AGAIN_MS
from tests.cluster.core_harness import SLOT, Cluster
from tests.simulation import walk
from tests.simulation.walk import World

if TYPE_CHECKING:
    from cluster.slot import Context, Copy, Slot

SEEDS = 40
KEYS = tuple(b"key-%d" % n for n in range(7))


@pytest.fixture(autouse=True)
def everything_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "CHUNK_BYTES", 1)
    monkeypatch.setattr(transfer, "DIFFERENCE_BYTES_MAX", 0)
    monkeypatch.setattr(key_log, "KEY_LOG_EVICTION_STEP", 1)
    monkeypatch.setattr(walk, "KEYS", KEYS)


@pytest.mark.parametrize("log_entries", [1, 3])
@pytest.mark.parametrize("first", range(0, SEEDS, 10))
def test_copies_end_equal_whatever_happens_meanwhile(
    first: int, log_entries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_log, "KEY_LOG_ENTRIES_MAX", log_entries)
    for seed in range(first, first + 10):
        World(seed, steps=700).run()


def test_the_walk_notices_an_accept_that_does_not_reach_the_copy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def follow(slot: Slot, copy: Copy, sender: int, accept: Accept, ctx: Context) -> None:
        """Count an Accept without taking what it changes."""
        if accept.sequence == copy.content.sequence + 1:
            replica.apply(copy.content, accept.sequence, accept.entry, [], None, ctx)

    monkeypatch.setattr(key_log, "KEY_LOG_ENTRIES_MAX", 1)
    monkeypatch.setattr(replica, "follow", follow)
    with pytest.raises(AssertionError):
        walk_many(400)


def walk_many(seeds: int) -> None:
    for seed in range(seeds):
        World(seed, steps=700).run()


def copying() -> Cluster:
    """Node 3 missed four keys and has taken the first page of a copy from node 1."""
    c = Cluster()
    c.isolate(3)
    for key in KEYS[:4]:
        c.put(1, key, 1)
    c.settle()
    c.drop(1, 3)
    c.reconnect(3)
    for _ in range(20):
        c.pass_time(100)
        for node in (1, 2, 3):
            c.nodes[node].end_tick()
            c.nodes[node].sync()
        if c.sent(1, 3, Chunk):
            break
        for a in (1, 2, 3):
            for b in (1, 2, 3):
                if a != b:
                    c.deliver(a, b)
    assert c.sent(1, 3, Chunk)
    c.deliver(1, 3, Chunk)
    c.nodes[3].end_tick()
    assert c.slot(3).copy is not None
    return c


def test_a_page_that_an_accept_overtook_is_fetched_again() -> None:
    c = copying()
    c.deliver(3, 1, Fetch)
    c.nodes[1].end_tick()
    (page,) = c.sent(1, 3, Chunk)
    key = page.changes[0][0]
    c.put(1, key, 2)
    c.nodes[1].end_tick()
    c.deliver(1, 3, Accept)  # overtakes the page, which holds what the key was before
    c.deliver(1, 3, Chunk)
    c.settle()
    assert c.value(3, key) == 2
    assert c.content(3) == c.content(1)


def test_one_copy_is_enough_though_the_primary_goes_on_writing() -> None:
    c = copying()
    for number in range(len(KEYS)):
        c.put(1, KEYS[number], 2)
        c.deliver(1, 3)
        c.nodes[3].end_tick()
        c.deliver(3, 1)
    c.settle()
    assert c.content(3) == c.content(1)
    assert c.slot(3).generation == 1


def test_nobody_deposes_a_primary_while_it_brings_a_copy() -> None:
    """It may need the copy to be established, however long that takes."""
    c = copying()
    c.nodes[3].table.peer_leads_no_more(1, [SLOT])
    c.inject(2, 3, Ask(SLOT, Ballot(9, 2)))
    assert not c.sent(3, 2, Willing)
    c.pass_time(BRING_AGAIN_MS + 1, nodes=())
    c.inject(2, 3, Ask(SLOT, Ballot(9, 2)))
    assert c.sent(3, 2, Willing), "the copy has come to a halt"


def test_a_doubled_page_changes_nothing() -> None:
    c = copying()
    c.deliver(3, 1, Fetch)
    c.nodes[1].end_tick()
    (page,) = c.sent(1, 3, Chunk)
    c.deliver(1, 3, Chunk)
    c.inject(1, 3, page)
    c.settle()
    assert c.content(3) == c.content(1)


def test_a_crash_midway_leaves_what_was_there_and_the_copy_begins_again() -> None:
    c = copying()
    held = c.position(3)
    c.crash(3)
    assert c.position(3) == held
    c.calm_down()
    assert c.content(3) == c.content(1)
    assert c.slot(3).generation > 0
