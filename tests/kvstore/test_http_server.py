from __future__ import annotations

import asyncio
import re
import socket
from dataclasses import replace

import pytest

from cluster.limits import HTTP_HEADER_BYTES_MAX, HTTP_LINE_BYTES_MAX, VALUE_BYTES_MAX
from kvstore.errors import SetupError
from kvstore.http import HttpSettings, make_app, start_http
from kvstore.metrics import Metrics
from tests.kvstore.fake_node import FakeNode
from tests.kvstore.http_harness import Harness, serving

QUICK = HttpSettings(head_seconds_max=0.15, body_seconds_max=0.15, linger_seconds_max=0.1)


async def refused(http: Harness, data: bytes, status: int, problem: str) -> None:
    """Send bytes; expect a problem, its count, and the connection's end; others are served on."""
    async with http.connect() as connection:
        await connection.send(data)
        answer = await connection.answer()
        assert (answer.status, answer.problem) == (status, problem)
        assert answer.headers["x-request-id"]
        assert answer.headers["connection"] == "close"
        assert await connection.ended()
    assert http.metrics.refused_total(problem) == 1
    assert (await http.ask("GET", "/health/live")).status == 200


@pytest.mark.parametrize(
    ("data", "status", "problem"),
    [
        (b"RKV1\x00\x00\x00\x05hello\r\n\r\n", 400, "bad-http"),
        (b"GET / HTTP/9.9\r\n\r\n", 400, "bad-http"),
        (b"GET  HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad-http"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nbad header\r\n\r\n", 400, "bad-http"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n", 400, "bad-http"),
        (b"PUT /v1/kv/k HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", 400, "bad-http"),
        (
            b"PUT /v1/kv/k HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
            "bad-http",
        ),
        (
            b"GET /v1/kv/" + b"x" * HTTP_LINE_BYTES_MAX + b" HTTP/1.1\r\nHost: a\r\n\r\n",
            414,
            "line-too-long",
        ),
        (
            b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * HTTP_HEADER_BYTES_MAX + b"\r\n\r\n",
            431,
            "headers-too-large",
        ),
        (
            b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 80 + b"\r\n",
            431,
            "headers-too-large",
        ),
    ],
)
async def test_what_is_no_http_or_too_large_is_told_so(
    data: bytes, status: int, problem: str
) -> None:
    async with serving() as http:
        await refused(http, data, status, problem)


