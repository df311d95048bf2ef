"""The OpenAPI document's components: schemas, parameters, headers, and what makes an answer.

The structs of `kvstore.node.view` are turned into schemas by msgspec, so that they cannot drift.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from cluster.limits import KEY_BYTES_MAX, TTL_MS_MAX
from kvstore.http.forms import JSON, MSGPACK
from kvstore.http.listing import LIMIT_DEFAULT, LIMIT_MAX
from kvstore.http.problems import PROBLEM_TYPE, PROBLEMS
from kvstore.http.settings import HttpSettings
from kvstore.node.operator_view import (
    MovesStatus,
    OperatorChange,
    PlannedChange,
    PlanStatus,
    QuorumsStatus,
    TopologyStatus,
)
from kvstore.node.view import MemberStatus, NodeStatus, SlotStatus

__all__ = ["HEADERS", "PARAMETERS", "SCHEMAS", "STRUCTURED", "content", "ok", "problem", "ref"]

_SETTINGS: Final = HttpSettings()


def ref(kind: str, name: str) -> dict[str, str]:
    """A reference to a component."""
    return {"$ref": f"#/components/{kind}/{name}"}


def content(schema: str, *types: str) -> dict[str, Any]:
    """A body of one schema in several media types."""
    return {name: {"schema": ref("schemas", schema)} for name in types or (JSON,)}


def ok(text: str, *body: str, headers: tuple[str, ...] = ()) -> dict[str, Any]:
    """An answer; ``body`` is a schema's name and its media types, ``headers`` name components."""
    answer: dict[str, Any] = {"description": text}
    if body:
        answer["content"] = content(*body)
    if headers:
        answer["headers"] = {_HEADER_NAMES[name]: ref("headers", name) for name in headers}
    return answer


def problem(status: int) -> dict[str, Any]:
    """The answer of a status that is a problem; its text lists the kinds that have it."""
    kinds = [kind for kind in PROBLEMS.values() if kind.status == status]
    text = "; ".join(f"`{kind.uri}`: {kind.title}" for kind in kinds)
    answer = ok(text, "Problem", PROBLEM_TYPE)
    names = {429: ("RetryAfter",), 503: ("RetryAfter",), 416: ("ContentRange",)}.get(status, ())
    answer["headers"] = {_HEADER_NAMES[name]: ref("headers", name) for name in names}
    return answer


def _struct(kind: type[msgspec.Struct]) -> dict[str, Any]:
    _, components = msgspec.json.schema_components([kind])
    schema = dict(components[kind.__name__])
    schema.pop("title", None)
    return schema


_REFERENCE: Final = ref("schemas", "{name}")["$ref"]


def _structs(*kinds: Any) -> dict[str, Any]:
    """Several, with whatever they are made of, each under its own name."""
    _, components = msgspec.json.schema_components(kinds, ref_template=_REFERENCE)
    for schema in components.values():
        schema.pop("title", None)
    return components


def _one_of(union: Any) -> dict[str, Any]:
    """A union of structs, told apart by their ``type``."""
    (schema,), _ = msgspec.json.schema_components([union], ref_template=_REFERENCE)
    return {"oneOf": schema["anyOf"]}


