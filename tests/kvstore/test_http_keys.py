from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote_from_bytes

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.limits import KEY_BYTES_MAX, VALUE_BYTES_MAX
from cluster.operations import Get
from cluster.records import decode_record
from kvstore.http.app import resolve
from kvstore.http.targets import decode_percent, split_target
from tests.kvstore.fake_node import FakeNode
from tests.kvstore.http_harness import Harness, serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

JSON = "application/json"
MSGPACK = "application/msgpack"


@pytest.fixture
async def http() -> AsyncIterator[Harness]:
    async with serving() as harness:
        yield harness


async def test_raw_bytes_come_back_as_they_were_put(http: Harness) -> None:
    made = await http.ask("PUT", "/v1/kv/k", b"\x00\xffabc", Content_Type="image/png")
    assert (made.status, made.body) == (201, b"")
    got = await http.ask("GET", "/v1/kv/k", Accept="application/json")
    assert (got.status, got.body) == (200, b"\x00\xffabc")
    assert got.headers["content-type"] == "image/png"
    assert got.headers["etag"] == made.headers["etag"]
    assert got.headers["x-content-type-options"] == "nosniff"
    assert got.headers["x-kv-primary"] == "127.0.0.1:8401"
    replaced = await http.ask("PUT", "/v1/kv/k", b"")
    assert replaced.status == 200
    assert replaced.headers["etag"] != made.headers["etag"]
    empty = await http.ask("GET", "/v1/kv/k")
    assert (empty.body, empty.headers["content-type"]) == (b"", "application/octet-stream")


async def test_json_becomes_a_value_and_is_given_in_the_form_that_accept_prefers(
    http: Harness,
) -> None:
    body = b'{"a": [1, 2.5, null, "\xc3\xa4"], "b": {"$bytes": "AP8="}}'
    await http.ask("PUT", "/v1/kv/k", body, Content_Type="application/json; charset=utf-8")
    stored = decode_record(http.node.records[b"k"])
    value = {"a": [1, 2.5, None, "ä"], "b": b"\x00\xff"}
    assert msgpack.unpackb(stored.value) == value
    assert stored.content_type == ""

    as_json = await http.ask("GET", "/v1/kv/k")
    assert as_json.json == {"a": [1, 2.5, None, "ä"], "b": {"$bytes": "AP8="}}
    assert as_json.headers["vary"] == "Accept"
    accept = "text/html;q=0.9, application/msgpack;q=0.8, */*;q=0.1"
    packed = await http.ask("GET", "/v1/kv/k", Accept=accept)
    assert packed.headers["content-type"] == MSGPACK
    assert msgpack.unpackb(packed.body) == value
    assert packed.headers["etag"] != as_json.headers["etag"], "two bodies, two strong tags"
    refused = await http.ask("GET", "/v1/kv/k", Accept="image/png, application/json;q=0")
    assert (refused.status, refused.problem) == (406, "not-acceptable")


async def test_msgpack_is_stored_as_the_value_that_it_is(http: Harness) -> None:
    await http.ask("PUT", "/v1/kv/k", msgpack.packb({1: b"x"}), Content_Type=MSGPACK)
    assert msgpack.unpackb(decode_record(http.node.records[b"k"]).value, strict_map_key=False) == {
        1: b"x"
    }
    assert (await http.ask("GET", "/v1/kv/k")).json == {"$map": [[1, {"$bytes": "eA=="}]]}


@pytest.mark.parametrize(
    ("content_type", "body", "says"),
    [
        (JSON, b"{", "line 1"),
        (JSON, b"", "no JSON"),
        (JSON, b'{"a": NaN}', "NaN"),
        (JSON, b'{"a": 1, "a": 2}', "twice"),
        (JSON, b"18446744073709551616", "64 bits"),
        (JSON, b"1e999", "64-bit float"),
        (JSON, b'"\xff"', "UTF-8"),
        (JSON, b'"\\ud800"', "surrogate"),
        (JSON, b"[" * 200_000, "nested"),
        (JSON, b"[" * 129 + b"]" * 129, "nested"),
        (JSON, b'{"$bytes": "no base64!"}', "$bytes"),
        (JSON, b'{"$map": ["ab"]}', "$map"),
        (JSON, b'{"$datetime": "2024-01-01T00:00:00"}', "$datetime"),
        (MSGPACK, b"\xc1", "MessagePack"),
        (MSGPACK, b"\x92\x01", "MessagePack"),
        (MSGPACK, b"\x01\x01", "MessagePack"),
        (MSGPACK, b"\xdf\xff\xff\xff\xff", "MessagePack"),
        (MSGPACK, b"\x91" * 5_000 + b"\x01", "MessagePack"),
        (MSGPACK, b"\x91" * 200 + b"\x01", "nested"),
    ],
)
async def test_what_is_no_value_is_refused_and_nothing_is_stored(
    http: Harness, content_type: str, body: bytes, says: str
) -> None:
    answer = await http.ask("PUT", "/v1/kv/k", body, Content_Type=content_type)
    assert (answer.status, answer.problem) == (400, "bad-value")
    assert says in answer.json["detail"]
    assert http.node.requests == []
    assert http.metrics.refused_total("bad-value") == 1


