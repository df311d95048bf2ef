"""The blocking client against real sockets."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from cluster.operations import Code, Failed
from cluster.slots import slot_of
from kvstore.client.sync import Client, connect
from kvstore.errors import (
    BadRequest,
    ClientClosed,
    CorruptValue,
    DeadlineExceeded,
    OutcomeUnknown,
    PartialFailure,
    Unavailable,
    VersionConflict,
    WrongType,
)
from kvstore.wire.protocol import Refused
from tests.kvstore.fake_cluster import FakeCluster, Noted

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    with FakeCluster(3) as fake:
        yield fake


@pytest.fixture
def db(cluster: FakeCluster) -> Iterator[Client]:
    with connect(cluster.url) as client:
        yield client


def test_the_session_of_the_documentation(db: Client) -> None:
    version = db.put("city:2950159", {"name": "Berlin", "population": 3426354}, ttl=None)
    assert db.get("city:2950159") == {"name": "Berlin", "population": 3426354}
    entry = db.get_entry("city:2950159")
    assert entry is not None
    assert (entry.version, entry.expires_at, entry.content_type) == (version, None, "")
    assert db.put("city:2950159", 1, if_version=entry.version) != version
    assert db.put("k", 1, if_absent=True)
    assert db.incr("hits", 1) == 1
    assert db.update("k", lambda old: (old or 0) + 1) == 2
    assert db.delete("k", if_version=None) is True
    assert db.delete("k") is False
    db.put_many({"a": 1, "b": 2})
    assert db.get_many(["a", "b", "c"]) == {"a": 1, "b": 2}
    assert db.delete_many(["a", "c"]) == 1
    db.batch({"{cart:7}total": 9, "{cart:7}n": 2})
    assert db.get("{cart:7}n") == 2
    assert list(db.scan("city:", limit=100)) == [("city:2950159", 1)]
    assert db.get("nothing", 7) == 7
    assert db.get_entry("nothing") is None


def test_conditions(db: Client) -> None:
    version = db.put("k", 1)
    with pytest.raises(VersionConflict) as caught:
        db.put("k", 2, if_absent=True)
    assert caught.value.current == version
    other = db.put("k", 2)
    with pytest.raises(VersionConflict) as caught:
        db.delete("k", if_version=version)
    assert caught.value.current == other
    assert db.delete("k", if_version=other)


def test_update_tries_again_after_another_writer(db: Client) -> None:
    db.put("k", 1)
    seen: list[int] = []

    def change(old: int) -> int:
        seen.append(old)
        if len(seen) == 1:
            db.put("k", 10)
        return old + 1

    assert db.update("k", change) == 11
    assert seen == [1, 10]


def test_raw_bytes_keep_their_content_type_and_expiry(db: Client) -> None:
    db.put("page", b"<html>", content_type="text/html", ttl=60)
    entry = db.get_entry("page")
    assert entry is not None
    assert (entry.value, entry.content_type) == (b"<html>", "text/html")
    assert entry.expires_at == datetime.fromtimestamp(1_700_000_060, UTC)
    assert db.get("page") == b"<html>"
    assert db.touch("page", 60) is True
    assert db.touch("nothing") is False


def test_increment_of_a_text(db: Client) -> None:
    db.put("k", "text")
    with pytest.raises(WrongType, match="'k'"):
        db.incr("k")


def test_rot_is_named_with_its_key(cluster: FakeCluster, db: Client) -> None:
    db.put("good", 1)
    db.put("bad", "text")
    record = cluster.records[b"bad"]
    cluster.records[b"bad"] = record[:-1] + bytes((record[-1] ^ 1,))
    with pytest.raises(CorruptValue, match="'bad'"):
        db.get("bad")
    with pytest.raises(PartialFailure) as caught:
        db.get_many(["good", "bad"])
    assert list(caught.value.errors) == ["bad"]


def test_scans_see_every_key_once_over_many_pages(cluster: FakeCluster, db: Client) -> None:
    expected = {f"city:{i}": i for i in range(700)} | {f"{{x}}city:{i}": i for i in range(150)}
    db.put_many(expected)
    cluster.page_keys_max = 40
    found = list(db.scan())
    assert len(found) == len(expected)
    assert dict(found) == expected
    assert dict(db.scan("city:")) == {k: v for k, v in expected.items() if k.startswith("city:")}
    assert len(list(db.scan("city:", limit=33))) == 33
    before = len(cluster.requests)
    tagged = list(db.scan("{x}"))
    assert [key for key, _ in tagged] == sorted(key for key in expected if key.startswith("{x}"))
    assert len(cluster.requests) - before <= 6  # one slot, not all


def test_pages_continue_at_their_cursor_while_keys_come_and_go(db: Client) -> None:
    keys = {f"k{i}" for i in range(200)}
    db.put_many(dict.fromkeys(keys, 1))
    seen: list[Any] = []
    cursor = None
    while True:
        page = db.scan_page("k", limit=30, cursor=cursor, values=False)
        assert page.entries == []
        assert len(page.keys) <= 30
        seen += page.keys
        cursor = page.cursor
        if cursor is None:
            break
        db.delete(seen[-1])
    assert sorted(seen) == sorted(keys)
    for wrong in ("!", "ä", "A", 5):
        with pytest.raises(BadRequest, match="cursor"):
            db.scan_page("k", cursor=wrong)  # type: ignore[arg-type]
    with pytest.raises(BadRequest, match="limit"):
        db.scan("k", limit=0)


def test_keys_that_are_no_text_come_back_as_bytes(db: Client) -> None:
    db.put(b"\xffk", 1)
    assert dict(db.scan(b"\xff")) == {b"\xffk": 1}
    assert db.get_many([b"\xffk"]) == {b"\xffk": 1}


def test_mapping(db: Client) -> None:
    cities = db.mapping("city:")
    cities["a"] = 1
    cities.update({"b": 2}, c=None)
    assert dict(cities) == {"a": 1, "b": 2, "c": None}
    assert len(cities) == 3
    assert "c" in cities
    assert "d" not in cities
    assert cities.get("d", 4) == 4
    assert cities.pop("a") == 1
    with pytest.raises(KeyError):
        del cities["a"]
    with pytest.raises(KeyError):
        cities["a"]
    assert cities.setdefault("e", 5) == 5
    db.put("other", 1)
    cities.clear()
    assert not list(cities)
    assert db.get("other") == 1


def test_a_batch_costs_one_request_a_node(cluster: FakeCluster, db: Client) -> None:
    db.get("warm up")
    before = len(cluster.requests)
    db.put_many({f"k{i}": i for i in range(1_000)})
    assert [noted.node for noted in cluster.requests[before:]].count(0) == 1
    assert len(cluster.requests) - before == 3
    assert cluster.connections == 3
    assert cluster.route_queries == 1


def test_a_request_whose_answer_is_lost_is_done_once(cluster: FakeCluster, db: Client) -> None:
    for fault in ("drop", "serve-drop"):
        cluster.requests.clear()
        before = db.get("n", 0)
        cluster.requests.clear()
        cluster.faults.append(lambda _, fault=fault: fault)  # type: ignore[misc]
        assert db.incr("n") == before + 1
        first, second = (noted.request for noted in cluster.requests)
        assert (first.retry, second.retry) == (False, True)
        assert (second.client, second.number) == (first.client, first.number)
        assert (second.seen, second.ops) == (first.seen, first.ops)
        assert cluster.requests[0].node != cluster.requests[1].node


def test_a_silent_node_is_left_within_a_second(cluster: FakeCluster, db: Client) -> None:
    db.put("k", 0)
    frozen = slot_of(b"k") % 3

    def freeze(noted: Noted) -> str | None:
        return "silent" if noted.node == frozen else None

    cluster.rule = freeze
    started = time.monotonic()
    assert db.incr("k") == 1
    assert time.monotonic() - started < 1
    started = time.monotonic()
    db.incr("k")
    assert time.monotonic() - started < 0.3  # avoided from now on


def test_a_killed_node_costs_no_error(cluster: FakeCluster, db: Client) -> None:
    db.put_many({f"k{i}": 0 for i in range(30)})
    cluster.stop(1)
    started = time.monotonic()
    db.put_many({f"k{i}": 1 for i in range(30)})
    assert set(db.get_many([f"k{i}" for i in range(30)]).values()) == {1}
    assert time.monotonic() - started < 1


def test_an_idle_connection_that_was_closed_is_not_used(cluster: FakeCluster, db: Client) -> None:
    db.put("k", 1)
    cluster.requests.clear()
    for node in range(3):
        cluster.close_connections(node)
    assert db.incr("k") == 2
    assert [noted.request.retry for noted in cluster.requests] == [False]


def test_when_every_answer_is_lost_the_outcome_is_unknown(cluster: FakeCluster, db: Client) -> None:
    db.get("k")
    cluster.rule = lambda _: "drop"
    with pytest.raises(OutcomeUnknown) as caught:
        db.incr("k", timeout=0.3)
    cluster.rule = None
    assert db.incr("k", operation_id=caught.value.operation_id) == 1
    assert db.incr("k", operation_id=caught.value.operation_id) == 1
    assert db.get("k") == 1


def test_deadlines_end_calls(cluster: FakeCluster, db: Client) -> None:
    db.get("k")
    cluster.rule = lambda _: "silent"
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        db.get("k", timeout=0.2)
    with pytest.raises(OutcomeUnknown):
        db.put("k", 1, timeout=0.2)
    assert time.monotonic() - started < 0.8
    for timeout in (0, -1, float("inf"), "5"):
        with pytest.raises(BadRequest, match="timeout"):
            db.get("k", timeout=timeout)  # type: ignore[arg-type]


def test_some_keys_may_fail(cluster: FakeCluster, db: Client) -> None:
    keys = [f"k{i}" for i in range(30)]
    db.get("warm up")
    refused = Failed(Code.UNAVAILABLE, "no quorum")

    def refuse_one_node(noted: Noted) -> list[Any] | None:
        named = any(slot_of(getattr(op, "key", b"")) % 3 == 0 for op in noted.request.ops)
        return [refused] * len(noted.request.ops) if named else None

    cluster.rule = refuse_one_node
    with pytest.raises(PartialFailure) as caught:
        db.put_many(dict.fromkeys(keys, 1), timeout=0.4)
    failed = {key for key in keys if slot_of(key.encode()) % 3 == 0}
    assert set(caught.value.errors) == failed
    assert all(type(error) is Unavailable for error in caught.value.errors.values())
    cluster.rule = None
    assert set(db.get_many(keys)) == set(keys) - failed


def test_an_outage_is_never_an_absent_key() -> None:
    with FakeCluster(1) as fake:
        url = fake.url
    with (
        connect(url, timeout=0.3) as db,
        pytest.raises(Unavailable, match="refused"),
    ):
        db.get("k")


def test_a_foreign_server_is_told_apart(cluster: FakeCluster) -> None:
    cluster.refuse = Refused("version", "this node speaks version 2")
    with connect(cluster.url) as db:
        started = time.monotonic()
        with pytest.raises(Unavailable, match="version 2"):
            db.get("k")
        assert time.monotonic() - started < 1


def test_use_after_close(cluster: FakeCluster) -> None:
    db = connect(cluster.url)
    db.put("k", 1)
    scan = db.scan("k")
    db.close()
    db.close()
    for call in (lambda: db.get("k"), lambda: db.put_many({}), lambda: next(scan)):
        with pytest.raises(ClientClosed):
            call()


def test_threads_get_their_own_answers(cluster: FakeCluster, db: Client) -> None:
    wrong: list[Any] = []

    def work(name: int) -> None:
        for i in range(60):
            db.put(f"{name}-{i}", [name, i])
            if db.get(f"{name}-{i}") != [name, i]:
                wrong.append((name, i))
            db.incr("shared")
            many = {f"{name}-{i}-{j}": j for j in range(5)}
            db.put_many(many)
            if db.get_many(many) != many:
                wrong.append((name, i))

    threads = [threading.Thread(target=work, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert wrong == []
    assert db.get("shared") == 8 * 60
    sent = [
        ((n.request.client, n.request.number + i), op, n.request.retry)
        for n in cluster.requests
        for i, op in enumerate(n.request.ops)
    ]
    firsts = [number for number, _, retry in sent if not retry]
    assert len(firsts) == len(set(firsts))
    ops = {number: op for number, op, _ in sent}
    assert all(ops[number] == op for number, op, _ in sent), "a number names one operation"


def test_more_threads_than_connections(cluster: FakeCluster) -> None:
    with connect(cluster.url) as db:
        threads = [
            threading.Thread(target=lambda: [db.incr("n") for _ in range(5)]) for _ in range(40)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert db.get("n") == 200
    assert cluster.connections <= 3 * 16


FORKING = """
import os, sys
from kvstore.client.sync import connect
db = connect(sys.argv[1])
db.put("parent", 1)
child = os.fork()
if child == 0:
    try:
        for i in range(50):
            db.put(f"child-{i}", i)
            assert db.get(f"child-{i}") == i
        db.close()
    except BaseException as error:
        os.write(2, repr(error).encode())
        os._exit(1)
    os._exit(0)
