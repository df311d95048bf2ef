from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import msgpack
import pytest

from cluster.operations import Code, Failed, Incr
from kvstore.http import HttpSettings
from kvstore.http.batch import OPERATIONS_MAX
from tests.kvstore.http_harness import Answer, Harness, serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

JSON = "application/json"
MSGPACK = "application/msgpack"


@pytest.fixture
async def http() -> AsyncIterator[Harness]:
    async with serving() as harness:
        yield harness


async def batch(http: Harness, document: Any, target: str = "/v1/batch") -> Answer:
    return await http.ask("POST", target, json.dumps(document).encode(), Content_Type=JSON)


async def test_results_come_in_the_order_of_the_operations(http: Harness) -> None:
    answer = await batch(
        http,
        [
            {"op": "put", "key": "a", "value": {"n": [1, None]}},
            {"op": "get", "key": "a"},
            {"op": "get", "key": "b", "consistency": "eventual"},
            {"op": "incr", "key": "n", "by": 7},
            {"op": "incr", "key": "a"},
            {"op": "put", "key": "a", "value": 1, "if_absent": True},
            {"op": "delete", "key": "a", "if_version": "1.7.1"},
            {"op": "delete", "key": "a"},
            {"op": "put", "key": {"$bytes": "/w=="}, "value": {"$bytes": "AA=="}, "ttl": 0.5},
        ],
    )
    assert answer.status == 200
    put, got, absent, number, wrong, conflict, removed, gone, raw = answer.json["results"]
    assert put == {"status": 200, "version": "1.7.1"}
    assert got == {"status": 200, "value": {"n": [1, None]}, "version": "1.7.1"}
    assert absent == {"status": 404}
    assert number == {"status": 200, "value": 7, "version": "1.7.2"}
    assert (wrong["status"], wrong["type"]) == (400, "/problems/wrong-type")
    assert (conflict["status"], conflict["current"]) == (412, "1.7.1")
    assert (removed["status"], gone["status"], raw["status"]) == (204, 404, 200)
    assert b"\xff" in http.node.records
    assert len(http.node.requests) == 1, "one frame for all"


async def test_touch_in_a_batch(http: Harness) -> None:
    answer = await batch(
        http,
        [
            {"op": "put", "key": "a", "value": 1},
            {"op": "touch", "key": "a", "ttl": 60},
            {"op": "get", "key": "a"},
            {"op": "touch", "key": "a"},
            {"op": "get", "key": "a"},
            {"op": "touch", "key": "none", "ttl": 1},
        ],
    )
    _, touched, soon, again, kept, absent = answer.json["results"]
    assert touched == {"status": 200, "version": soon["version"]}
    assert (soon["value"], "expires_at" in soon) == (1, True)
    assert kept == {"status": 200, "value": 1, "version": again["version"]}
    assert absent == {"status": 404}


async def test_msgpack_both_ways(http: Harness) -> None:
    operations = [
        {"op": "put", "key": b"\xff", "value": b"\x00"},
        {"op": "get", "key": b"\xff"},
    ]
    answer = await http.ask(
        "POST", "/v1/batch", msgpack.packb(operations), Content_Type=MSGPACK, Accept=MSGPACK
    )
    assert answer.headers["content-type"] == MSGPACK
    results = msgpack.unpackb(answer.body)["results"]
    assert results[1]["value"] == b"\x00"


async def test_an_atomic_batch_is_all_or_nothing(http: Harness) -> None:
    writes = [
        {"op": "put", "key": "{c}a", "value": 1},
        {"op": "put", "key": "{c}b", "value": 2, "if_absent": True},
        {"op": "delete", "key": "{c}z"},
    ]
    done = await batch(http, {"atomic": True, "operations": writes})
    assert done.json["results"] == [{"status": 200, "version": "1.7.1"}] * 3
    refused = await batch(http, {"atomic": True, "operations": [*writes[:1], writes[1]]})
    assert (refused.status, refused.problem, refused.json["current"]) == (
        412,
        "condition-failed",
        "1.7.1",
    )
    assert (await http.ask("GET", "/v1/kv/{c}a")).headers["etag"] == '"1.7.1"'
    empty = await batch(http, {"atomic": True, "operations": []})
    assert empty.json == {"results": []}


