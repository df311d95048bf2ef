"""The OpenAPI document's operations: what each takes, and what it answers.

``problems`` lists the statuses that belong to the operation; those that every operation has are
added by `openapi`.
"""

from __future__ import annotations

from typing import Any, Final

from kvstore.http.forms import JSON, MSGPACK
from kvstore.http.openapi_parts import STRUCTURED, ok

__all__ = ["PATHS"]

_ANY: Final = "*/*"
_READ_HEADERS: Final = ("ETag", "Primary", "ExpiresAt")
_WRITE_HEADERS: Final = ("ETag", "Primary")

_GET: Final[dict[str, Any]] = {
    "operationId": "get",
    "summary": "The value of a key",
    "description": "A raw value comes as it was put; a structured one as JSON or, by Accept, "
    "MessagePack.",
    "tags": ["keys"],
    "parameters": (
        *("Key", "Timeout", "Consistency"),
        *("IfMatch", "IfNoneMatch", "IfRange", "Range"),
    ),
    "responses": {
        200: {
            **ok("The value", headers=_READ_HEADERS),
            "content": {
                JSON: {"schema": {"$ref": "#/components/schemas/Value"}},
                MSGPACK: {},
                _ANY: {"schema": {"$ref": "#/components/schemas/Raw"}},
            },
        },
        206: {
            **ok("A part of it", headers=(*_READ_HEADERS, "ContentRange")),
            "content": {_ANY: {"schema": {"$ref": "#/components/schemas/Raw"}}},
        },
        304: ok("It is as you have it", headers=_READ_HEADERS),
    },
    "problems": (404, 406, 412, 416, 429, 500),
}

_HEAD: Final[dict[str, Any]] = {
    **_GET,
    "operationId": "head",
    "summary": "What GET would say, without the value",
    "parameters": ("Key", "Timeout", "Consistency", "IfMatch", "IfNoneMatch"),
    "responses": {status: _GET["responses"][status] for status in (200, 304)},
    "problems": (404, 406, 412, 429, 500),
}

_PUT: Final[dict[str, Any]] = {
    "operationId": "put",
    "summary": "Store a value",
    "description": "JSON and MessagePack are stored as that value, anything else as raw bytes with "
    "its content type.",
    "tags": ["keys"],
    "parameters": ("Key", "Timeout", "Ttl", "IfMatch", "IfNoneMatchAny", "IdempotencyKey"),
    "body": ("Value", JSON, MSGPACK, _ANY),
    "responses": {
        200: ok("Replaced", headers=_WRITE_HEADERS),
        201: ok("Made", headers=_WRITE_HEADERS),
    },
    "problems": (412, 413, 415, 429, 500, 504),
}

_DELETE: Final[dict[str, Any]] = {
    "operationId": "delete",
    "summary": "Remove a key",
    "tags": ["keys"],
    "parameters": ("Key", "Timeout", "IfMatch", "IdempotencyKey"),
    "responses": {204: ok("Removed", headers=("Primary",))},
    "problems": (404, 412, 429, 500, 504),
}

_INCR: Final[dict[str, Any]] = {
    "operationId": "incr",
    "summary": "Add to a number",
    "description": "An absent key counts as 0. A key that itself ends with /incr is incremented at "
    "/incr/incr.",
    "tags": ["keys"],
    "parameters": ("Key", "By", "Timeout", "IdempotencyKey"),
    "responses": {200: ok("The new number", "Number", JSON, headers=_WRITE_HEADERS)},
    "problems": (429, 500, 504),
}

_TOUCH: Final[dict[str, Any]] = {
    "operationId": "touch",
    "summary": "Set or remove a key's time to live",
    "description": "The value stays as it is; the version is a new one.",
    "tags": ["keys"],
    "parameters": ("Key", "Timeout", "Ttl", "IdempotencyKey"),
    "responses": {204: ok("Done", headers=_WRITE_HEADERS)},
    "problems": (404, 429, 500, 504),
}

_LIST: Final[dict[str, Any]] = {
    "operationId": "list",
    "summary": "Keys by prefix",
    "description": "Slot by slot, in order within a slot. A page may hold fewer entries than asked "
    "for, or none, and still have a next one.",
    "tags": ["keys"],
    "parameters": ("Prefix", "Limit", "Cursor", "Values", "Timeout"),
    "responses": {200: ok("A page", "Page", *STRUCTURED)},
    "problems": (406, 429, 500),
}

