"""The pieces of `make nemesis` alone; the clients meet a real cluster in `tests/process`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from kvstore.node.clock import SystemClock
from tests.nemesis.bent import bend_clock, set_offset
from tests.nemesis.faults import flip
from tests.nemesis.judge import LOOK, Span, Times, judge_chunk
from tests.nemesis.ledger import CHUNK_EPOCHS, Files, Ledger, chunk_of, chunks_in, read_rows
from tests.simulation.checkers import Get, Incr, Put

if TYPE_CHECKING:
    from pathlib import Path


def test_rows_come_back_from_the_files_of_their_keys(tmp_path: Path) -> None:
    ledger, files = Ledger(), Files(tmp_path, "sync")
    late = f"{{3/x@{CHUNK_EPOCHS}}}0"
    for key in ("3/k1@0", late, f"n:3/k1@{CHUNK_EPOCHS - 1}"):
        ledger.end(ledger.begin("c", key, Put(key)), "v1")
        files.write(ledger.take())
    files.close()
    assert ledger.events == []
    assert chunk_of(late) == 1
    assert chunks_in(tmp_path) == [0, 1]
    assert [row.event.key for row in read_rows(tmp_path, [1])] == [late]
    for row in read_rows(tmp_path):
        assert row.event.ended is not None
        assert row.event.began < row.event.ended <= row.told


@pytest.fixture
def history(tmp_path: Path) -> Path:
    """A put that was answered, one that was refused, an open increment, and a last look."""
    ledger, files = Ledger(), Files(tmp_path, "sync")
    ledger.end(ledger.begin("c", "a@0", Put("x")), "v1")
    ledger.begin("c", "a@0", Put("y")).refused = True
    ledger.begin("c", "n:a@0", Incr(1))
    files.write(ledger.take())
    ledger.end(ledger.begin(LOOK, "a@0", Get()), ("x", None))
    ledger.end(ledger.begin(LOOK, "n:a@0", Get()), (1, None))
    files.write(ledger.take())
    files.close()
    return tmp_path


def test_a_good_history_is_counted(history: Path) -> None:
    verdict = judge_chunk(history, 0, [Span("kill", "n1", 0, 1)], 0.0)
    assert verdict.violations == verdict.undecided == []
    assert verdict.groups == 2
    assert (verdict.calm.answered, verdict.calm.refused, verdict.calm.unknown) == (1, 1, 1)
    assert verdict.hurt.total == 0
    assert verdict.written_bytes == 1


def test_what_overlaps_a_fault_is_counted_with_it(history: Path) -> None:
    verdict = judge_chunk(history, 0, [Span("kill", "n1", 0, time.monotonic_ns())], 0.0)
    assert (verdict.hurt.total, verdict.calm.total) == (3, 0)


@pytest.mark.parametrize("seen", [None, ("y", None)], ids=["lost", "refused and yet done"])
def test_a_last_look_that_nothing_explains_is_a_violation(
    history: Path, seen: tuple[str, None] | None
) -> None:
    ledger, files = Ledger(), Files(history, "again")
    ledger.end(ledger.begin(LOOK, "a@0", Get()), seen)
    files.write(ledger.take())
    files.close()
    verdict = judge_chunk(history, 0, [], 0.0)
    assert len(verdict.violations) == 1
    assert "a@0" in verdict.violations[0]


def test_faults_that_touch_are_one_time() -> None:
    times = Times([Span("a", "", 10, 20), Span("b", "", 15, 30), Span("c", "", 40, 50)])
    assert times.seconds == pytest.approx(30e-9)
    assert times.touch(0, 10)
    assert times.touch(25, 35)
    assert not times.touch(31, 39)
    assert times.touch(0, 99)
    assert not times.touch(51, 99)


def test_a_wall_clock_is_put_off_and_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SystemClock, "unix_ms", SystemClock.unix_ms)
    file = tmp_path / "clock"
    set_offset(file, 0)
    bend_clock(str(file))
    clock = SystemClock()
    set_offset(file, -3_600_000)
    assert clock.unix_ms() == pytest.approx(1_000 * time.time() - 3_600_000, abs=60_000)
    set_offset(file, 0)
    assert clock.unix_ms() == pytest.approx(1_000 * time.time(), abs=60_000)


def test_a_flip_changes_one_bit(tmp_path: Path) -> None:
    file = tmp_path / "table"
    file.write_bytes(b"abc")
    flip(file, 1, 0)
    assert file.read_bytes() == b"acc"
