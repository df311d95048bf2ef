from __future__ import annotations

import json
import resource
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from kvstore.cli import doctor as module
from kvstore.cli.admin import Answer
from kvstore.cli.doctor import (
    Check,
    cluster_checks,
    disk_check,
    doctor,
    fsync_check,
    memory_check,
    open_files_check,
)
from tests.kvstore.fake_admin import FakeAdmin

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kvstore.cli.admin import Snapshot


@pytest.fixture
def admin() -> Iterator[FakeAdmin]:
    with FakeAdmin() as cluster:
        yield cluster


def examine(url: str, directory: Path) -> tuple[int, dict[str, dict[str, Any]]]:
    """Exit status and checks by name."""
    arguments = ["--url", url, "--dir", str(directory), "-o", "json"]
    result = CliRunner().invoke(doctor, arguments, standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return result.return_value, {one["name"]: one for one in json.loads(result.stdout)}


def states(checks: dict[str, dict[str, Any]]) -> dict[str, str]:
    return {name: one["state"] for name, one in checks.items() if one["group"] == "cluster"}


def test_a_cluster_that_is_well(admin: FakeAdmin, tmp_path: Path) -> None:
    status, checks = examine(admin.url, tmp_path)
    assert set(states(checks).values()) == {"ok"}
    assert "n3 reachable" in checks
    assert all(one["advice"] == "" for one in checks.values() if one["state"] == "ok")
    assert status == int(any(one["state"] == "bad" for one in checks.values()))
    assert list(tmp_path.iterdir()) == []


def test_a_dead_node_is_bad_and_says_what_to_do(admin: FakeAdmin, tmp_path: Path) -> None:
    admin.kill(1)
    status, checks = examine(admin.url, tmp_path)
    assert status == 1
    assert "client port" in checks["n2 reachable"]["found"]
    assert "HTTP port" in checks["n2 reachable"]["found"]
    assert checks["n2 reachable"]["advice"]
    assert checks["states by gossip"]["found"] == "n2 is dead (says n1, n3)"
    assert (states(checks)["quorums"], states(checks)["copies"]) == ("ok", "ok")


def test_slots_that_wait_for_a_majority(admin: FakeAdmin, tmp_path: Path) -> None:
    admin.kill(0)
    admin.kill(2)
    _, checks = examine(admin.url, tmp_path)
    assert checks["quorums"]["found"].startswith("12 of 12 slots")
    assert checks["quorums"]["advice"] == "start again any of n1, n3"


def test_one_closed_port_is_told_apart(admin: FakeAdmin, tmp_path: Path) -> None:
    admin.stop_http(0)
    _, checks = examine(admin.url, tmp_path)
    assert checks["n1 reachable"]["state"] == "bad"
    assert "client port" not in checks["n1 reachable"]["found"]


def test_trouble_that_the_nodes_tell(admin: FakeAdmin, tmp_path: Path) -> None:
    admin.nodes[0].changes = {"version": "0.0.9"}
    admin.nodes[1].changes = {"ready": False, "not_ready_reason": "2 slots have no primary"}
    admin.nodes[2].changes = {"sync_ms_mean": 12.0}
    admin.nodes[2].states = {"n1": "suspect"}
    admin.unled = {3, 4}
    _, checks = examine(admin.url, tmp_path)
    assert checks["versions"]["found"] == "0.0.9 on 1, 0.1.0 on 2"
    assert states(checks) == {
        "n1 reachable": "ok",
        "n2 reachable": "ok",
        "n3 reachable": "ok",
        "states by gossip": "warn",
        "n2 ready": "bad",
        "n3 fsync": "warn",
        "versions": "warn",
        "clocks": "ok",
        "primaries": "bad",
        "quorums": "ok",
        "copies": "ok",
    }


def test_fewer_than_three_nodes(tmp_path: Path) -> None:
    with FakeAdmin("only") as admin:
        status, checks = examine(admin.url, tmp_path)
    assert states(checks)["copies"] == "warn"
    assert status == 0


def test_nobody_answers_and_the_machine_is_looked_at(tmp_path: Path) -> None:
    status, checks = examine("kv://127.0.0.1:1", tmp_path)
    assert status == 1
    assert checks["cluster"]["state"] == "bad"
    assert "nobody answers" in checks["cluster"]["found"]
    assert {"fsync", "open files", "disk", "memory"} <= set(checks)


def test_the_table_ends_with_advice(tmp_path: Path) -> None:
    result = CliRunner().invoke(doctor, ["--url", "kv://127.0.0.1:1", "--dir", str(tmp_path)])
    head, first, *_ = result.stdout.splitlines()
    assert head.split() == ["STATE", "CHECK", "FOUND"]
    assert first.split()[:2] == ["bad", "cluster"]
    assert "\ncluster: start the nodes" in result.stdout


@pytest.mark.parametrize(("apart_s", "state"), [(1.9, "ok"), (-2.1, "warn"), (400.0, "warn")])
def test_clocks_are_compared_between_nodes(
    admin: FakeAdmin, apart_s: float, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Check] = []

    def look(
        snapshot: Snapshot, tables: list[Any], _: list[Answer], slots: list[Any]
    ) -> Iterator[Check]:
        # All three are far from this machine's clock, which is nobody's business.
        dated = [Answer(None, "", 200, 0.0, 60.0 + offset) for offset in (0.0, 0.5, apart_s)]
        checks = cluster_checks(snapshot, tables, dated, slots)
        seen.extend(one for one in checks if one.name == "clocks")
        yield from ()

    monkeypatch.setattr(module, "cluster_checks", look)
    CliRunner().invoke(doctor, ["--url", admin.url])
    assert [one.state for one in seen] == [state]


def test_a_directory_that_is_still_to_be_made(tmp_path: Path) -> None:
    assert fsync_check(tmp_path / "a" / "b").name == "fsync"
    assert not (tmp_path / "a").exists()
    file = tmp_path / "file"
    file.touch()
    assert fsync_check(file).state == "bad"


@pytest.mark.parametrize(("ms", "state"), [(9.0, "ok"), (11.0, "warn"), (51.0, "bad")])
def test_a_slow_disk(
    tmp_path: Path, ms: float, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_fsync_ms_median", lambda directory: ms)
    assert fsync_check(tmp_path).state == state


def test_limits_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [open_files_check(n).state for n in (1_024, 4_096)] == ["warn", "ok"]
    assert open_files_check(resource.RLIM_INFINITY).state == "ok"
    assert [memory_check(n * 2**20).state for n in (100, 2_000)] == ["warn", "ok"]
    for free, total, state in [
        (50 * 2**30, 100 * 2**30, "ok"),
        (2**30 - 1, 2**31, "warn"),
        (40 * 2**30, 1_000 * 2**30, "warn"),
    ]:
        usage = type("Usage", (), {"free": free, "total": total})
        monkeypatch.setattr("shutil.disk_usage", lambda _, told=usage: told)
        assert disk_check(tmp_path).state == state
