"""The document against the server: each operation is asked for each status that it names."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import validate

from cluster.limits import HTTP_HEADER_BYTES_MAX, VALUE_BYTES_MAX
from cluster.operations import Code, Failed
from kvstore.http import HttpSettings
from kvstore.http.app import BELOW_A_KEY, EXACT, OF_A_KEY
from kvstore.http.openapi import document
from kvstore.http.problems import PROBLEMS
from tests.kvstore.fake_node import FakeNode
from tests.kvstore.http_harness import Answer, Harness, serving

JSON = "application/json"
QUICK = HttpSettings(head_seconds_max=0.05, body_seconds_max=0.05, linger_seconds_max=0.05)
CHANGE = b'{"type": "zone", "node": "n1", "zone": "b"}'
BODIES = {
    "put": b"1",
    "change_topology": CHANGE,
    "plan": CHANGE,
    "batch": b'[{"op": "put", "key": "{t}a", "value": 1}]',
}
TARGETS = {
    "/v1/kv/{key}": "/v1/kv/{t}a",
    "/v1/kv/{key}/incr": "/v1/kv/{t}n/incr",
    "/v1/kv/{key}/touch": "/v1/kv/{t}a/touch",
}

Trial = Callable[[Harness, "Operation"], Awaitable[Answer]]


class Operation:
    """An operation of the document and how to ask for it."""

    def __init__(self, path: str, method: str, spec: dict[str, Any]) -> None:
        self.path = path
        self.method = method.upper()
        self.spec = spec
        self.id = spec["operationId"]
        self.target = TARGETS.get(path, path)
        self.body = BODIES.get(self.id)

    async def ask(self, http: Harness, query: str = "", **headers: str) -> Answer:
        if self.body is not None:
            headers.setdefault("Content_Type", JSON)
        return await http.ask(self.method, self.target + query, self.body, **headers)


def operations() -> Iterator[Operation]:
    for path, methods in document()["paths"].items():
        for method, spec in methods.items():
            yield Operation(path, method, spec)


CASES = [
    (operation, int(status)) for operation in operations() for status in operation.spec["responses"]
]


class BrokenNode(FakeNode):
    """Whatever it is asked, it makes a mistake."""

    def __getattribute__(self, name: str) -> Any:
        doors = ("submit", "routes", "members", "not_ready_reason", "status", "slot_status")
        if name in (*doors, "operator"):
            raise RuntimeError(name)
        return super().__getattribute__(name)


async def plain(http: Harness, operation: Operation) -> Answer:
    return await operation.ask(http)


async def stored(http: Harness, operation: Operation) -> Answer:
    await http.ask("PUT", "/v1/kv/{t}a", b'{"a": 1}', Content_Type=JSON)
    return await operation.ask(http)


async def failing(http: Harness, operation: Operation, code: Code) -> Answer:
    http.node.fail = lambda op: Failed(code, "because")
    if operation.id == "batch":
        body = b'{"atomic": true, "operations": [{"op": "delete", "key": "a"}]}'
        target = "/v1/batch?timeout=0.02"
        return await http.ask("POST", target, body, Content_Type=JSON)
    return await operation.ask(http, "?timeout=0.02")


async def cut_head(http: Harness, operation: Operation) -> Answer:
    async with http.connect() as connection:
        await connection.send(f"{operation.method} {operation.target} HTTP/1.1\r\nHo".encode())
        return await connection.answer()


async def conditional(http: Harness, operation: Operation) -> Answer:
    await http.ask("PUT", "/v1/kv/{t}a", b"1", Content_Type=JSON)
    if operation.id == "batch":
        write = {"op": "put", "key": "{t}a", "value": 2, "if_absent": True}
        body = json.dumps({"atomic": True, "operations": [write]}).encode()
        return await http.ask("POST", "/v1/batch", body, Content_Type=JSON)
    return await operation.ask(http, If_Match='"9.9.9"')


async def too_large(http: Harness, operation: Operation) -> Answer:
    return await operation.ask(http, Content_Length=str(9 * VALUE_BYTES_MAX))


async def not_modified(http: Harness, operation: Operation) -> Answer:
    await http.ask("PUT", "/v1/kv/{t}a", b"1")
    return await operation.ask(http, If_None_Match="*")


async def ranged(http: Harness, operation: Operation, text: str) -> Answer:
    await http.ask("PUT", "/v1/kv/{t}a", b"12345")
    return await operation.ask(http, Range=text)


async def unacceptable(http: Harness, operation: Operation) -> Answer:
    await http.ask("PUT", "/v1/kv/{t}a", b"1", Content_Type=JSON)
    return await operation.ask(http, Accept="image/png")


async def refused(http: Harness, operation: Operation) -> Answer:
    operation.body = b'{"type": "leave", "node": "nobody"}'
    try:
        return await operation.ask(http)
    finally:
        operation.body = CHANGE


TRIALS: dict[int, Trial] = {
    200: stored,
    201: plain,
    204: stored,
    206: lambda http, operation: ranged(http, operation, "bytes=1-2"),
    304: not_modified,
    400: lambda http, operation: operation.ask(http, "?nonsense=1"),
    404: plain,
    406: unacceptable,
    408: cut_head,
    409: refused,
    412: conditional,
    413: too_large,
    414: lambda http, operation: operation.ask(http, "?" + "x" * 17_000),
    415: lambda http, operation: operation.ask(http, Content_Encoding="gzip"),
    416: lambda http, operation: ranged(http, operation, "bytes=9-"),
    417: lambda http, operation: operation.ask(http, Expect="a-miracle"),
    429: lambda http, operation: failing(http, operation, Code.OVERLOADED),
    431: lambda http, operation: operation.ask(http, X="x" * HTTP_HEADER_BYTES_MAX),
    500: plain,
    501: lambda http, operation: operation.ask(http, If_Unmodified_Since="now"),
    503: plain,
    504: lambda http, operation: failing(http, operation, Code.UNKNOWN),
}


def schema_of(name: str) -> OAS31Validator:
    return OAS31Validator(
        {"$ref": f"#/components/schemas/{name}", "components": document()["components"]}
    )


def check(operation: Operation, answer: Answer) -> None:
    """The answer is one that the document has: status, headers, media type, shape."""
    told = operation.spec["responses"].get(str(answer.status))
    assert told is not None, f"{operation.id} answered {answer.status}, which is not documented"
    for name in told["headers"]:
        if name in ("X-Request-Id", "Retry-After", "Content-Range", "ETag"):
            assert name.lower() in answer.headers, name
    for name in ("etag", "x-kv-primary", "retry-after", "content-range", "x-kv-expires-at"):
        if name in answer.headers and answer.status < 400:
            assert name in {header.lower() for header in told["headers"]}, name
    if "content" not in told:
        turned_away_before_the_method_was_read = answer.status in (408, 503)
        assert answer.body == b"" or turned_away_before_the_method_was_read
        return
    media = answer.headers["content-type"].partition(";")[0]
    media = media if media in told["content"] else "*/*"
    schema = told["content"][media].get("schema", {}).get("$ref", "").rpartition("/")[2]
    if media in (JSON, "application/problem+json"):
        schema_of(schema).validate(answer.json)


def test_the_document_is_valid() -> None:
    validate(document())


@pytest.mark.parametrize(
    ("operation", "status"), CASES, ids=[f"{operation.id}-{status}" for operation, status in CASES]
)
async def test_each_documented_status_is_answered(operation: Operation, status: int) -> None:
    settings = QUICK if status == 408 else replace(QUICK, head_seconds_max=5, body_seconds_max=5)
    if status == 503:
        settings = replace(settings, connections_max=0)
    node = BrokenNode() if status == 500 else FakeNode()
    async with serving(FakeNode(), settings, view=node) as http:
        http = replace(http, node=node)
        if status == 503:
            async with http.connect() as connection:
                answer = await connection.answer()
        else:
            answer = await TRIALS[status](http, operation)
        assert answer.status == status
        check(operation, answer)


async def test_what_a_client_does_is_documented() -> None:
    """Random but sensible uses of every operation meet no status that is not in the document."""
    variants: list[tuple[str, dict[str, str]]] = [
        ("", {}),
        ("?timeout=1", {"Accept": "application/msgpack"}),
        ("", {"If_None_Match": "*"}),
        ("", {"If_Match": "*"}),
        ("", {"Range": "bytes=0-0"}),
        ("", {"Idempotency_Key": "same"}),
        ("?values=1", {}),
        ("?ttl=9", {}),
    ]
    async with serving(settings=QUICK) as http:
        for _ in range(2):
            for operation in operations():
                answers = await asyncio.gather(
                    *(operation.ask(http, query, **headers) for query, headers in variants)
                )
                for answer in answers:
                    check(operation, answer)


def test_the_document_has_every_route_with_its_parameters_and_conditions() -> None:
    components = document()["components"]["parameters"]
    routes = {(route.method, path): route for path, by in EXACT.items() for route in by.values()}
    routes |= {(route.method, "/v1/kv/{key}"): route for route in OF_A_KEY.values()}
    routes |= {("POST", f"/v1/kv/{{key}}{ending}"): route for ending, route in BELOW_A_KEY.items()}
    told = {
        (operation.method, operation.path): operation
        for operation in operations()
        if operation.method != "HEAD"
    }
    assert set(told) == set(routes)
    for place, operation in told.items():
        route = routes[place]
        names = [ref["$ref"].rpartition("/")[2] for ref in operation.spec["parameters"]]
        parameters = [components[name] for name in names]
        assert operation.id == route.operation
        query = {parameter["name"] for parameter in parameters if parameter["in"] == "query"}
        assert query == set(route.parameters)
        headers = {parameter["name"] for parameter in parameters if parameter["in"] == "header"}
        assert {name for name in headers if name.startswith("If-")} == set(route.conditions)


def test_every_problem_has_its_status_in_the_document() -> None:
    named = {status for operation in operations() for status in operation.spec["responses"]}
    assert {str(kind.status) for kind in PROBLEMS.values()} - named == {"405"}