for i in range(50):
    db.put(f"parent-{i}", i)
    assert db.get(f"parent-{i}") == i
_, status = os.waitpid(child, 0)
db.close()
sys.exit(os.waitstatus_to_exitcode(status))
"""


def test_a_forked_child_has_its_own_connections_and_ids(
    cluster: FakeCluster, tmp_path: Path
) -> None:
    script = tmp_path / "forking.py"
    script.write_text(FORKING)
    done = subprocess.run(
        [sys.executable, str(script), cluster.url], capture_output=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    clients = {noted.request.client for noted in cluster.requests}
    assert len(clients) == 2
    assert len(cluster.records) == 101


def test_an_interrupt_leaves_no_stale_answer(cluster: FakeCluster, db: Client) -> None:
    db.put("a", "a")
    db.put("b", "b")
    cluster.faults.append(lambda _: "silent")
    alarm = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    alarm.start()
    with pytest.raises(KeyboardInterrupt):
        db.get("a")
    alarm.join()
    assert db.get("b") == "b"
    assert db.get("a") == "a"


def test_large_values_go_both_ways(cluster: FakeCluster, db: Client) -> None:
    values = {f"big-{i}": os.urandom(900_000) for i in range(24)}
    db.put_many(values, timeout=20)
    for some in (list(values)[:8], list(values)[8:16], list(values)[16:]):
        assert db.get_many(some, timeout=20) == {key: values[key] for key in some}
