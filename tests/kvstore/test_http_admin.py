from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cluster.slots import slot_of
from tests.kvstore.fake_node import FakeNode
from tests.kvstore.http_harness import Harness, serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
async def http() -> AsyncIterator[Harness]:
    async with serving() as harness:
        yield harness


async def test_the_cluster_and_its_nodes(http: Harness) -> None:
    found = (await http.ask("GET", "/v1/cluster")).json
    assert (found["cluster"], found["node"], found["epoch"]) == ("test", "n1", 3)
    assert found["nodes"][0]["http_address"] == "127.0.0.1:8401"
    assert (await http.ask("GET", "/v1/cluster/node")).json["uptime_ms"] == 5_000


async def test_slots_by_key_number_and_stretch(http: Harness) -> None:
    by_key = (await http.ask("GET", "/v1/cluster/slots?key=a%2Fb")).json
    assert [slot["slot"] for slot in by_key["slots"]] == [slot_of(b"a/b", 64)]
    assert (await http.ask("GET", "/v1/cluster/slots?slot=5")).json["slots"][0]["slot"] == 5
    page = (await http.ask("GET", "/v1/cluster/slots?from=60&limit=3")).json
    assert [slot["slot"] for slot in page["slots"]] == [60, 61, 62]
    assert page["next"] == 63
    assert (await http.ask("GET", "/v1/cluster/slots?from=63")).json["next"] is None


@pytest.mark.parametrize(
    "query", ["slot=64", "slot=-1", "key=a&slot=1", "slot=1&limit=2", "limit=1001", "from=x"]
)
async def test_bad_slot_queries(http: Harness, query: str) -> None:
    assert (await http.ask("GET", f"/v1/cluster/slots?{query}")).problem == "bad-parameter"


async def test_an_empty_key_has_no_slot(http: Harness) -> None:
    assert (await http.ask("GET", "/v1/cluster/slots?key=")).problem == "bad-key"


async def test_health_tells_living_from_serving(http: Harness) -> None:
    assert (await http.ask("GET", "/health/ready")).json == {"status": "ready"}
    http.node.ready = False
    answer = await http.ask("GET", "/health/ready")
    assert (answer.status, answer.problem) == (503, "not-ready")
    assert answer.json["detail"] == "slot 5 has no primary"
    assert (await http.ask("GET", "/health/live")).status == 200


async def test_before_the_cluster_is_founded_it_says_so() -> None:
    async with serving(FakeNode(slot_count=0)) as http:
        for target in ("/v1/kv", "/v1/cluster/slots"):
            assert (await http.ask("GET", target)).problem == "unavailable"
        assert (await http.ask("GET", "/v1/cluster")).json["slot_count"] == 0


async def test_the_front_page_links_what_there_is(http: Harness) -> None:
    page = await http.ask("GET", "/")
    assert page.headers["content-type"].startswith("text/html")
    for part in page.body.decode().split('href="')[1:]:
        link = part.split('"')[0]
        assert (await http.ask("GET", link)).status == 200, link


async def test_metrics_count_requests_and_refusals(http: Harness) -> None:
    await http.ask("PUT", "/v1/kv/k", b"v")
    await http.ask("GET", "/v1/kv/nothing")
    await http.ask("GET", "/v1/kv/k?x=1")
    text = (await http.ask("GET", "/metrics")).body.decode()
    for line in (
        'kvstore_requests_total{door="http",operation="put",outcome="ok"} 1.0',
        'kvstore_requests_total{door="http",operation="get",outcome="absent"} 1.0',
        'kvstore_requests_total{door="http",operation="get",outcome="refused"} 1.0',
        'kvstore_refused_total{reason="bad-parameter"} 1.0',
        'kvstore_request_seconds_count{door="http",operation="get"} 2.0',
        'kvstore_members{state="dead"} 0.0',
    ):
        assert line in text, line