async def test_a_value_over_the_limit_is_413(http: Harness) -> None:
    largest = b"x" * (VALUE_BYTES_MAX - 5)
    assert (await http.ask("PUT", "/v1/kv/k", largest)).status == 201
    assert (await http.ask("GET", "/v1/kv/k")).body == largest
    answer = await http.ask("PUT", "/v1/kv/k", b"x" * (VALUE_BYTES_MAX - 4))
    assert (answer.status, answer.problem) == (413, "too-large")


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("Content-Type", "nonsense", "bad-header"),
        ("Content-Type", "text/plain;" + "x" * 300, "bad-header"),
        ("Content-Type", "application/json; charset=latin-1", "unsupported-media-type"),
        ("Content-Encoding", "gzip", "unsupported-media-type"),
        ("Idempotency-Key", "", "bad-header"),
        ("Idempotency-Key", "x" * 256, "bad-header"),
        ("If-Match", "1.2.3", "bad-header"),
        ("If-Match", '"a",', "bad-header"),
        ("If-None-Match", '"1.7.1"', "condition-not-supported"),
        ("If-Unmodified-Since", "Mon, 23 Nov 2026 18:07:38 GMT", "condition-not-supported"),
        ("If-Range", '"1.7.1"', "condition-not-supported"),
    ],
)
async def test_bad_and_unsupported_headers_change_nothing(
    http: Harness, name: str, value: str, problem: str
) -> None:
    answer = await http.ask_with("PUT", "/v1/kv/k", b"v", {name: value})
    assert answer.problem == problem
    assert http.node.requests == []


async def test_put_under_conditions(http: Harness) -> None:
    absent = await http.ask("PUT", "/v1/kv/k", b"0", If_Match="*")
    assert (absent.status, absent.json["current"]) == (412, None)
    first = (await http.ask("PUT", "/v1/kv/k", b"1", If_None_Match="*")).headers["etag"]
    again = await http.ask("PUT", "/v1/kv/k", b"2", If_None_Match="*")
    assert (again.status, again.headers["etag"]) == (412, first)
    second = await http.ask("PUT", "/v1/kv/k", b"2", If_Match=first)
    assert second.status == 200
    stale = await http.ask("PUT", "/v1/kv/k", b"3", If_Match=first)
    assert (stale.status, stale.problem) == (412, "condition-failed")
    assert f'"{stale.json["current"]}"' == second.headers["etag"]
    many = f'"junk", W/"x", {first}, {second.headers["etag"]}, "9.9.9"'
    assert (await http.ask("PUT", "/v1/kv/k", b"4", If_Match=many)).status == 200
    assert (await http.ask("PUT", "/v1/kv/k", b"5", If_Match='"junk"')).status == 412
    assert (await http.ask("PUT", "/v1/kv/k", b"5", If_Match='W/"1.7.3"')).status == 412
    assert (await http.ask("PUT", "/v1/kv/z", b"5", If_Match='"junk"')).json["current"] is None
    assert (await http.ask("PUT", "/v1/kv/k", b"6", If_Match="*")).status == 200
    both = await http.ask("PUT", "/v1/kv/k", b"7", If_Match="*", If_None_Match="*")
    assert both.status == 501
    assert (await http.ask("GET", "/v1/kv/k")).body == b"6"


async def test_the_tag_of_the_msgpack_form_is_good_for_a_write(http: Harness) -> None:
    await http.ask("PUT", "/v1/kv/k", b"1", Content_Type=JSON)
    tag = (await http.ask("GET", "/v1/kv/k", Accept=MSGPACK)).headers["etag"]
    assert (await http.ask("PUT", "/v1/kv/k", b"2", If_Match=tag)).status == 200


async def test_delete(http: Harness) -> None:
    assert (await http.ask("DELETE", "/v1/kv/k")).problem == "not-found"
    tag = (await http.ask("PUT", "/v1/kv/k", b"1")).headers["etag"]
    assert (await http.ask("DELETE", "/v1/kv/k", If_Match='"1.1.1"')).status == 412
    gone = await http.ask("DELETE", "/v1/kv/k", If_Match=tag)
    assert (gone.status, gone.body) == (204, b"")
    assert (await http.ask("DELETE", "/v1/kv/k", If_Match=tag)).status == 404
    assert (await http.ask("GET", "/v1/kv/k")).problem == "not-found"


