"""The comparison's arithmetic and its words; `make bench` is what runs the stores."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest

from scripts.bench_events import Happened, values
from scripts.bench_figures import Timing
from scripts.bench_machine import Machine
from scripts.bench_physics import Need, table
from scripts.bench_stages import shared_out
from scripts.compare.__main__ import STORES, choose_cases, make_stores
from scripts.compare.bulk import BulkRow
from scripts.compare.cases import CASES, MAIN, SIZES, make_load
from scripts.compare.ratios import AIMS, BEST_PEER, Spread, ratio, spread
from scripts.compare.redis_import import set_command, slot_of_key, write_import
from scripts.compare.redis_phases import make_entrants, mset_groups
from scripts.compare.report import Comparison, page
from scripts.compare.rounds import Sample, run_rounds
from scripts.compare.store import Entrant, Load

if TYPE_CHECKING:
    from pathlib import Path

RAW = Timing(operations=1, seconds=1.0, p50_ms=0.1, p99_ms=0.2)
MACHINE = Machine(
    "some processor",
    2,
    0.0,
    "3.11",
    "Linux",
    "ext4",
    fsync=RAW,
    round_trip=RAW,
    disk_mib_per_s=100.0,
)


def sample(entrant: str, number: int, per_second: float, p99_ms: float, case: str) -> Sample:
    return Sample(case, entrant, number, per_second, 1.0, p99_ms, 100.0, 10.0)


def test_a_ratio_is_taken_within_a_round() -> None:
    ours = [sample("ringkv", n, rate, 2.0, "put") for n, rate in enumerate((100, 50, 200))]
    theirs = [sample("redis", n, rate, 1.0, "put") for n, rate in enumerate((50, 50, 50))]
    assert ratio(ours, theirs, by_p99=False) == Spread(2.0, 1.0, 4.0)
    assert ratio(ours, theirs, by_p99=True) == Spread(0.5, 0.5, 0.5)


def test_rounds_that_one_of_them_did_not_finish_do_not_count() -> None:
    ours = [sample("ringkv", n, 100, 2.0, "put") for n in (0, 2)]
    theirs = [sample("etcd", n, 50 * n, 1.0, "put") for n in (1, 2)]
    assert ratio(ours, theirs, by_p99=False) == Spread(1.0, 1.0, 1.0)
    assert ratio(ours, theirs[:1], by_p99=False) is None
    assert spread([1.0, 2.0]) == Spread(1.5, 1.0, 2.0)


def test_the_page_says_who_is_faster_and_which_aims_are_reached() -> None:
    rates = {"ringkv": 3_000, "redis": 1_000, "redis + WAIT 1": 2_000}
    p99s_ms = {"ringkv": 3.0, "redis": 4.0, "etcd": 2.0}
    samples = [sample(name, 0, rate, 1.0, "put") for name, rate in rates.items()]
    samples += [sample(name, 0, 10, p99, "put-half-peak") for name, p99 in p99s_ms.items()]
    text = page(Comparison(MACHINE, "1 round", samples=samples, notes=["etcd: a note"]), ["a.svg"])
    lines = text.splitlines()
    assert "- etcd: a note" in lines
    assert "![a](a.svg)" in lines
    last_cells = {
        tuple(cells[1:3]): cells[-3:-1]
        for line in lines
        if line.startswith("| put") and (cells := [cell.strip() for cell in line.split("|")])
    }
    assert last_cells["put", "redis"] == ["3.00 (3.00 to 3.00)", "1.5 ✓"]
    assert last_cells["put", "redis + WAIT 1"] == ["1.50 (1.50 to 1.50)", "3"]
    assert last_cells["put-half-peak", "redis"] == ["1.33 (1.33 to 1.33)", ""]
    assert last_cells["put-half-peak", "etcd"] == ["0.67 (0.67 to 0.67)", "1"]


def test_the_page_compares_imports_and_scans() -> None:
    rows = [
        BulkRow("ringkv", 1_000, 2.0, 100.0, 1.0, RAW, RAW, scan_s=1.0),
        BulkRow("redis", 1_000, 1.0, 100.0, 1.0, RAW, RAW, scan_s=4.0),
    ]
    text = page(Comparison(MACHINE, "once", bulk=rows), [])
    assert "| redis | 1,000 | 1.0 | 1,000 (0.50) |" in text
    assert "| 250 (4.00) |" in text


def test_what_is_not_installed_is_named_with_its_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    found = Comparison(MACHINE, "")
    stores = make_stores(list(STORES), tmp_path, found)
    assert [one.name for one in stores] == ["ringkv"]
    assert found.notes == [
        "redis: not compared. there is no redis-server here: apt-get install redis-server",
        "etcd: not compared. there is no etcd here: apt-get install etcd-server",
        "memcached: not compared. there is no memcached here: apt-get install memcached",
    ]


def test_every_aim_is_of_a_case_and_an_entrant() -> None:
    entrants = {one.name: one for one in make_entrants(None, 0)}
    for aim in AIMS:
        operation = CASES[aim.case].operation
        assert aim.against in (BEST_PEER, "etcd") or operation in entrants[aim.against].phases, aim


def test_parts_and_names_choose_cases() -> None:
    assert choose_cases(["main"], ()) == MAIN
    assert choose_cases(["main", "sizes"], ("put",)) == [*MAIN, *SIZES]
    assert choose_cases([], ("get-zipf",)) == [CASES["get-zipf"]]
    assert choose_cases(["bulk"], ()) == []


def test_every_store_gets_the_same_load() -> None:
    for case in (CASES["put"], CASES["get-64KiB"]):
        make_load.cache_clear()
        load = make_load(case, 1_000)
        make_load.cache_clear()
        assert make_load(case, 1_000) == load
        assert len(load.value) == case.value_bytes
        assert load.drawn == load.stored
    load = make_load(CASES["get-zipf"], 1_000)
    assert set(load.drawn) <= set(load.stored)
    [(_, most)] = Counter(load.drawn).most_common(1)
    assert most > 5 * len(load.drawn) / len(load.stored)


def test_slots_of_keys_are_those_of_the_specification_of_redis_cluster() -> None:
    assert slot_of_key(b"123456789") == 0x31C3 % 16_384


def test_an_import_goes_to_whoever_leads_the_slot(tmp_path: Path) -> None:
    keys = [f"bulk:{number:08}" for number in range(50)]
    led = {1: [range(8_192)], 2: [range(8_192, 16_384)]}
    write_import(tmp_path, led, zip(keys, values(), strict=False))
    written = {port: (tmp_path / f"import-{port}.resp").read_bytes() for port in led}
    commands = [
        (slot_of_key(key.encode()), set_command(key.encode(), value))
        for key, value in zip(keys, values(), strict=False)
    ]
    assert all(command in written[1 if slot < 8_192 else 2] for slot, command in commands)
    assert sum(map(len, written.values())) == sum(len(command) for _, command in commands)


def test_groups_for_mset_share_a_tag() -> None:
    groups = mset_groups([f"k{n}" for n in range(250)])
    assert [len(group) for group in groups] == [100, 100]
    assert all(len({key.partition("}")[0] for key in group}) == 1 for group in groups)


def test_the_limit_of_a_path_is_what_it_waits_for() -> None:
    write = Need(fsyncs=1, round_trips=2, disk_bytes=50 * 1024 * 1024)
    assert write.milliseconds(MACHINE) == pytest.approx(0.1 + 2 * 0.1 + 500)
    assert str(write) == "1 fsync + 2 round trips + 50.0 MiB to the disk"
    timings = {"put": Timing(1, 1.0, p50_ms=0.6, p99_ms=9.0)}
    *_, put, join = table(MACHINE, timings, {"join": Happened(10, 2.0, 104_857_600)}).splitlines()
    assert put.split()[-3:] == ["0.300", "0.60", "2.0"]
    assert join.split()[-3:] == ["1,000.300", "2,000.00", "2.0"]


def test_the_time_of_the_loop_is_shared_out_by_its_samples() -> None:
    used_us = {"event loop": 8.0, "sync thread": 1.0}
    shared = shared_out(used_us, Counter(core=3, frames=1))
    assert shared == {"sync thread": 1.0, "core": 6.0, "frames": 2.0}


class Stand:
    """A store that does not start, or whose one phase fails, in the rounds that are named."""

    keeps = True
    version = "1"

    def __init__(self, name: str, lame: set[int], ill: set[int]) -> None:
        self.name = name
        self.pids: list[int] = []
        self.lame, self.ill = lame, ill
        self.calls: list[str] = []
        self.round = -1

    def start(self) -> None:
        self.round += 1
        self.calls.append("start")
        if self.round in self.lame:
            raise OSError("no port")

    def stop(self) -> None:
        self.calls.append("stop")

    def fill(self, load: Load) -> None:
        self.calls.append("fill")

    def get(self, load: Load, seconds: float) -> Timing:
        if self.round in self.ill:
            raise TimeoutError(self.name)
        return RAW

    @property
    def entrants(self) -> list[Entrant]:
        return [Entrant(self.name, "client", "promise", {"get": self.get})]


def test_a_store_in_trouble_costs_a_note_and_no_other_figures() -> None:
    good, bad = Stand("good", set(), set()), Stand("bad", lame={0}, ill={2})
    said: list[str] = []
    samples, troubles = run_rounds([good, bad], [CASES["get"]], 1_000, 3, 1.0, said.append)
    assert [(one.entrant, one.round) for one in samples] == [
        ("good", 0),
        ("bad", 1),
        ("good", 1),
        ("good", 2),
    ]
    assert troubles == [
        "bad, round 1, not started: OSError('no port')",
        "bad, round 3, get: TimeoutError('bad')",
    ]
    assert good.calls == ["start", "fill", "stop", "start", "stop", "start", "stop"]
    assert bad.calls == ["start", "stop", "start", "fill", "stop", "start", "stop"]
