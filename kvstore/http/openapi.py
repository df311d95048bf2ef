"""The interface as an OpenAPI 3.1 document, at `/v1/openapi.json`.

The document is written by hand, because it is a promise: `tests/kvstore/test_openapi.py` walks it
against a running server, asks for every status that it names, and fails on any status or parameter
that it does not. Only what the code knows exactly is taken from the code: limits, kinds of
problems, and the shapes of the node's own structs.

Every operation can meet the statuses of `_ALWAYS`; problems share one schema, whose ``type`` is
one of the kinds of `problems`.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

from kvstore.http.door import Call, Route
from kvstore.http.forms import JSON
from kvstore.http.openapi_parts import HEADERS, PARAMETERS, SCHEMAS, content, problem, ref
from kvstore.http.openapi_paths import PATHS
from kvstore.json_values import dump_json

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["ROUTES", "document"]

_ALWAYS: Final = (400, 408, 414, 417, 431, 501, 503)
"""Statuses that stand before any handler."""


async def openapi(call: Call) -> web.Response:
    """The document."""
    return web.Response(body=_document_bytes(), headers={"Content-Type": JSON})


ROUTES: Final = (Route("GET", "/v1/openapi.json", "openapi", openapi),)


@cache
def document() -> dict[str, Any]:
    """The whole document; treat it as read-only."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "kvstore",
            "version": "1",
            "summary": "A replicated key-value store",
            "description": (
                "Any node answers for any key. Writes that were answered are durable on a quorum; "
                "reads are linearizable unless asked otherwise. A condition header that a resource "
                "does not support is refused with 501, an unknown query parameter with 400. "
                "HEAD works wherever GET does."
            ),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [],
        "tags": [{"name": name} for name in ("keys", "cluster", "health")],
        "paths": {path: _path(operations) for path, operations in PATHS.items()},
        "components": {"schemas": SCHEMAS, "parameters": PARAMETERS, "headers": HEADERS},
    }


@cache
def _document_bytes() -> bytes:
    return dump_json(document())


def _path(operations: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {method: _operation(method, spec) for method, spec in operations.items()}


def _operation(method: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    """An operation with the answers and headers that all of them have."""
    responses = {str(status): answer for status, answer in spec["responses"].items()}
    for status in (*spec.get("problems", ()), *_ALWAYS):
        responses.setdefault(str(status), problem(status))
    shown = {}
    for status, answer in sorted(responses.items()):
        answer = dict(answer)
        answer["headers"] = {"X-Request-Id": ref("headers", "RequestId")} | answer.get(
            "headers", {}
        )
        if method == "head" or status == "304":
            answer.pop("content", None)
        shown[status] = answer
    operation = {name: spec[name] for name in ("operationId", "summary", "tags")}
    if "description" in spec:
        operation["description"] = spec["description"]
    parameters = [ref("parameters", name) for name in (*spec.get("parameters", ()), "RequestId")]
    operation["parameters"] = parameters
    if "body" in spec:
        operation["requestBody"] = {"required": True, "content": content(*spec["body"])}
    operation["responses"] = shown
    return operation
