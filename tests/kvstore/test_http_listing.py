from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.limits import KEY_BYTES_MAX, SLOT_COUNT_MAX
from cluster.operations import Code, Failed, Result, Scan
from cluster.slots import slot_of
from kvstore.http import HttpSettings
from kvstore.http.cursors import Place, decode_cursor, encode_cursor
from kvstore.http.problems import ProblemError
from tests.kvstore.fake_node import FakeNode
from tests.kvstore.http_harness import Harness, serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SLOTS = 64


@pytest.fixture
async def http() -> AsyncIterator[Harness]:
    async with serving(FakeNode(SLOTS)) as harness:
        yield harness


async def fill(http: Harness, keys: list[str], body: bytes = b"1") -> None:
    for key in keys:
        await http.ask("PUT", f"/v1/kv/{quote(key)}", body, Content_Type="application/json")


async def walk(http: Harness, query: str) -> list[list[str]]:
    """All pages of a listing."""
    pages: list[list[str]] = []
    cursor = ""
    while True:
        answer = await http.ask("GET", f"/v1/kv?{query}&cursor={cursor}")
        assert answer.status == 200, answer.body
        found = answer.json
        pages.append(found.get("keys") or [entry["key"] for entry in found.get("entries", [])])
        if found["next"] is None:
            return pages
        cursor = found["next"]


def in_order(keys: list[str]) -> list[str]:
    return sorted(keys, key=lambda key: (slot_of(key.encode(), SLOTS), key.encode()))


@pytest.mark.parametrize("limit", [1, 7, 100, 1000])
@pytest.mark.parametrize("values", ["", "&values=1"])
async def test_pages_hold_every_key_once_in_order(http: Harness, limit: int, values: str) -> None:
    keys = [f"city:{n}" for n in range(60)] + [f"{{hot}}:{n}" for n in range(40)]
    await fill(http, keys)
    await fill(http, ["town:1", "cit"])
    pages = await walk(http, f"prefix=city:&limit={limit}{values}")
    assert [key for page in pages for key in page] == in_order(keys[:60])
    assert all(len(page) <= limit for page in pages)
    tagged = await walk(http, f"prefix=%7Bhot%7D:&limit={limit}{values}")
    assert [key for page in tagged for key in page] == in_order(keys[60:])
    everything = await walk(http, f"limit={limit}{values}")
    assert sum(map(len, everything)) == 102


async def test_a_prefix_with_a_whole_tag_asks_one_slot(http: Harness) -> None:
    await fill(http, ["{hot}:1"])
    http.node.requests.clear()
    assert (await http.ask("GET", "/v1/kv?prefix=%7Bhot%7D")).json["keys"] == ["{hot}:1"]
    assert sum(len(request.ops) for request in http.node.requests) == 1


async def test_entries_tell_everything(http: Harness) -> None:
    put = await http.ask("PUT", "/v1/kv/r?ttl=1", b"\x00", Content_Type="image/png")
    assert (await http.ask("GET", "/v1/kv?values=true")).json["entries"] == [
        {
            "key": "r",
            "value": {"$bytes": "AA=="},
            "version": put.headers["etag"].strip('"'),
            "content_type": "image/png",
            "expires_at": "1970-01-01T00:00:02.000Z",
        }
    ]
    await http.ask("PUT", "/v1/kv/%ff", b"1")
    assert {"$bytes": "/w=="} in (await http.ask("GET", "/v1/kv")).json["keys"]


async def test_the_work_of_a_page_is_bounded_and_an_empty_page_goes_on() -> None:
    async with serving(FakeNode(16_384)) as http:
        last = next(f"k{n}" for n in range(10**6) if slot_of(f"k{n}".encode()) == 16_383)
        await fill(http, [last])
        http.node.requests.clear()
        first = (await http.ask("GET", "/v1/kv?prefix=k")).json
        assert first["keys"] == []
        assert first["next"]
        assert sum(len(request.ops) for request in http.node.requests) <= 4_096 + 512
        pages = await walk(http, "prefix=k")
        assert pages[-1] == [last]
        assert len(pages) <= 4