async def test_all_headers_together_are_limited() -> None:
    async with serving() as http:
        headers = {f"X-{n}": "v" * 1_000 for n in range(HTTP_HEADER_BYTES_MAX // 1_000 + 1)}
        answer = await http.ask_with("GET", "/", None, headers)
        assert (answer.status, answer.problem) == (431, "headers-too-large")


async def test_slow_heads_and_bodies_are_answered_408_and_delay_nobody() -> None:
    async with serving(settings=QUICK) as http:
        slow = [
            refused_slowly(http, b"GET /v1/kv/k HT"),
            refused_slowly(http, b""),
            refused_slowly(
                http, b"PUT /v1/kv/k HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nab"
            ),
            refused_slowly(
                http,
                b"PUT /v1/kv/k HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab",
            ),
        ]
        waiting = asyncio.gather(*slow)
        assert (await http.ask("PUT", "/v1/kv/other", b"v")).status == 201
        await waiting
        assert http.metrics.refused_total("slow-request") == 4
        assert list(http.node.records) == [b"other"], "nothing partial is stored"


async def refused_slowly(http: Harness, data: bytes) -> None:
    async with http.connect() as connection:
        await connection.send(data)
        answer = await connection.answer()
        assert (answer.status, answer.problem) == (408, "slow-request")
        assert await connection.ended()


async def test_a_second_head_that_stops_midway_is_slow_too() -> None:
    async with serving(settings=QUICK) as http, http.connect() as connection:
        whole = b"GET /health/live HTTP/1.1\r\nHost: a\r\n\r\n"
        await connection.send(whole)
        assert (await connection.answer()).status == 200
        await asyncio.sleep(0.2)
        await connection.send(whole[:20])
        assert (await connection.answer()).problem == "slow-request"


async def test_an_idle_connection_is_closed_without_a_word() -> None:
    idle = replace(QUICK, keepalive_seconds_max=0.1)
    async with serving(settings=idle) as http, http.connect() as connection:
        await connection.send(b"GET /health/live HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (await connection.answer()).status == 200
        assert await connection.ended()


async def test_a_body_in_pieces_is_whole() -> None:
    async with serving() as http, http.connect() as connection:
        await connection.send(
            b"PUT /v1/kv/k HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        for piece in (b"3\r\nabc\r\n", b"1\r\nd\r\n", b"0\r\n\r\n"):
            await connection.send(piece)
            await asyncio.sleep(0.01)
        assert (await connection.answer()).status == 201
        await connection.send(b"GET /v1/kv/k HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (await connection.answer()).body == b"abcd"


async def test_a_body_that_breaks_off_is_not_stored() -> None:
    async with serving() as http:
        async with http.connect() as connection:
            await connection.send(
                b"PUT /v1/kv/k HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc"
            )
        await asyncio.sleep(0.05)
        assert http.node.requests == []


async def test_a_declared_length_over_the_limit_is_refused_before_the_body() -> None:
    async with serving(settings=QUICK) as http:
        size = str(VALUE_BYTES_MAX + 1).encode()
        head = b"PUT /v1/kv/k HTTP/1.1\r\nHost: a\r\nContent-Length: " + size + b"\r\n\r\n"
        await refused(http, head, 413, "too-large")


async def test_an_endless_body_is_cut_off_at_the_limit() -> None:
    settings = replace(QUICK, body_bytes_max=100_000)
    async with serving(settings=settings) as http, http.connect() as connection:
        await connection.send(
            b"PUT /v1/kv/k HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        for _ in range(4):
            await connection.send(b"8000\r\n" + b"x" * 0x8000 + b"\r\n")
        assert (await connection.answer()).problem == "too-large"
        assert http.node.requests == []


async def test_expect_is_honoured() -> None:
    async with serving(settings=QUICK) as http, http.connect() as connection:
        head = (
            b"PUT /v1/kv/k HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n"
        )
        await connection.send(head)
        assert (await connection.answer()).status == 100
        await connection.send(b"abc")
        assert (await connection.answer()).status == 201


@pytest.mark.parametrize(
    ("target", "headers", "status"),
    [
        ("/v1/kv/k", b"Content-Length: 99999999", 413),
        ("/v1/kv/k?ttl=x", b"Content-Length: 3", 400),
        ("/v1/kv/k", b"If-Unmodified-Since: now\r\nContent-Length: 3", 501),
        ("/v1/kv/k", b"Content-Encoding: br\r\nContent-Length: 3", 415),
        ("/nowhere", b"Content-Length: 3", 404),
        ("/v1/cluster", b"Content-Length: 3", 405),
    ],
)
async def test_a_refusal_comes_instead_of_100_continue(
    target: str, headers: bytes, status: int
) -> None:
    async with serving(settings=QUICK) as http, http.connect() as connection:
        line = f"PUT {target} HTTP/1.1\r\n".encode()
        await connection.send(line + b"Host: a\r\nExpect: 100-continue\r\n" + headers + b"\r\n\r\n")
        assert (await connection.answer()).status == status


async def test_an_unknown_expectation_is_417() -> None:
    async with serving(settings=QUICK) as http:
        answer = await http.ask("PUT", "/v1/kv/k", b"v", Expect="a-miracle")
        assert (answer.status, answer.problem) == (417, "bad-expectation")


async def test_one_connection_too_many_is_503() -> None:
    async with serving(settings=replace(QUICK, connections_max=2)) as http:
        async with http.connect(), http.connect():
            await asyncio.sleep(0.02)
            async with http.connect() as third:
                answer = await third.answer()
                assert (answer.status, answer.problem) == (503, "too-many-connections")
                assert answer.headers["retry-after"] == "1"
        await asyncio.sleep(0.02)
        assert http.metrics.connections("http") == 0
        assert (await http.ask("GET", "/health/live")).status == 200


async def test_a_pipeline_is_answered_in_order() -> None:
    async with serving() as http, http.connect() as connection:
        await connection.send(
            b"".join(
                b"PUT /v1/kv/k HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n%d"
                b"GET /v1/kv/k HTTP/1.1\r\nHost: a\r\n\r\n" % n
                for n in range(9)
            )
        )
        for n in range(9):
            assert (await connection.answer()).status in (200, 201)
            assert (await connection.answer()).body == b"%d" % n


async def test_unknown_paths_and_methods() -> None:
    async with serving() as http:
        for target in ("/nowhere", "/v1/kv2", "/v1//kv", "/v1/cluster/", "/v1/kvx/a"):
            answer = await http.ask("GET", target)
            assert (answer.status, answer.problem) == (404, "unknown-path")
        answer = await http.ask("PATCH", "/v1/kv/k", b"x")
        assert answer.problem == "method-not-allowed"
        assert answer.headers["allow"] == "DELETE, GET, HEAD, PUT"
        assert (await http.ask("POST", "/v1/cluster")).headers["allow"] == "GET, HEAD"
        assert (await http.ask("DELETE", "/v1/batch")).headers["allow"] == "POST"


async def test_a_sane_request_id_is_echoed_any_other_replaced() -> None:
    async with serving() as http:
        kept = await http.ask("GET", "/health/live", X_Request_Id="trace-1:a/b")
        assert kept.headers["x-request-id"] == "trace-1:a/b"
        for bad in ("", "a b", "x" * 129, "<script>"):
            made = await http.ask("GET", "/nowhere", X_Request_Id=bad)
            assert re.fullmatch(r"[0-9a-f]{12}-[0-9a-f]+", made.headers["x-request-id"])


async def test_a_mistake_of_ours_is_500_and_tells_nothing_of_the_inside() -> None:
    async with serving() as http:

        def broken(op: object) -> None:
            raise RuntimeError("secret")

        http.node.fail = broken
        answer = await http.ask("GET", "/v1/kv/k")
        assert (answer.status, answer.problem) == (500, "internal-error")
        assert b"secret" not in answer.body
        http.node.fail = lambda op: None
        assert (await http.ask("PUT", "/v1/kv/k", b"v")).status == 201


async def test_a_node_that_hangs_is_unavailable_to_readers_unknown_to_writers() -> None:
    async with serving() as http:
        http.node.hang = True
        get, put = await asyncio.gather(
            http.ask("GET", "/v1/kv/k?timeout=0.01"),
            http.ask("PUT", "/v1/kv/k?timeout=0.01", b"v"),
        )
        assert get.problem == "unavailable"
        assert put.problem == "outcome-unknown"


async def test_a_taken_port_is_said_with_the_flag_that_changes_it() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        app = make_app(FakeNode(), Metrics(), HttpSettings())
        with pytest.raises(SetupError, match=rf"port {port} on 127\.0\.0\.1 is taken.*--http"):
            await start_http(app, "127.0.0.1", port)


async def test_an_address_that_is_not_ours_is_said() -> None:
    app = make_app(FakeNode(), Metrics(), HttpSettings())
    with pytest.raises(SetupError, match=r"cannot listen for HTTP on 192\.0\.2\.1:0"):
        await start_http(app, "192.0.2.1", 0)
