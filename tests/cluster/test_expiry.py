"""Rule 7 in the background: what nobody reads goes too, a stretch a tick; and scans past it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cluster import expiry, scan
from cluster.messages import Accept
from cluster.operations import Conflict, Done, Found, Page, Result, Scan, Touch
from cluster.records import encode_record, pack_version
from cluster.store import walk
from tests.cluster.core_harness import SLOT, Cluster

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest

    from cluster.store import Store

TICK_MS = 50


def ticks(c: Cluster, count: int) -> None:
    """The timers run and everything arrives, so often."""
    for _ in range(count):
        c.pass_time(TICK_MS)
        c.settle()


def fill(c: Cluster, count: int, *, ttl_ms: int = 100, at: int = 1) -> None:
    for number in range(count):
        c.put(at, b"%04d" % number, number, ttl_ms=ttl_ms)
    c.settle()


def keys(c: Cluster, at: int) -> list[bytes]:
    """All that lies in a node's store, expired or not."""
    return [key for key, _ in c.nodes[at].store.scan(c.slot(at).prefix, b"", 10_000)]


def page_of(result: Result | None) -> Page:
    assert isinstance(result, Page)
    return result


def test_what_nobody_reads_is_removed_from_every_replica() -> None:
    c = Cluster()
    fill(c, 10)
    c.put(1, b"stays", 1)
    c.put(1, b"later", 1, ttl_ms=3_600_000)
    ticks(c, 3)
    for node in (1, 2, 3):
        assert keys(c, node) == [b"later", b"stays"]
        assert c.content(node) == c.content(1)
    assert len(c.log(2)) == 13, "the keys of a slot share one operation"


def test_nothing_is_removed_before_its_time() -> None:
    c = Cluster()
    fill(c, 5, ttl_ms=1_000)
    ticks(c, 19)
    assert len(keys(c, 1)) == 5
    ticks(c, 1)
    assert keys(c, 1) == []


def test_only_the_primary_proposes_anything() -> None:
    c = Cluster()
    fill(c, 5)
    for _ in range(10):
        c.pass_time(TICK_MS, nodes=(2, 3))
    c.settle()
    assert len(keys(c, 1)) == 5
    c.pass_time(TICK_MS, nodes=(1,))
    assert len(c.sent(1, 2, Accept)) == len(c.sent(1, 3, Accept)) == 1
    assert not c.sent(2, 1, Accept)


def test_the_next_primary_goes_on() -> None:
    c = Cluster()
    fill(c, 5, ttl_ms=1_000)
    c.depose(1)
    for _ in range(30):
        c.pass_time(TICK_MS, nodes=(2, 3))
        c.settle()
    assert keys(c, 2) == keys(c, 3) == []
    c.reconnect(1)
    c.calm_down()
    assert c.content(1) == c.content(2)


def test_a_slot_that_is_being_handed_over_is_left_alone() -> None:
    c = Cluster()
    fill(c, 5)
    c.primary(1).handing_to = 2
    c.pass_time(1_000, nodes=(1,))
    assert not c.sent(1, 2, Accept)
    c.primary(1).handing_to = None
    c.pass_time(1_000, nodes=(1,))
    assert c.sent(1, 2, Accept)


def test_without_a_quorum_it_stops_before_it_has_deleted_everything(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(expiry, "EXPIRY_TICK_KEYS_MAX", 2)
    monkeypatch.setattr(expiry, "EXPIRY_SLOT_IN_FLIGHT_MAX", 3)
    c = Cluster()
    fill(c, 20)
    for other in (2, 3):
        c.hold(1, other)
    for _ in range(50):
        c.pass_time(1_000, nodes=(1,))
        c.sync(1)
    assert c.slot(1).sequence - c.primary(1).committed == 3
    for other in (2, 3):
        c.release(1, other)
    c.settle()
    ticks(c, 50)
    assert keys(c, 1) == keys(c, 3) == []


def test_a_tick_reads_and_deletes_so_many_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expiry, "EXPIRY_TICK_KEYS_MAX", 3)
    c = Cluster()
    fill(c, 8, ttl_ms=2_000)
    c.pass_time(2_000, nodes=())
    left = []
    for _ in range(5):
        c.pass_time(TICK_MS, nodes=(1,))
        left.append(len(keys(c, 1)))
    assert left[:3] == [5, 2, 0]
    assert [len(accept.changes) for accept in c.sent(1, 2, Accept)] == [3, 3, 2]


def test_a_tick_reads_so_many_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expiry, "EXPIRY_TICK_BYTES_MAX", 1_500)
    c = Cluster()
    for number in range(4):
        c.put(1, b"%d" % number, b"x" * 1_000, ttl_ms=100)
    c.settle()
    c.pass_time(1_000, nodes=(1,))
    assert len(keys(c, 1)) == 2


def test_slots_take_turns() -> None:
    owners = ((1, 2, 3),) * 600
    c = Cluster(owners=owners)
    for slot in (3, 300, 599):
        operation = c.put(1, b"k", 1, ttl_ms=100).operation
        c.submit(1, c.new(operation, slot=slot))
        c.nodes[1].end_tick()
    c.settle()
    c.pass_time(1_000, nodes=(1,))
    assert {accept.slot for accept in c.sent(1, 2, Accept)} == {0, 3}
    for _ in range(2):
        c.pass_time(TICK_MS, nodes=(1,))
    assert {accept.slot for accept in c.sent(1, 2, Accept)} == {0, 3, 300, 599}