async def test_a_page_ends_early_when_its_values_are_large() -> None:
    settings = HttpSettings(answer_bytes_max=50_000)
    async with serving(FakeNode(SLOTS), settings) as http:
        keys = [f"k{n}" for n in range(30)]
        for key in keys:
            await http.ask("PUT", f"/v1/kv/{key}", b"x" * 20_000)
        pages = await walk(http, "values=1")
        assert sorted(key for page in pages for key in page) == sorted(keys)
        assert max(map(len, pages)) == 3
        largest = max(len(request.ops) for request in http.node.requests)
        assert largest <= 48


async def test_too_much_for_one_frame_is_asked_slot_by_slot(http: Harness) -> None:
    await fill(http, ["a", "b", "c"])

    def fail(op: object) -> Result | None:
        many = len(http.node.requests[-1].ops) > 1
        return Failed(Code.TOO_LARGE, "frame") if many and isinstance(op, Scan) else None

    http.node.fail = fail
    entries = (await http.ask("GET", "/v1/kv?values=1")).json["entries"]
    assert sorted(entry["key"] for entry in entries) == ["a", "b", "c"]


async def test_an_outage_is_no_empty_listing(http: Harness) -> None:
    await fill(http, ["a"])
    down = slot_of(b"a", SLOTS)

    def fail(op: object) -> Result | None:
        is_down = isinstance(op, Scan) and op.slot == down
        return Failed(Code.UNAVAILABLE, "no quorum") if is_down else None

    http.node.fail = fail
    answer = await http.ask("GET", "/v1/kv?timeout=0.05")
    assert (answer.status, answer.problem) == (503, "unavailable")


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=1001", "limit=x", "values=yes", "prefix=%zz", "prefix=" + "x" * 4_097],
)
async def test_bad_parameters(http: Harness, query: str) -> None:
    assert (await http.ask("GET", f"/v1/kv?{query}")).problem == "bad-parameter"


async def test_bad_cursors(http: Harness) -> None:
    good = encode_cursor(Place(3, b"key"), b"p")
    for bad in ("x", "%00", good[:-1], good + "A", good.swapcase(), "+" + good[1:], "%C3%A4"):
        assert (await http.ask("GET", f"/v1/kv?prefix=p&cursor={bad}")).problem == "bad-cursor"
    assert (await http.ask("GET", f"/v1/kv?prefix=q&cursor={good}")).problem == "bad-cursor"
    beyond = encode_cursor(Place(SLOTS, b""), b"p")
    assert (await http.ask("GET", f"/v1/kv?prefix=p&cursor={beyond}")).problem == "bad-cursor"
    assert (await http.ask("GET", f"/v1/kv?prefix=p&cursor={good}")).status == 200


@given(
    slot=st.integers(0, SLOT_COUNT_MAX - 1),
    after=st.binary(max_size=KEY_BYTES_MAX),
    prefix=st.binary(max_size=50),
)
def test_a_cursor_comes_back_as_the_place_that_it_was(
    slot: int, after: bytes, prefix: bytes
) -> None:
    text = encode_cursor(Place(slot, after), prefix)
    assert decode_cursor(text, prefix) == Place(slot, after)
    assert text.replace("-", "").replace("_", "").isalnum()


@given(text=st.text(max_size=60))
def test_any_text_is_a_cursor_or_a_clear_error(text: str) -> None:
    with pytest.raises(ProblemError, match="bad-cursor"):
        decode_cursor(text, b"")


@given(data=st.data())
def test_a_damaged_cursor_never_skips_keys(data: st.DataObject) -> None:
    text = encode_cursor(Place(5, b"some key"), b"")
    at = data.draw(st.integers(0, len(text) - 1))
    letter = data.draw(st.sampled_from("ABCabc019-_"))
    damaged = text[:at] + letter + text[at + 1 :]
    if damaged != text:
        with pytest.raises(ProblemError, match="bad-cursor"):
            decode_cursor(damaged, b"")
