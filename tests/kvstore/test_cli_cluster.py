from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from cluster.slots import slot_of
from kvstore.cli import cluster as commands
from kvstore.cli.admin import by_name
from kvstore.cli.output import ExitStatus, status_of
from kvstore.errors import BadRequest, KVError, Unavailable
from kvstore.wire.protocol import RouteNode
from tests.kvstore.fake_admin import SLOTS, FakeAdmin

if TYPE_CHECKING:
    from collections.abc import Iterator

    import click


@pytest.fixture
def admin() -> Iterator[FakeAdmin]:
    with FakeAdmin() as cluster:
        yield cluster


def run(command: click.Command, url: str, *arguments: str) -> str:
    """What it prints; errors of the library are raised."""
    result = CliRunner().invoke(command, ["--url", url, *arguments], standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return result.stdout


def rows(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_status_is_a_row_a_node_and_what_is_wrong(admin: FakeAdmin) -> None:
    admin.nodes[1].changes = {"problems": ["an fsync takes 80 ms"], "disk_bytes": 5 * 2**20}
    text = run(commands.status, admin.url)
    head, _, columns, *nodes = rows(text)
    assert head == ["cluster", "fake", "id", "fake-1", "epoch", "4", "slots", "12"]
    assert columns[:7] == ["NAME", "STATE", "ZONE", "ADDRESS", "HTTP", "LED", "HELD"]
    assert nodes[1][:4] == ["n2", "alive", "a", admin.addresses[1]]
    assert nodes[1][5:] == ["4", "12", "~0", "5.0MiB", "1.0MiB", "5s", "0"]
    assert text.splitlines()[-2:] == ["problems:", "  an fsync takes 80 ms (says n2)"]
    assert len(rows(run(commands.status, admin.url, "-o", "wide"))[2]) == len(columns) + 5


def test_status_without_problems_says_so(admin: FakeAdmin) -> None:
    assert run(commands.status, admin.url).splitlines()[-1] == "no problems"


def test_one_problem_that_two_nodes_tell_is_one_line(admin: FakeAdmin) -> None:
    for node in admin.nodes[:2]:
        node.changes = {"problems": ["n3 is dead"]}
    assert run(commands.status, admin.url).count("n3 is dead (says n1, n2)") == 1


def test_status_as_json_has_plain_numbers(admin: FakeAdmin) -> None:
    admin.kill(2)
    document: dict[str, Any] = json.loads(run(commands.status, admin.url, "-o", "json"))
    assert (document["cluster"], document["epoch"], document["slot_count"]) == ("fake", 4, SLOTS)
    first, _, third = document["nodes"]
    assert (first["figures"]["disk_bytes"], first["figures"]["uptime_ms"]) == (4_096, 5_000)
    assert (third["state"], third["figures"]) == ("dead", None)
    assert "n3" in document["problems"][0]


def test_a_dead_node_has_a_row_and_a_problem(admin: FakeAdmin) -> None:
    admin.kill(0)
    text = run(commands.status, admin.url)
    (row,) = [row for row in rows(text) if row and row[0] == "n1" and row[1] == "dead"]
    assert row[5:] == ["-"] * 7
    assert "n1 does not tell its figures" in text
    assert "connection refused" in text


def test_without_http_the_routes_still_show_who_there_is(admin: FakeAdmin) -> None:
    for at in range(3):
        admin.stop_http(at)
    text = run(commands.status, admin.url)
    assert [row[:2] for row in rows(text)[3:6]] == [[f"n{n}", "alive"] for n in (1, 2, 3)]
    assert text.count("does not tell its figures") == 3


def test_nobody_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = f"127.0.0.1:{closed.getsockname()[1]}"
    with pytest.raises(Unavailable, match=f"tried {address}: connection refused") as caught:
        run(commands.status, f"kv://{address}")
    assert status_of(caught.value) is ExitStatus.UNAVAILABLE


def test_a_silent_node_does_not_hold_up_the_others(admin: FakeAdmin) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and never says a word
        url = f"kv://127.0.0.1:{silent.getsockname()[1]},{admin.addresses[2]}"
        assert "n1" in run(commands.members, url)


def test_before_the_cluster_is_founded_it_says_so(admin: FakeAdmin) -> None:
    admin.founded = False
    with pytest.raises(Unavailable, match="not founded yet"):
        run(commands.members, admin.url)


def test_nodes_of_two_clusters_are_not_mixed(admin: FakeAdmin) -> None:
    with FakeAdmin("x1") as other:
        other.cluster_id = "fake-2"
        with pytest.raises(BadRequest, match="several clusters: fake-1, fake-2"):
            run(commands.status, f"kv://{admin.addresses[0]},{other.addresses[0]}")


def test_members_as_most_see_them_or_as_one_does(admin: FakeAdmin) -> None:
    admin.nodes[0].states = {"n2": "suspect", "n3": "suspect"}
    admin.nodes[1].states = {"n3": "suspect"}
    found = rows(run(commands.members, admin.url))[1:]
    # n2 is seen by n1 as suspect and by n3 as alive: of two equal voices the worse counts.
    assert [(row[0], row[2]) for row in found] == [
        ("n1", "alive"),
        ("n2", "suspect"),
        ("n3", "suspect"),
    ]
    assert found[0][1] == "000000000064"
    assert found[0][3] == "1m1s"
    assert [row[7] for row in found] == ["4", "4", "4"]  # each as itself counts
    view = rows(run(commands.members, admin.url, "--from", "n3"))[1:]
    assert [row[2] for row in view] == ["alive"] * 3
    assert run(commands.members, admin.url, "-o", "name").split() == ["n1", "n2", "n3"]
    told = json.loads(run(commands.members, admin.url, "-o", "json"))
    assert told[2]["since_ms"] == 61_000


def test_members_from_a_node_that_is_silent_or_unknown(admin: FakeAdmin) -> None:
    with pytest.raises(BadRequest, match="n1, n2, n3"):
        run(commands.members, admin.url, "--from", "n9")
    admin.kill(1)
    with pytest.raises(Unavailable, match="n2 does not answer"):
        run(commands.members, admin.url, "--from", "n2")


def test_slots_of_a_key_are_told_by_its_primary(admin: FakeAdmin) -> None:
    slot = slot_of("ä/b c".encode(), SLOTS)
    columns, row = rows(run(commands.slots, admin.url, "ä/b c"))
    assert columns == ["SLOT", "PRIMARY", "MEMBERS", "BALLOT", "SEQUENCE"]
    assert row == [str(slot), f"n{slot % 3 + 1}", "n1,n2,n3", "3.n1", "9"]
    admin.kill(slot % 3)
    told = json.loads(run(commands.slots, admin.url, "-o", "json", "ä/b c"))
    assert (told["role"], told["sequence"]) == ("replica", 7)


@pytest.mark.parametrize("key", ["", "x" * 5_000])
def test_a_key_that_cannot_be_lives_nowhere(admin: FakeAdmin, key: str) -> None:
    with pytest.raises(BadRequest):
        run(commands.slots, admin.url, key)


def test_slots_without_http(admin: FakeAdmin) -> None:
    for at in range(3):
        admin.stop_http(at)
    with pytest.raises(Unavailable, match="over HTTP"):
        run(commands.slots, admin.url, "a")


def test_slots_without_a_key_is_the_share_of_each_primary(admin: FakeAdmin) -> None:
    admin.unled = {0, 1}
    assert rows(run(commands.slots, admin.url))[1:] == [
        ["n1", "3", "25.0%"],
        ["n2", "3", "25.0%"],
        ["n3", "4", "33.3%"],
        ["-", "2", "16.7%"],
    ]


def test_names_are_in_the_order_of_people() -> None:
    names = ["n10", "n2", "7", "n1", "db-2-a", "db-10-a"]
    nodes = [RouteNode(1, name, "", "", "", "") for name in names]
    assert [node.name for node in by_name(nodes)] == ["7", "db-2-a", "db-10-a", "n1", "n2", "n10"]


def test_watch_goes_on_while_the_cluster_is_away(
    admin: FakeAdmin, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = 0

    def wait(seconds: float) -> None:
        nonlocal waits
        waits += 1
        if waits == 1:
            for at in range(3):
                admin.kill(at)
        if waits == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("kvstore.cli.cluster.time.sleep", wait)
    text = run(commands.status, admin.url, "--watch")
    assert text.count("no problems") == 1
    assert text.count("no node answers") == 2


def test_every_error_is_of_the_library(admin: FakeAdmin) -> None:
    with pytest.raises(KVError):
        run(commands.status, "http://127.0.0.1:1")