async def test_get_under_conditions(http: Harness) -> None:
    tag = (await http.ask("PUT", "/v1/kv/k", b"1")).headers["etag"]
    for header in (tag, f'"x", W/{tag}', "*"):
        same = await http.ask("GET", "/v1/kv/k", If_None_Match=header)
        assert (same.status, same.headers["etag"]) == (304, tag)
    assert (await http.ask("HEAD", "/v1/kv/k", If_None_Match=tag)).status == 304
    assert (await http.ask("GET", "/v1/kv/k", If_None_Match='"x"')).body == b"1"
    assert (await http.ask("GET", "/v1/kv/k", If_Match=f'"x", {tag}')).body == b"1"
    other = await http.ask("GET", "/v1/kv/k", If_Match='"x"')
    assert f'"{other.json["current"]}"' == tag
    since = await http.ask("GET", "/v1/kv/k", If_Modified_Since="Mon, 23 Nov 2026 18:07:38 GMT")
    assert since.status == 501


@pytest.mark.parametrize(
    ("text", "status", "body"),
    [
        ("bytes=0-3", 206, b"0123"),
        ("bytes=7-", 206, b"789"),
        ("bytes=-2", 206, b"89"),
        ("bytes=-99", 206, b"0123456789"),
        ("bytes=8-99", 206, b"89"),
        ("items=0-1", 200, b"0123456789"),
        ("bytes=10-", 416, None),
        ("bytes=5-4", 416, None),
        ("bytes=-0", 416, None),
        ("bytes=-", 416, None),
        ("bytes=0-1,3-4", 416, None),
        ("bytes=x", 416, None),
    ],
)
async def test_ranges(http: Harness, text: str, status: int, body: bytes | None) -> None:
    await http.ask("PUT", "/v1/kv/k", b"0123456789")
    answer = await http.ask("GET", "/v1/kv/k", Range=text)
    assert answer.status == status
    if body is None:
        assert answer.headers["content-range"] == "bytes */10"
    else:
        assert answer.body == body


async def test_if_range_and_head(http: Harness) -> None:
    tag = (await http.ask("PUT", "/v1/kv/k", b"0123456789")).headers["etag"]
    part = await http.ask("GET", "/v1/kv/k", Range="bytes=2-3", If_Range=tag)
    assert (part.status, part.body) == (206, b"23")
    assert part.headers["content-range"] == "bytes 2-3/10"
    whole = await http.ask("GET", "/v1/kv/k", Range="bytes=2-3", If_Range='"x"')
    assert (whole.status, len(whole.body)) == (200, 10)
    dated = await http.ask("GET", "/v1/kv/k", Range="bytes=2-3", If_Range="Mon, 23 Nov 2026")
    assert dated.status == 501
    head = await http.ask("HEAD", "/v1/kv/k", Range="bytes=2-3")
    assert (head.status, head.headers["content-length"]) == (200, "10")


async def test_time_to_live() -> None:
    now = [1_000_000]
    async with serving(FakeNode(now_ms=lambda: now[0])) as http:
        await http.ask("PUT", "/v1/kv/k?ttl=1.5", b"v")
        got = await http.ask("GET", "/v1/kv/k")
        assert got.headers["x-kv-expires-at"] == "1970-01-01T00:16:41.500Z"
        now[0] += 1_500
        assert (await http.ask("GET", "/v1/kv/k")).status == 404
        assert (await http.ask("PUT", "/v1/kv/k", b"v")).status == 201


@pytest.mark.parametrize(
    "query",
    [
        *("ttl=0", "ttl=-1", "ttl=x", "ttl=1e9", "ttl=nan", "ttl=4000000000", "ttl=", "tll=60"),
        *("ttl=1&ttl=2", "timeout=0", "timeout=61", "ttl=%zz", "ttl=%ff", "consistency=eventual"),
    ],
)
async def test_bad_parameters_store_nothing(http: Harness, query: str) -> None:
    answer = await http.ask("PUT", f"/v1/kv/k?{query}", b"v")
    assert (answer.status, answer.problem) == (400, "bad-parameter")
    assert http.node.requests == []


async def test_incr(http: Harness) -> None:
    first = await http.ask("POST", "/v1/kv/n/incr")
    assert (first.body, first.headers["content-type"]) == (b"1", JSON)
    assert (await http.ask("POST", "/v1/kv/n/incr?by=-5")).json == -4
    assert (await http.ask("GET", "/v1/kv/n")).json == -4
    assert (await http.ask("POST", "/v1/kv/n/incr?by=9223372036854775808")).status == 400
    await http.ask("PUT", "/v1/kv/t", b"text")
    assert (await http.ask("POST", "/v1/kv/t/incr")).problem == "wrong-type"