def _record(required: str, **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


_STRING: Final = {"type": "string"}
_COUNT: Final = {"type": "integer", "minimum": 0}
_VERSION: Final = {"type": "string", "pattern": r"^[0-9a-f]{1,8}\.[0-9a-f]{1,16}\.[0-9a-f]{1,16}$"}
_OR_NULL: Final = {"type": ["string", "null"]}
_BYTES: Final = _record("$bytes", **{"$bytes": {"type": "string", "contentEncoding": "base64"}})
_KEY: Final = {"oneOf": [_STRING, ref("schemas", "Bytes")], "description": "Bytes if no UTF-8."}

SCHEMAS: Final[dict[str, Any]] = {
    "Value": {
        "description": (
            "Any JSON value. What JSON lacks is an object with one member: "
            '{"$bytes": base64}, {"$datetime": RFC 3339}, {"$float": "nan"|"inf"|"-inf"}, '
            '{"$ext": [code, base64]}, {"$map": [[key, value], ...]}. Numbers have at most 64 bits.'
        )
    },
    "Raw": {"description": "Bytes, given back as they were put, with their content type."},
    "Bytes": _BYTES,
    "Number": {"type": "integer", "description": "64 bits, signed."},
    "Problem": {
        "type": "object",
        "description": "RFC 9457.",
        "properties": {
            "type": {"enum": [kind.uri for kind in PROBLEMS.values()]},
            "title": _STRING,
            "status": {"type": "integer", "enum": sorted({k.status for k in PROBLEMS.values()})},
            "detail": _STRING,
            "operation_id": {
                "type": "string",
                "description": "Of a write whose outcome is unknown: send the request again with "
                "this as Idempotency-Key to settle it.",
            },
            "current": {**_OR_NULL, "description": "The version that stands; null: no such key."},
            "index": {**_COUNT, "description": "The operation of a batch that is wrong."},
        },
        "required": ["type", "title", "status", "detail"],
        "additionalProperties": False,
    },
    "Keys": _record("keys next", keys={"type": "array", "items": _KEY}, next=_OR_NULL),
    "Entries": _record(
        "entries next",
        entries={"type": "array", "items": ref("schemas", "Entry")},
        next=_OR_NULL,
    ),
    "Page": {"oneOf": [ref("schemas", "Keys"), ref("schemas", "Entries")]},
    "Entry": _record(
        "key value version",
        key=_KEY,
        value=ref("schemas", "Value"),
        version=_VERSION,
        content_type=_STRING,
        expires_at={"type": "string", "format": "date-time"},
    ),
    "Operation": {
        **_record(
            "op key",
            op={"enum": ["get", "put", "delete", "incr", "touch"]},
            key=_KEY,
            value=ref("schemas", "Value"),
            ttl={"type": "number", "minimum": 0, "maximum": TTL_MS_MAX / 1000},
            if_version=_VERSION,
            if_absent={"type": "boolean"},
            by={"type": "integer"},
            consistency={"enum": ["linearizable", "eventual"]},
        ),
        "description": "put: value, ttl (seconds), if_version, if_absent; delete: if_version; "
        "incr: by; touch: ttl; get: consistency.",
    },
    "Batch": {
        "oneOf": [
            {"type": "array", "items": ref("schemas", "Operation")},
            _record(
                "operations",
                operations={"type": "array", "items": ref("schemas", "Operation")},
                atomic={
                    "type": "boolean",
                    "description": "All or nothing: puts and deletes of one slot.",
                },
            ),
        ]
    },
    "BatchResults": _record(
        "results", results={"type": "array", "items": ref("schemas", "Result")}
    ),
    "Result": {
        "type": "object",
        "description": "The status that the single request would have (200 for any put), with what "
        "belongs to it; for an error the members of a problem.",
        "properties": {"status": {"type": "integer"}, "version": _VERSION},
        "required": ["status"],
    },
    "Cluster": _record(
        "cluster cluster_id epoch slot_count node nodes problems",
        cluster=_STRING,
        cluster_id=_STRING,
        epoch=_COUNT,
        slot_count=_COUNT,
        node={"type": "string", "description": "Who answers."},
        nodes={"type": "array", "items": ref("schemas", "Member")},
        problems={"type": "array", "items": _STRING},
    ),
    "Slots": _record(
        "slots next",
        slots={"type": "array", "items": ref("schemas", "Slot")},
        next={"type": ["integer", "null"]},
    ),
    "Member": _struct(MemberStatus),
    "Slot": _struct(SlotStatus),
    "Node": _struct(NodeStatus),
    **_structs(TopologyStatus, MovesStatus, QuorumsStatus, PlanStatus, PlannedChange),
    "TopologyChange": _one_of(OperatorChange),
    "PlannedChange": _one_of(PlannedChange),
    "Health": _record("status", status={"enum": ["live", "ready"]}),
    "Text": _STRING,
    "Object": {"type": "object"},
}


def _query(name: str, schema: dict[str, Any], text: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "schema": schema, "description": text}


def _header(name: str, text: str) -> dict[str, Any]:
    return {"name": name, "in": "header", "schema": _STRING, "description": text}


_SECONDS: Final = {"type": "number", "exclusiveMinimum": 0}

PARAMETERS: Final[dict[str, Any]] = {
    "Key": {
        "name": "key",
        "in": "path",
        "required": True,
        "schema": {"type": "string", "minLength": 1},
        "description": f"1 to {KEY_BYTES_MAX:,} bytes, percent-encoded once; everything after "
        "/v1/kv/ belongs to it, slashes and dots included. Keys with one {tag} share a slot. "
        "Only POST knows the endings /incr and /touch.",
    },
    "Timeout": _query(
        "timeout",
        _SECONDS | {"maximum": _SETTINGS.timeout_seconds_max},
        f"Seconds for the whole call; {_SETTINGS.timeout_seconds_default:g} without it.",
    ),
    "Ttl": _query(
        "ttl",
        _SECONDS | {"maximum": TTL_MS_MAX / 1000},
        "Seconds until the key goes by itself; it stays for ever without it.",
    ),
    "Consistency": _query(
        "consistency",
        {"enum": ["linearizable", "eventual"], "default": "linearizable"},
        "eventual: any replica's word is good enough.",
    ),
    "By": _query("by", {"type": "integer", "default": 1}, "What to add; may be negative."),
    "Prefix": _query("prefix", _STRING, "Keys that begin with it."),
    "Limit": _query(
        "limit",
        {"type": "integer", "minimum": 1, "maximum": LIMIT_MAX, "default": LIMIT_DEFAULT},
        "Most entries of the page.",
    ),
    "Cursor": _query("cursor", _STRING, "The `next` of the page before; same prefix."),
    "Values": _query(
        "values", {"enum": ["0", "1", "false", "true"], "default": "0"}, "1: entries, not keys."
    ),
    "SlotKey": _query("key", _STRING, "The slot of this key."),
    "SlotNumber": _query("slot", _COUNT, "This slot."),
    "SlotFrom": _query("from", _COUNT, "Slots from here on."),
    "IfMatch": _header("If-Match", "Only if the version is one of these ETags; *: if it exists."),
    "IfNoneMatchAny": _header("If-None-Match", "Only * : the key must not exist."),
    "IfNoneMatch": _header("If-None-Match", "304 if the version is one of these ETags."),
    "IfRange": _header("If-Range", "The range only if the ETag still fits, else everything."),
    "Range": _header("Range", "One range of bytes."),
    "IdempotencyKey": _header(
        "Idempotency-Key",
        "Repeating the request with the same text writes once, as far back as the slot's key log "
        "reaches (256 writes).",
    ),
    "LastEventId": _header("Last-Event-ID", "Go on behind this id of an earlier stream."),
    "RequestId": _header("X-Request-Id", "Comes back; one is made if it is missing."),
}

_HEADER_NAMES: Final = {
    "RequestId": "X-Request-Id",
    "Primary": "X-KV-Primary",
    "ETag": "ETag",
    "RetryAfter": "Retry-After",
    "ContentRange": "Content-Range",
    "ExpiresAt": "X-KV-Expires-At",
}

HEADERS: Final[dict[str, Any]] = {
    "RequestId": {"schema": _STRING, "description": "Names the request in logs."},
    "Primary": {"schema": _STRING, "description": "Address of the slot's primary, a hint."},
    "ETag": {"schema": _STRING, "description": "The version, in quotes; strong."},
    "RetryAfter": {"schema": {"type": "integer"}, "description": "Seconds to wait."},
    "ContentRange": {"schema": _STRING, "description": "Which bytes, of how many."},
    "ExpiresAt": {
        "schema": {"type": "string", "format": "date-time"},
        "description": "When the key goes by itself.",
    },
}

STRUCTURED: Final = (JSON, MSGPACK)
"""The two forms of a structured body."""