@pytest.mark.parametrize(
    ("document", "says"),
    [
        (1, "A batch is"),
        ({"operations": {}}, "A batch is"),
        ({"operations": [], "atomic": 1}, "A batch is"),
        ({"operations": [], "atomc": True}, "atomc"),
        ([1], "Operation 0"),
        ([{"op": "get", "key": "a"}, {"op": "got", "key": "a"}], "Operation 1: 'op' is 'got'"),
        ([{"op": ["get"], "key": "a"}], "Operation 0: 'op'"),
        ([{"op": "get"}], "empty"),
        ([{"op": "get", "key": 1}], "str or bytes"),
        ([{"op": "get", "key": "x" * 5_000}], "5,000 bytes"),
        ([{"op": "put", "key": "a"}], "'value' is missing"),
        ([{"op": "put", "key": "a", "value": 1, "tll": 1}], "no member 'tll'"),
        ([{"op": "put", "key": "a", "value": 1, "ttl": -1}], "'ttl'"),
        ([{"op": "put", "key": "a", "value": 1, "ttl": True}], "'ttl'"),
        ([{"op": "put", "key": "a", "value": 1, "if_version": "x"}], "no version"),
        ([{"op": "put", "key": "a", "value": 1, "if_absent": 1}], "'if_absent'"),
        (
            [{"op": "put", "key": "a", "value": 1, "if_absent": True, "if_version": "1.7.1"}],
            "exclude",
        ),
        ([{"op": "put", "key": "a", "value": "x" * 1_048_576}], "limit"),
        ([{"op": "incr", "key": "a", "by": 2**63}], "'by'"),
        ([{"op": "touch", "key": "a", "ttl": "1"}], "'ttl'"),
        ([{"op": "touch", "key": "a", "value": 1}], "no member 'value'"),
        ([{"op": "get", "key": "a", "consistency": "no"}], "'consistency'"),
        ([{"op": "get", "key": "a"}] * (OPERATIONS_MAX + 1), "1,001 operations"),
        ({"atomic": True, "operations": [{"op": "get", "key": "a"}]}, "puts and deletes"),
        (
            {
                "atomic": True,
                "operations": [{"op": "delete", "key": "a"}, {"op": "delete", "key": "b"}],
            },
            "common {tag}",
        ),
    ],
)
async def test_a_batch_that_is_wrong_anywhere_does_nothing(
    http: Harness, document: Any, says: str
) -> None:
    answer = await batch(http, document)
    assert (answer.status, answer.problem) == (400, "bad-operation")
    assert says in answer.json["detail"]
    assert http.node.requests == []


async def test_the_body_must_be_json_or_msgpack(http: Harness) -> None:
    answer = await http.ask("POST", "/v1/batch", b"[]", Content_Type="text/plain")
    assert (answer.status, answer.problem) == (415, "unsupported-media-type")
    assert (await http.ask("POST", "/v1/batch", b"[]")).status == 415
    broken = await http.ask("POST", "/v1/batch", b"[", Content_Type=JSON)
    assert broken.problem == "bad-value"
    picky = await http.ask("POST", "/v1/batch", b"[]", Content_Type=JSON, Accept="text/csv")
    assert picky.status == 406


async def test_unknown_outcomes_name_the_id_of_each(http: Harness) -> None:
    http.node.fail = lambda op: Failed(Code.UNKNOWN, "lost.") if isinstance(op, Incr) else None
    operations = [{"op": "get", "key": "a"}, {"op": "incr", "key": "n"}, {"op": "incr", "key": "m"}]
    answer = await batch(http, operations, "/v1/batch?timeout=0.05")
    _, first, second = answer.json["results"]
    assert first["status"] == second["status"] == 504
    assert first["operation_id"] != second["operation_id"]
    http.node.fail = lambda op: None
    settled = await http.ask("POST", "/v1/kv/m/incr", Idempotency_Key=second["operation_id"])
    assert settled.json == 1
    atomic = {"atomic": True, "operations": [{"op": "delete", "key": "a"}]}
    http.node.fail = lambda op: Failed(Code.UNKNOWN, "lost.")
    assert (await batch(http, atomic, "/v1/batch?timeout=0.02")).problem == "outcome-unknown"


async def test_a_batch_with_an_idempotency_key_writes_once(http: Harness) -> None:
    body = json.dumps([{"op": "incr", "key": "n"}, {"op": "incr", "key": "n"}]).encode()
    for _ in range(2):
        answer = await http.ask("POST", "/v1/batch", body, Content_Type=JSON, Idempotency_Key="x")
        assert [result["value"] for result in answer.json["results"]] == [1, 2]


async def test_values_beyond_the_size_of_an_answer_are_left_out() -> None:
    async with serving(settings=HttpSettings(answer_bytes_max=50_000)) as http:
        for name in "abc":
            await http.ask("PUT", f"/v1/kv/{name}", b"x" * 20_000)
        answer = await batch(http, [{"op": "get", "key": name} for name in "abc"])
        assert [result["status"] for result in answer.json["results"]] == [200, 200, 413]