async def test_touch_sets_and_removes_a_time_to_live(http: Harness) -> None:
    made = await http.ask("PUT", "/v1/kv/k", b"v", Content_Type="text/plain")
    touched = await http.ask("POST", "/v1/kv/k/touch?ttl=60")
    assert (touched.status, touched.body) == (204, b"")
    assert touched.headers["etag"] != made.headers["etag"]
    read = await http.ask("GET", "/v1/kv/k")
    assert (read.body, read.headers["content-type"]) == (b"v", "text/plain")
    assert read.headers["etag"] == touched.headers["etag"]
    assert "x-kv-expires-at" in read.headers
    await http.ask("POST", "/v1/kv/k/touch")
    assert "x-kv-expires-at" not in (await http.ask("GET", "/v1/kv/k")).headers
    assert (await http.ask("POST", "/v1/kv/none/touch?ttl=1")).problem == "not-found"
    assert (await http.ask("POST", "/v1/kv/k/touch?ttl=0")).problem == "bad-parameter"
    assert (await http.ask("POST", "/v1/kv/k/touch", If_Match="*")).status == 501


async def test_only_post_knows_incr(http: Harness) -> None:
    await http.ask("PUT", "/v1/kv/a/incr", b"v")
    assert list(http.node.records) == [b"a/incr"]
    assert (await http.ask("GET", "/v1/kv/a/incr")).body == b"v"
    await http.ask("POST", "/v1/kv/b/incr/incr")
    assert b"b/incr" in http.node.records
    assert (await http.ask("POST", "/v1/kv/b%2Fincr")).status == 405
    assert (await http.ask("POST", "/v1/kv//incr")).problem == "bad-key", "it is empty"


async def test_eventual_reads_say_so(http: Harness) -> None:
    await http.ask("PUT", "/v1/kv/k", b"v")
    await http.ask("GET", "/v1/kv/k?consistency=eventual")
    op = http.node.requests[-1].ops[0]
    assert isinstance(op, Get)
    assert op.eventual


async def test_a_damaged_record_is_said(http: Harness) -> None:
    await http.ask("PUT", "/v1/kv/k", b"value")
    http.node.records[b"k"] = http.node.records[b"k"][:-1] + b"X"
    answer = await http.ask("GET", "/v1/kv/k")
    assert (answer.status, answer.problem) == (500, "corrupt-value")


@pytest.mark.parametrize(
    ("target", "key"),
    [
        ("/v1/kv/a/../b", b"a/../b"),
        ("/v1/kv/a//b/", b"a//b/"),
        ("/v1/kv//", b"/"),
        ("/v1/kv/.", b"."),
        ("/v1/kv/..", b".."),
        ("/v1/kv/../../etc", b"../../etc"),
        ("/v1/kv/a%2Fb", b"a/b"),
        ("/v1/kv/a%252Fb", b"a%2Fb"),
        ("/v1/kv/%2e%2E", b".."),
        ("/v1/kv/a+b%20c", b"a+b c"),
        ("/v1/kv/%00%ff", b"\x00\xff"),
        ("/v1/kv/%C3%A4", "ä".encode()),
        ("/v1/kv/a%3Fb%23c", b"a?b#c"),
        ("/v1/kv/a;b=c:d@e", b"a;b=c:d@e"),
        ("/v1/kv/{tag}x", b"{tag}x"),
        ("http://other/v1/kv/a//b", b"a//b"),
    ],
)
async def test_a_key_is_never_a_path(http: Harness, target: str, key: bytes) -> None:
    assert (await http.ask("PUT", target, b"v")).status == 201
    assert list(http.node.records) == [key]
    assert (await http.ask("GET", target)).body == b"v"


@pytest.mark.parametrize(
    "target", ["/v1/kv/", "/v1/kv/a%", "/v1/kv/a%2", "/v1/kv/a%zz", "/v1/kv/" + "x" * 4_097]
)
async def test_what_is_no_key_is_refused(http: Harness, target: str) -> None:
    answer = await http.ask("PUT", target, b"v")
    assert (answer.status, answer.problem) == (400, "bad-key")
    assert http.node.requests == []


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=st.binary(min_size=1, max_size=40), safe=st.sampled_from(["", "/", "/.~!$&'()*,;=:@"]))
def test_any_key_survives_its_way(key: bytes, safe: str) -> None:
    path, query = split_target("/v1/kv/" + quote_from_bytes(key, safe=safe) + "?ttl=1")
    _, encoded = resolve("GET", path)
    assert decode_percent(encoded, "The key", "bad-key") == key
    assert query == "ttl=1"


async def test_the_longest_key_fits_percent_encoded(http: Harness) -> None:
    key = bytes(range(256)) * (KEY_BYTES_MAX // 256)
    target = "/v1/kv/" + "".join(f"%{byte:02x}" for byte in key)
    assert (await http.ask("PUT", target, b"v")).status == 201
    assert list(http.node.records) == [key]