def test_where_nothing_has_an_expiry_there_is_a_look_a_second(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks: list[bytes] = []

    def counted(
        store: Store, prefix: bytes, begin: bytes, rows_max: int
    ) -> Iterator[tuple[bytes, bytes]]:
        looks.append(prefix)
        return walk(store, prefix, begin, rows_max)

    monkeypatch.setattr(expiry, "walk", counted)
    c = Cluster()
    c.put(1, b"stays", 1)
    c.settle()
    ticks(c, 20)
    looks.clear()
    ticks(c, 200)
    assert 9 <= len(looks) <= 11
    c.put(1, b"goes", 1, ttl_ms=100_000)
    ticks(c, 21)
    looks.clear()
    ticks(c, 20)
    assert len(looks) == 20


def test_a_clock_that_jumps_back_delays_and_breaks_nothing() -> None:
    c = Cluster()
    fill(c, 5, ttl_ms=1_000)
    c.unix_ms -= 500_000
    ticks(c, 100)
    assert len(keys(c, 1)) == 5
    c.unix_ms += 500_000
    ticks(c, 3)
    assert keys(c, 1) == []


def test_a_clock_that_jumps_ahead_removes_what_is_over_by_it_everywhere() -> None:
    c = Cluster()
    fill(c, 5, ttl_ms=3_600_000)
    c.unix_ms += 3_600_000
    ticks(c, 3)
    assert all(keys(c, node) == [] for node in (1, 2, 3))


def test_a_damaged_record_never_counts_as_expired() -> None:
    """A bit of the expiry has rotted: the record is kept for whoever mends it."""
    c = Cluster()
    c.put(1, b"k", 5)
    c.settle()
    version = pack_version(c.slot(1).established, 1)
    rotten = bytearray(encode_record(version, b"\x05", "", 20_000_000))
    rotten[30] = 0
    c.nodes[1].store.write(c.slot(1).prefix + b"k", bytes(rotten))
    c.nodes[1].table.scrub.bytes_per_s = 0
    c.pass_time(10_000_000, nodes=(1,))
    c.settle()
    assert keys(c, 1) == [b"k"]
    scanned = c.ask(1, Scan(SLOT, b"", b"", 10, values=True))
    assert scanned.moved == [False], "the reader waits for a good copy"
    c.calm_down()
    read = c.get(1, b"k")
    c.settle()
    assert isinstance(read.answer, Found)
    assert c.value(1, b"k") == 5


def test_a_scan_shows_nothing_expired_and_ends_no_earlier() -> None:
    c = Cluster()
    for number in range(9):
        c.put(1, b"%d" % number, number, ttl_ms=0 if number in (2, 7, 8) else 100)
    c.settle()
    c.pass_time(1_000, nodes=())
    first = c.ask(1, Scan(SLOT, b"", b"", 2, values=False))
    c.deliver_all()
    assert first.answer is None, "a primary with a slower clock could still show what is left out"
    c.settle()
    assert first.answer == Page([b"2", b"7"], [], more=True)
    last = c.ask(1, Scan(SLOT, b"", b"7", 2, values=False))
    c.settle()
    assert last.answer == Page([b"8"], [], more=False)
    assert keys(c, 3) == [b"2", b"7", b"8"]


def test_a_scan_past_many_expired_keys_goes_on_from_where_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scan, "EXPIRY_TICK_KEYS_MAX", 3)
    c = Cluster()
    fill(c, 7)
    c.put(1, b"z", 1)
    c.settle()
    c.pass_time(1_000, nodes=())
    pages: list[Page] = []
    while not pages or pages[-1].more:
        asked = c.ask(1, Scan(SLOT, b"", b"", 100, values=False))
        c.settle()
        pages.append(page_of(asked.answer))
    assert [page.keys for page in pages] == [[], [], [b"z"]]


def test_a_page_of_large_values_is_read_in_bounded_steps() -> None:
    c = Cluster()
    for number in range(100):
        c.put(1, b"%03d" % number, b"x" * 100_000)
    c.settle()
    asked = c.ask(1, Scan(SLOT, b"", b"", 100, values=True))
    c.settle()
    page = page_of(asked.answer)
    assert page.more
    assert 30 <= len(page.keys) < 100


def test_a_touched_key_lives_on_and_an_expired_one_cannot_be_touched() -> None:
    c = Cluster()
    fill(c, 2, ttl_ms=1_000)
    kept = c.ask(1, Touch(b"0000", 0))
    soon = c.ask(1, Touch(b"0001", 200))
    c.settle()
    assert isinstance(kept.answer, Done)
    assert isinstance(soon.answer, Done)
    assert c.value(3, b"0000") == 0, "the value is what it was"
    c.pass_time(200, nodes=())
    late = c.ask(1, Touch(b"0001", 1_000))
    c.settle()
    assert late.answer == Conflict(b""), "as if it were not there"
    ticks(c, 100)
    assert keys(c, 1) == keys(c, 2) == [b"0000"]


def test_a_touch_that_is_sent_again_counts_from_the_first_time() -> None:
    c = Cluster()
    fill(c, 1, ttl_ms=0)
    asked = c.ask(1, Touch(b"0000", 1_000))
    c.settle()
    c.pass_time(500, nodes=())
    c.retry(1, asked)
    c.settle()
    assert asked.answers[0] == asked.answers[1]
    c.pass_time(500)
    c.settle()
    assert keys(c, 2) == []