_BATCH: Final[dict[str, Any]] = {
    "operationId": "batch",
    "summary": "Many operations at once",
    "description": "A result for each, in order. Without atomic each stands alone; with it, all of "
    "one slot happen or none.",
    "tags": ["keys"],
    "parameters": ("Timeout", "IdempotencyKey"),
    "body": ("Batch", *STRUCTURED),
    "responses": {200: ok("The results", "BatchResults", *STRUCTURED)},
    "problems": (406, 412, 413, 415, 429, 500, 504),
}

_WATCH: Final[dict[str, Any]] = {
    "operationId": "watch",
    "summary": "What happens under a prefix, as it commits",
    "description": "Server-sent events without an end. `started` comes first. Each message without "
    "a name is a JSON array of changes: `type` (put, delete, superseded, reset, corrupt), `key`, "
    "`slot`, `version`, and for a put `value`. After a reset, forget the keys of its `slots`: "
    "their state follows. `end` has a `detail`; connect again. The `id` of each message resumes "
    "behind it, as Last-Event-ID, at any node.",
    "tags": ["keys"],
    "parameters": ("Prefix", "LastEventId"),
    "responses": {200: ok("The stream", "Text", "text/event-stream")},
    "problems": (500,),
}

_CHANGE_TOPOLOGY: Final[dict[str, Any]] = {
    "operationId": "change_topology",
    "summary": "Change the topology",
    "description": "By whichever node is asked, answered when it is committed. A node joins and is "
    "replaced by starting it (`kvstore serve --join`). To repeat a change is no harm.",
    "tags": ["cluster"],
    "parameters": ("Timeout",),
    "body": ("TopologyChange", JSON),
    "responses": {200: ok("The topology in which it is true", "TopologyStatus")},
    "problems": (409, 413, 415, 500, 504),
}

_PLAN: Final[dict[str, Any]] = {
    "operationId": "plan",
    "summary": "What a change of the topology would move; changes nothing",
    "tags": ["cluster"],
    "parameters": (),
    "body": ("PlannedChange", JSON),
    "responses": {200: ok("Slots, bytes, time and the reason", "PlanStatus")},
    "problems": (409, 413, 415, 500),
}


def _view(
    operation: str, tag: str, text: str, *body: str, parameters: tuple[str, ...] = ()
) -> dict[str, Any]:
    """An operation that only shows something of the asked node."""
    return {
        "get": {
            "operationId": operation,
            "summary": text,
            "tags": [tag],
            "parameters": parameters,
            "responses": {200: ok(text, *body)},
            "problems": () if operation in _CANNOT_FAIL else (500,),
        }
    }


_CANNOT_FAIL: Final = ("live", "openapi", "front_page")

PATHS: Final[dict[str, dict[str, Any]]] = {
    "/v1/kv/{key}": {"get": _GET, "head": _HEAD, "put": _PUT, "delete": _DELETE},
    "/v1/kv/{key}/incr": {"post": _INCR},
    "/v1/kv/{key}/touch": {"post": _TOUCH},
    "/v1/kv": {"get": _LIST},
    "/v1/batch": {"post": _BATCH},
    "/v1/watch": {"get": _WATCH},
    "/v1/cluster": _view("cluster", "cluster", "The nodes, as this one sees them", "Cluster"),
    "/v1/cluster/slots": _view(
        *("slots", "cluster", "Where slots live: of a key, one, or a stretch", "Slots"),
        parameters=("SlotKey", "SlotNumber", "SlotFrom", "Limit"),
    ),
    "/v1/cluster/node": _view("node", "cluster", "This node's figures", "Node"),
    "/v1/cluster/topology": {
        **_view("topology", "cluster", "The newest topology", "TopologyStatus"),
        "post": _CHANGE_TOPOLOGY,
    },
    "/v1/cluster/plan": {"post": _PLAN},
    "/v1/cluster/moves": _view("moves", "cluster", "Slots that this node is moving", "MovesStatus"),
    "/v1/cluster/quorums": _view(
        "quorums", "cluster", "Whom the slots need that this node leads", "QuorumsStatus"
    ),
    "/health/live": _view("live", "health", "The process answers", "Health"),
    "/health/ready": _view("ready", "health", "The node serves its slots", "Health"),
    "/metrics": _view("metrics", "health", "Metrics for Prometheus", "Text", "text/plain"),
    "/v1/openapi.json": _view("openapi", "cluster", "This document", "Object"),
    "/": _view("front_page", "cluster", "A page with links", "Text", "text/html"),
}
